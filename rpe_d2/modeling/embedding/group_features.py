"""Features of groups of pixels, from which heads predict their class and the IoU of their mask."""

import torch
from torch.nn import functional as F


def group_feature_dim(feature_dim: int) -> int:
    """Returns the number of features of a group from maps with ``feature_dim`` channels."""
    return 2 * feature_dim + 5


def group_features(
    features: torch.Tensor, soft_masks: torch.Tensor, agreement: torch.Tensor, stride: int
) -> torch.Tensor:
    """Describes soft masks by the features under and around them, and by their shape.

    Args:
        features: (h * w, C) features of the cells.
        soft_masks: (n, h, w) float32 in 0-1.
        agreement: (n,) float32 in 0-1, the mean membership of the groups' pixels.
        stride: pixels per cell.

    Returns:
        (n, 2 C + 5) features.
    """
    weights = soft_masks.flatten(1)  # (n, h * w)
    mass = weights.sum(dim=1).clamp(min=1e-6)
    # The features of the ring around a mask tell whether the mask ends where the object does.
    grown = F.max_pool2d(soft_masks.unsqueeze(1), (5, 1), stride=1, padding=(2, 0))
    grown = F.max_pool2d(grown, (1, 5), stride=1, padding=(0, 2)).squeeze(1)
    ring = (grown - soft_masks).flatten(1)
    pooled = [
        weight @ features / weight.sum(dim=1, keepdim=True).clamp(min=1e-6)
        for weight in (weights, ring)
    ]
    sure = (weights > 0.5).count_nonzero(dim=1)
    shape = [
        # 0 to 2 for objects of a few to a hundred thousand pixels.
        (mass * stride**2).log() / 5,
        # 1 for masks of values 0 and 1.
        (weights.square().sum(dim=1) / mass),
        sure / mass,
        # Perimeters are usually about 10 x sqrt(area) on this scale.
        ring.sum(dim=1) / mass.sqrt() / 10,
        agreement,
    ]
    return torch.cat([*pooled, torch.stack(shape, dim=1)], dim=1)
