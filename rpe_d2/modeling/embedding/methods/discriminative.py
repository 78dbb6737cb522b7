"""The discriminative loss of De Brabandere, Neven & Van Gool (arXiv 1708.02551)."""

from typing import Dict

import torch
from detectron2.config import CfgNode, configurable

from rpe_d2.ops.ball_clustering import cluster_by_threshold, nearest_center
from rpe_d2.ops.discriminative_loss import discriminative_loss

from ...argument_checks import check_positive, check_range
from ..grouping import PixelGrouping
from ..head import EmbeddingMaps, ImageMaps
from ..labels import PixelLabels
from .label_grouping import LabelGrouping, LabelMethod
from .method_loss import SampledLoss, read_image

# Clusters that are tried for each group that can be kept: the first ones may be tiny.
_TRIALS = 4


class DiscriminativeLoss(SampledLoss):
    """Loss of variance within instances and of distance between them, see the operator.

    :func:`rpe_d2.ops.discriminative_loss.discriminative_loss` computes it. The background takes no
    part, as in the paper, where semantic segmentation finds it.
    """

    term_weights = {"variance": 1.0, "distance": 1.0, "regularization": 0.001}

    @configurable
    def __init__(self, *, delta_v: float = 0.5, delta_d: float = 1.5, **options):
        """
        Args:
            delta_v: distance from the mean within which pixels are not pulled.
            delta_d: half of the distance of two means beyond which they do not repel.
            options: arguments of :class:`SampledLoss`.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(**options)
        check_range("delta_v", delta_v, 0)
        check_range("delta_d", delta_d, 0)
        self.delta_v = delta_v
        self.delta_d = delta_d

    def default_grouping(self) -> PixelGrouping:
        return DiscriminativeGrouping(bandwidth=2 * self.delta_v)

    def _image_terms(
        self, maps: EmbeddingMaps, index: int, labels: PixelLabels
    ) -> Dict[str, torch.Tensor]:
        pixels, instances = self._sample(labels.instances)
        x = read_image(maps.embeddings, index, maps.stride, pixels)
        return discriminative_loss(x, instances, self.delta_v, self.delta_d)._asdict()


class DiscriminativeGrouping(LabelGrouping):
    """Grouping by thresholds around the modes of the embeddings (section 3 of the paper).

    Where the loss is zero and delta_d exceeds 2 delta_v, all pixels of an instance are within 2
    delta_v of each other, and no others are.
    """

    def __init__(self, *, bandwidth: float = 1.0, **options):
        """
        Args:
            bandwidth: radius of a cluster, 2 delta_v in the paper.
            options: arguments of :class:`LabelGrouping`.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(**options)
        check_positive("bandwidth", bandwidth)
        self.bandwidth = bandwidth

    def _labels(self, maps: ImageMaps, cells: torch.Tensor, grouped: torch.Tensor) -> torch.Tensor:
        x = maps.embeddings.flatten(1)[:, cells].T  # (P, D)
        labels, centers = cluster_by_threshold(
            x[grouped], self.bandwidth, _TRIALS * self.max_groups
        )
        # Pixels at the border of the foreground sharpen the mask, but define no clusters.
        result = nearest_center(x, centers, self.bandwidth)
        result[grouped] = labels
        return result


class DiscriminativeMethod(LabelMethod):
    """Embeddings of any length, clustered in balls."""

    grouping = DiscriminativeGrouping

    def build_loss(self, cfg: CfgNode) -> DiscriminativeLoss:
        return DiscriminativeLoss(cfg)
