"""Groupings that give every foreground pixel one label."""

from abc import abstractmethod
from typing import Dict, Optional, Tuple, Type

import torch
from detectron2.config import CfgNode

from ...argument_checks import check_range
from ..grouping import MIN_FOREGROUND, PixelGrouping
from ..head import ImageMaps
from ..oracles import LabelMasks
from ..pixel_groups import ComponentMasks, SoftMasks
from .method import EmbeddingMethod


class LabelGrouping(PixelGrouping):
    """Base class of groupings that cluster the embeddings of foreground pixels.

    The class scores choose the foreground, as semantic segmentation does in the papers. A mask is
    the foreground probability in the cells of its cluster.
    """

    def __init__(
        self,
        *,
        foreground_threshold: float = 0.5,
        split_into_components: bool = False,
        min_area: float = 16,
        max_groups: int = 500,
    ):
        """
        Args:
            foreground_threshold: foreground probability at or above which a pixel is clustered.
            split_into_components: whether every connected component of a cluster becomes a group.
            min_area: smallest area of a group in pixels of the image.
            max_groups: number of the largest groups that are kept.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(min_area=min_area, max_groups=max_groups)
        check_range("foreground_threshold", foreground_threshold, 0, 1)
        self.foreground_threshold = foreground_threshold
        self.split_into_components = split_into_components

    @abstractmethod
    def _labels(self, maps: ImageMaps, cells: torch.Tensor, grouped: torch.Tensor) -> torch.Tensor:
        """Clusters the cells of an image that may be foreground.

        Args:
            maps: predictions for the image.
            cells: (P,) int64 indices into the flattened grid.
            grouped: (P,) bool, whether a cell can define clusters. The others only join them.

        Returns:
            (P,) int64 cluster of each cell, -1 for none.
        """

    def _soft_masks(
        self, maps: ImageMaps, probability: torch.Tensor, num_instances: Optional[int]
    ) -> Tuple[SoftMasks, torch.Tensor]:
        foreground = self.foreground(maps)
        cells = torch.nonzero(foreground.flatten() > MIN_FOREGROUND).squeeze(1)
        grouped = foreground.flatten()[cells] >= self.foreground_threshold
        labels = self._labels(maps, cells, grouped)
        label_map = torch.full_like(foreground, -1, dtype=torch.long)
        label_map.view(-1)[cells] = labels
        clear = grouped & (labels >= 0)
        if self.split_into_components:
            clear_map = torch.full_like(label_map, -1)
            clear_map.view(-1)[cells[clear]] = labels[clear]
            components = self._large_components(clear_map, maps.stride)
            numbers = torch.arange(int(label_map.max()) + 1, device=labels.device)
            masks = ComponentMasks(LabelMasks(label_map, numbers, foreground), components)
        else:
            numbers, counts = torch.unique(labels[clear], return_counts=True)
            order = torch.argsort(counts, descending=True, stable=True)[: self.max_groups]
            numbers = numbers[order][counts[order] * maps.stride**2 >= self.min_area]
            masks = LabelMasks(label_map, numbers, foreground)
        return masks, probability.new_ones(len(masks))


class LabelMethod(EmbeddingMethod):
    """Base class of methods with a :class:`LabelGrouping`."""

    grouping: Type[LabelGrouping]

    def _grouping(self, cfg: CfgNode, limits: Dict[str, float]) -> PixelGrouping:
        rpe = cfg.MODEL.RPE
        return self.grouping(
            foreground_threshold=rpe.FOREGROUND_THRESHOLD,
            split_into_components=rpe.SPLIT_COMPONENTS,
            **limits,
        )
