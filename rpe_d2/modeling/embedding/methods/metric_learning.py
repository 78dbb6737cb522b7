"""Deep metric learning with seeds of Fathi et al. (arXiv 1703.10277)."""

import math
from typing import Dict, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch.nn import functional as F

from rpe_d2.ops.metric_learning_loss import metric_learning_loss, seed_mask_ious, squared_radius
from rpe_d2.ops.point_groups import distances
from rpe_d2.ops.seeds import diverse_seeds

from ...argument_checks import check_range
from ..grouping import PixelGrouping
from ..head import EmbeddingHead, EmbeddingMaps, ImageMaps
from ..labels import BACKGROUND, PixelLabels
from ..pixel_groups import SoftMasks
from .method import EmbeddingMethod
from .method_loss import SampledLoss, read_image

# Similarities at which the masks of the paper end.
THRESHOLDS = (0.25, 0.5, 0.75, 0.9)
# IoU with the instance of a seed from which on its mask has the class of the instance.
_MIN_IOU = 0.5
# Pixels of an image whose masks train the seediness. The paper takes 10 for each instance.
_MOST_SEEDS = 128
# Steepness of soft masks: a pixel of half the odds that the threshold asks for is at 0.06.
_STEEPNESS = 4.0


class MetricLearningLoss(SampledLoss):
    """Cross-entropies of pairs of pixels, and of the classes of masks that grow from pixels.

    The term "pair" is :func:`rpe_d2.ops.metric_learning_loss.metric_learning_loss`. For "seed", the
    network classifies the masks that grow from a pixel at several thresholds: a mask has the class
    of the pixel's instance if their IoU exceeds 0.5, and is background otherwise (section 3 of
    the paper). The paper raises the weight of the second term to 0.2 in the course of training;
    here it is constant. Background is one more instance of the pairs, because masks grow over all
    pixels.
    """

    term_weights = {"pair": 1.0, "seed": 0.2}
    background_is_group = True

    @configurable
    def __init__(self, *, thresholds: Sequence[float] = THRESHOLDS, **options):
        """
        Args:
            thresholds: T similarities at which masks end.
            options: arguments of :class:`SampledLoss`.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(**options)
        self.thresholds = _checked(thresholds)

    def default_grouping(self) -> PixelGrouping:
        return MetricLearningGrouping(thresholds=self.thresholds)

    def extra_dim(self, num_classes: int) -> int:
        return len(self.thresholds) * (num_classes + 1)

    def _image_terms(
        self, maps: EmbeddingMaps, index: int, labels: PixelLabels
    ) -> Dict[str, torch.Tensor]:
        background = len(labels.classes)
        groups = labels.instances.masked_fill(labels.instances == BACKGROUND, background)
        pixels, groups = self._sample(groups)
        x = read_image(maps.embeddings, index, maps.stride, pixels)
        chosen = torch.randperm(len(pixels), device=pixels.device)[:_MOST_SEEDS]
        instances = groups[chosen].masked_fill(groups[chosen] == background, BACKGROUND)
        logits = read_image(maps.extra, index, maps.stride, pixels[chosen])
        return {
            "pair": metric_learning_loss(x, groups),
            "seed": self._seed_term(maps, index, labels, x[chosen], instances, logits),
        }

    def _seed_term(
        self,
        maps: EmbeddingMaps,
        index: int,
        labels: PixelLabels,
        seeds: torch.Tensor,
        instances: torch.Tensor,
        logits: torch.Tensor,
    ) -> torch.Tensor:
        """Returns the mean cross-entropy of the classes of the masks of some pixels.

        Args:
            seeds: (S, D) embeddings of these pixels.
            instances: (S,) their instances, -1 for background.
            logits: (S, T * (K + 1)) predictions at the pixels.
        """
        iou = seed_mask_ious(
            seeds,
            instances,
            maps.embeddings[index].flatten(1).T,
            labels.at_cells(maps.stride).flatten(),
            self.thresholds,
        )  # (S, T)
        num_outputs = maps.logits.shape[1]
        target = torch.full(iou.shape, num_outputs - 1, device=iou.device)
        if len(labels.classes):
            own = labels.classes[instances.clamp(min=0)]
            target = torch.where(iou > _MIN_IOU, own[:, None], target)
        error = F.cross_entropy(logits.reshape(-1, num_outputs), target.flatten(), reduction="sum")
        return error / max(target.numel(), 1)


class MetricLearningGrouping(PixelGrouping):
    """Grouping by masks that grow from seeds (section 3 of the paper).

    The seediness of a pixel is the largest score of a class at any threshold, and its mask ends at
    that threshold. Seeds are chosen by seediness and diversity. Masks of several seeds can overlap;
    the model then weighs them by their scores, as it does with groups of several scales. The class
    of an instance is the mean over the pixels of its mask, times the seediness. The model drops
    groups for which background scores as much.
    """

    background_is_group = True
    ranks_by_agreement = True
    groups_overlap = True

    def __init__(
        self,
        *,
        thresholds: Sequence[float] = THRESHOLDS,
        diversity: float = 0.3,
        min_score: float = 0.2,
        min_area: float = 16,
        max_groups: int = 500,
    ):
        """
        Args:
            thresholds: T similarities at which masks end, those of the loss.
            diversity: weight alpha of the difference from earlier seeds.
            min_score: smallest score of a seed, see :func:`rpe_d2.ops.seeds.diverse_seeds`.
            min_area: smallest area of a group in pixels of the image.
            max_groups: largest number of seeds.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(min_area=min_area, max_groups=max_groups)
        check_range("diversity", diversity, 0)
        check_range("min_score", min_score, 0, 1)
        self.thresholds = _checked(thresholds)
        self.diversity = diversity
        self.min_score = min_score

    def _soft_masks(
        self, maps: ImageMaps, probability: torch.Tensor, num_instances: Optional[int]
    ) -> Tuple[SoftMasks, torch.Tensor]:
        scores = maps.extra.unflatten(0, (len(self.thresholds), -1))  # (T, K + 1, h, w)
        scores = scores.softmax(dim=1)[:, :-1].amax(dim=1)  # (T, h, w)
        seediness, threshold = scores.max(dim=0)
        seediness = (seediness * maps.valid).flatten()
        x = maps.embeddings.flatten(1).T  # (h * w, D)
        seeds = diverse_seeds(
            x,
            seediness,
            self.max_groups,
            diversity=self.diversity,
            min_score=self.min_score,
        )
        limits = threshold.new_tensor(self.thresholds, dtype=x.dtype)[threshold.flatten()[seeds]]
        masks = SimilarityMasks(x, seeds, limits, maps.valid)
        large = self._areas(masks) * maps.stride**2 >= self.min_area
        masks = SimilarityMasks(x, seeds[large], limits[large], maps.valid)
        return masks, seediness[seeds[large]]

    def _areas(self, masks: "SimilarityMasks") -> torch.Tensor:
        """Returns (R,) the number of cells of each mask."""
        areas = [torch.zeros(0, device=masks.seeds.device)]
        for index in torch.arange(len(masks), device=masks.seeds.device).split(64):
            areas.append((masks[index] >= 0.5).flatten(1).sum(dim=1).float())
        return torch.cat(areas)


