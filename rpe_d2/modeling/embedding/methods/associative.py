"""Associative embedding of Newell, Huang & Deng (NIPS 2017)."""

from typing import Dict

import torch
from detectron2.config import CfgNode, configurable

from rpe_d2.ops.associative_loss import associative_loss
from rpe_d2.ops.ball_clustering import histogram_peaks, nearest_center

from ...argument_checks import check_positive
from ..grouping import PixelGrouping
from ..head import EmbeddingMaps, ImageMaps
from ..labels import PixelLabels
from .label_grouping import LabelGrouping, LabelMethod
from .method_loss import SampledLoss, read_image


class AssociativeLoss(SampledLoss):
    """Loss that pulls tags to the mean of their instance and pushes means apart.

    :func:`rpe_d2.ops.associative_loss.associative_loss` computes it. The background takes no part,
    as in the paper, where a detection map finds it.
    """

    term_weights = {"pull": 1.0, "push": 1.0}

    @configurable
    def __init__(self, *, sigma: float = 1.0, **options):
        """
        Args:
            sigma: distance of means at which their repulsion has fallen to exp(-1/2).
            options: arguments of :class:`SampledLoss`.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(**options)
        check_positive("sigma", sigma)
        self.sigma = sigma

    def default_grouping(self) -> PixelGrouping:
        return AssociativeGrouping(min_distance=self.sigma)

    def _image_terms(
        self, maps: EmbeddingMaps, index: int, labels: PixelLabels
    ) -> Dict[str, torch.Tensor]:
        pixels, instances = self._sample(labels.instances)
        tags = read_image(maps.embeddings, index, maps.stride, pixels)
        return associative_loss(tags, instances, self.sigma)._asdict()


class AssociativeGrouping(LabelGrouping):
    """Grouping by the peaks of the histogram of tags (section 3.4 of the paper).

    Every foreground pixel joins the peak that is nearest to its tag. The paper does not give the
    width of the bins or the distance of peaks; they are ours.
    """

    def __init__(self, *, bin_width: float = 0.25, min_distance: float = 1.0, **options):
        """
        Args:
            bin_width: side of the bins of the histogram.
            min_distance: distance of two peaks, at which the loss pushes instances apart most.
            options: arguments of :class:`LabelGrouping`.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(**options)
        check_positive("bin_width", bin_width)
        check_positive("min_distance", min_distance)
        self.bin_width = bin_width
        self.min_distance = min_distance

    def _labels(self, maps: ImageMaps, cells: torch.Tensor, grouped: torch.Tensor) -> torch.Tensor:
        x = maps.embeddings.flatten(1)[:, cells].T  # (P, D)
        peaks = histogram_peaks(x[grouped], self.bin_width, self.min_distance, self.max_groups)
        return nearest_center(x, peaks)


class AssociativeMethod(LabelMethod):
    """Tags of ``MODEL.RPE.EMBEDDING_DIM`` dimensions, 1 in the paper."""

    grouping = AssociativeGrouping

    def build_loss(self, cfg: CfgNode) -> AssociativeLoss:
        return AssociativeLoss(cfg)
