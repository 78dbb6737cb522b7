"""Base class of the losses of the compared methods: weights, classes and sampled pixels."""

from abc import ABC, abstractmethod
from typing import Dict, List, Mapping, Optional, Tuple

import torch
from detectron2.config import CfgNode, configurable
from torch import nn

from ...argument_checks import check_choice, check_positive, check_range
from ...layers import zero_loss
from ..grouping import PixelGrouping
from ..head import EmbeddingHead, EmbeddingMaps
from ..labels import PixelLabels
from ..loss import check_sem_seg_stride, class_map_loss, read_maps
from ..mean_shift_layer import MeanShiftLayer
from ..pixel_samples import SAMPLERS


class MethodLoss(nn.Module, ABC):
    """Base class of the losses of other papers on embeddings of any length.

    Every term is the mean over the images of a batch. The cross-entropy of the class logits is
    added, as the masks are classified by the mean of their pixels.

    Attributes:
        term_weights: the terms by name, and their weights in the paper.
    """

    term_weights: Mapping[str, float] = {}
    background_is_group = False
    loop_weights: Tuple[float, ...] = ()

    @configurable
    def __init__(
        self,
        *,
        embedding_weight: float = 1.0,
        sem_seg_weight: float = 1.0,
        sem_seg_stride: int = 1,
        term_weights: Optional[Mapping[str, float]] = None,
    ):
        """
        Args:
            embedding_weight: factor of all terms on embeddings.
            sem_seg_weight: weight of the cross-entropy of the class logits.
            sem_seg_stride: stride to which class logits are upsampled before the cross-entropy.
            term_weights: weights of terms, which override the paper's.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__()
        check_range("embedding_weight", embedding_weight, 0)
        check_range("sem_seg_weight", sem_seg_weight, 0)
        check_positive("sem_seg_stride", sem_seg_stride)
        for name, weight in (term_weights or {}).items():
            check_choice("term_weights", name, list(type(self).term_weights))
            check_range(f"term_weights[{name!r}]", weight, 0)
        self.embedding_weight = embedding_weight
        self.sem_seg_weight = sem_seg_weight
        self.sem_seg_stride = sem_seg_stride
        self.term_weights = {**type(self).term_weights, **(term_weights or {})}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict:
        rpe = cfg.MODEL.RPE
        check_sem_seg_stride(
            "MODEL.RPE.SEM_SEG_LOSS_STRIDE",
            rpe.SEM_SEG_LOSS_STRIDE,
            "MODEL.RPE.STRIDE",
            rpe.STRIDE,
        )
        return {
            "embedding_weight": rpe.PAIR_LOSS_WEIGHT,
            "sem_seg_weight": rpe.SEM_SEG_LOSS_WEIGHT,
            "sem_seg_stride": rpe.SEM_SEG_LOSS_STRIDE,
        }

    @abstractmethod
    def default_grouping(self) -> PixelGrouping:
        """Builds the grouping that belongs to the loss, with default arguments."""

    def extra_dim(self, num_classes: int) -> int:
        """Returns the number of predictions per cell that the loss needs beside embeddings."""
        return 0

    def check_head(self, head: EmbeddingHead) -> None:
        """Raises a ValueError if the head does not predict what the loss needs."""
        name = type(self).__name__
        if head.normalize:
            raise ValueError(
                f"embedding_head.normalize is True; allowed with embedding_loss {name}: False"
            )
        needed = self.extra_dim(head.num_classes)
        if head.extra_dim != needed:
            raise ValueError(
                f"embedding_head.extra_dim is {head.extra_dim}; allowed with embedding_loss "
                f"{name}: {needed}"
            )

    def _check_dim(self, head: EmbeddingHead, dim: int) -> None:
        """Raises a ValueError if the head does not predict ``dim`` offsets, or predicts votes."""
        for name, value, allowed in (
            ("embedding_dim", head.embedding_dim, dim),
            ("vote_unit", head.vote_unit, None),
        ):
            if value != allowed:
                raise ValueError(
                    f"embedding_head.{name} is {value}; allowed with embedding_loss "
                    f"{type(self).__name__}: {allowed}"
                )

    def forward(
        self,
        maps: EmbeddingMaps,
        labels: List[PixelLabels],
        shift: Optional[MeanShiftLayer] = None,
    ) -> Dict[str, torch.Tensor]:
        """Computes the losses of a batch.

        Args:
            maps: predictions for a padded batch.
            labels: labels of each image in the padded size.
            shift: not used; there are no loops.

        Returns:
            Weighted scalars "loss_sem_seg" and "loss_TERM" for each term.
        """
        cross_entropy = class_map_loss(maps, labels, self.sem_seg_stride)
        losses = {"loss_sem_seg": self.sem_seg_weight * cross_entropy}
        parts = [maps.embeddings] if maps.extra is None else [maps.embeddings, maps.extra]
        nothing = zero_loss(*parts)
        images = []
        if self.embedding_weight:
            images = [self._image_terms(maps, index, label) for index, label in enumerate(labels)]
        for name, weight in self.term_weights.items():
            total = sum((terms[name] for terms in images), nothing) / max(len(images), 1)
            losses[f"loss_{name}"] = self.embedding_weight * weight * total
        return losses

    @abstractmethod
    def _image_terms(
        self, maps: EmbeddingMaps, index: int, labels: PixelLabels
    ) -> Dict[str, torch.Tensor]:
        """Returns the terms of one image by name, without weights.

        Args:
            maps: predictions for the batch.
            index: the image.
            labels: its labels.
        """


class SampledLoss(MethodLoss):
    """Base class of losses on pixels that are sampled from the full-resolution labels.

    As in :class:`rpe_d2.modeling.EmbeddingLoss`, maps are read at these pixels by bilinear
    interpolation, so that labels are exact at any output stride.
    """

    @configurable
    def __init__(self, *, num_points: int = 1024, sampling: str = "instances", **weights):
        """
        Args:
            num_points: number of pixels that are sampled per image.
            sampling: how they are sampled, see :class:`rpe_d2.modeling.EmbeddingLoss`.
            weights: arguments of :class:`MethodLoss`.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(**weights)
        check_range("num_points", num_points, 1)
        check_choice("sampling", sampling, list(SAMPLERS))
        self.num_points = num_points
        self.sampler = SAMPLERS[sampling]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict:
        rpe = cfg.MODEL.RPE
        return {
            **super().from_config(cfg),
            "num_points": rpe.TRAIN_POINTS,
            "sampling": rpe.SAMPLING,
        }

    def _sample(self, groups: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Samples pixels of one image.

        Args:
            groups: (H, W) int64 group of each pixel. Those with negative groups are not sampled.

        Returns:
            Positions (P, 2) in continuous pixel coordinates and groups (P,) of the pixels.
        """
        points = self.sampler(groups, self.num_points)
        width = groups.shape[1]
        pixels = torch.stack([points % width, points // width], dim=-1) + 0.5
        return pixels, groups.flatten()[points]


def read_image(maps: torch.Tensor, index: int, stride: int, pixels: torch.Tensor) -> torch.Tensor:
    """Reads the maps (B, C, h, w) of one image at positions (P, 2). Returns (P, C)."""
    return read_maps(maps[index : index + 1], stride, pixels[None])[0]