class SimilarityMasks(SoftMasks):
    """Masks of the pixels that are similar to a seed, 0.5 where a mask of the paper ends."""

    def __init__(
        self,
        x: torch.Tensor,
        seeds: torch.Tensor,
        thresholds: torch.Tensor,
        valid: torch.Tensor,
    ):
        """
        Args:
            x: (h * w, D) embeddings.
            seeds: (R,) int64 indices of the seeds.
            thresholds: (R,) similarity at which each mask ends.
            valid: (h, w) float32: 1 in cells of the image, 0 in padding.
        """
        self._x, self.seeds, self._thresholds, self._valid = x, seeds, thresholds, valid
        self.size = valid.shape

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        square = distances(self._x[self.seeds[index]], self._x).square()  # (n, h * w)
        # The logit of the similarity 2 / (1 + e^z) is log 2 - log(e^z - 1).
        logit = math.log(2) - square - torch.log(-torch.expm1(-square))
        end = torch.logit(self._thresholds[index])[:, None]
        soft = torch.sigmoid(_STEEPNESS * (logit - end))
        return soft.view(-1, *self.size) * self._valid


class MetricLearningMethod(EmbeddingMethod):
    """Embeddings of any length, and class scores of the masks that grow from each pixel."""

    unused_keys = (
        *EmbeddingMethod.unused_keys,
        "MODEL.RPE.FOREGROUND_THRESHOLD",
        "MODEL.RPE.SPLIT_COMPONENTS",
    )

    def build_head(self, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> EmbeddingHead:
        return EmbeddingHead(
            cfg,
            input_shape,
            vote_unit=None,
            max_size=None,
            normalize=False,
            extra_dim=len(THRESHOLDS) * (cfg.MODEL.RPE.NUM_CLASSES + 1),
        )

    def build_loss(self, cfg: CfgNode) -> MetricLearningLoss:
        return MetricLearningLoss(cfg)

    def _grouping(self, cfg: CfgNode, limits: Dict[str, float]) -> PixelGrouping:
        return MetricLearningGrouping(**limits)


def _checked(thresholds: Sequence[float]) -> Tuple[float, ...]:
    if not thresholds:
        raise ValueError("thresholds is (); allowed: one or more similarities")
    for threshold in thresholds:
        squared_radius(threshold)
    return tuple(thresholds)
