"""Estimation of the IoU between soft masks and objects, by which instances are ranked."""

from typing import Tuple

import torch
from torch import nn
from torch.nn import functional as F

from ..argument_checks import check_range
from ..layers import at_least_float32
from .group_features import group_feature_dim, group_features
from .head import ImageMaps
from .pixel_groups import PixelGroups

# Width of the hidden layers, which is enough for a regression on pooled features.
_HIDDEN = 128


class QualityHead(nn.Module):
    """Predicts the IoU of soft masks from the features under them and from their grouping.

    Kong & Fowlkes recommend a learned ranker but did not release one. This head applies the idea of
    Mask Scoring R-CNN (Huang et al., CVPR 2019) to groups of pixels. It does not backpropagate into
    the features, so that ranking does not disturb grouping.
    """

    def __init__(self, feature_dim: int):
        """
        Args:
            feature_dim: C, the number of channels of the embedding head's features.
        """
        super().__init__()
        check_range("feature_dim", feature_dim, 1)
        self.layers = nn.Sequential(
            nn.Linear(group_feature_dim(feature_dim), _HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(_HIDDEN, 1),
        )

    def forward(self, maps: ImageMaps, groups: PixelGroups) -> torch.Tensor:
        """Predicts the IoU of each soft mask.

        Args:
            maps: predictions for one image; only the features are used.
            groups: R groups of its pixels.

        Returns:
            (R,) float32 logits of the IoU.
        """
        features = at_least_float32(maps.features.detach()).flatten(1).T  # (h * w, C)
        logits = [groups.agreement.new_zeros(0)]
        for index, soft_masks in groups.chunks():
            inputs = group_features(features, soft_masks, groups.agreement[index], maps.stride)
            logits.append(self.layers(inputs).squeeze(1))
        return torch.cat(logits)


def quality_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the mean binary cross-entropy of logits (R,) and IoUs (R,) in 0-1, 0 for R = 0."""
    error = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return error / max(len(targets), 1)


def best_match(
    soft_masks: torch.Tensor, instance_map: torch.Tensor, mask_threshold: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Matches each thresholded mask with the instance that it overlaps most.

    Args:
        soft_masks: (R, h, w) in 0-1.
        instance_map: (h, w) int64 instances 0 to n - 1, -1 for background and lower values for
            pixels that are ignored.
        mask_threshold: value at or above which a cell belongs to a mask.

    Returns:
        IoUs (R,) float32 in 0-1, 0 where there are no instances, and the instances (R,) int64.
    """
    masks = (soft_masks >= mask_threshold).flatten(1).float()  # (R, P)
    labels = instance_map.flatten()
    masks = masks * (labels >= -1)
    num_instances = int(labels.max()) + 1 if labels.numel() else 0
    if num_instances <= 0 or len(masks) == 0:
        return masks.new_zeros(len(masks)), labels.new_zeros(len(masks))
    # Background and ignored cells are counted in one more column.
    column = torch.where(labels >= 0, labels, num_instances)
    overlap = masks.new_zeros(len(masks), num_instances + 1).index_add_(1, column, masks)[:, :-1]
    areas = torch.bincount(column, minlength=num_instances + 1)[:-1]
    union = masks.sum(dim=1, keepdim=True) + areas - overlap
    return (overlap / union.clamp(min=1)).max(dim=1)
