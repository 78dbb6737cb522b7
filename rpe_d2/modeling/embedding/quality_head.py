"""Ranks grouped instances by an estimate of their mask's IoU with the object."""

from typing import Tuple

import torch
from torch import nn
from torch.nn import functional as F

# Width of the hidden layer; enough for a regression on pooled features.
_HIDDEN = 128


class QualityHead(nn.Module):
    """Predicts the IoU of a soft mask from the features under it and from how it was grouped.

    The authors of the embeddings recommend a learned ranker and released none; this is Mask Scoring R-CNN's idea
    (Huang et al., CVPR 2019) on groups of pixels. Features are detached: ranking does not disturb grouping.
    """

    def __init__(self, feature_dim: int):
        """
        Args:
            feature_dim: C, channels of the embedding head's features.
        """
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * feature_dim + 5, _HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(_HIDDEN, 1),
        )

    def forward(
        self, features: torch.Tensor, soft_masks: torch.Tensor, agreement: torch.Tensor, stride: int
    ) -> torch.Tensor:
        """
        Args:
            features: (C, h, w) of one image.
            soft_masks: (R, h, w) in 0-1.
            agreement: (R,) in 0-1, see :class:`rpe_d2.modeling.embedding.grouping.PixelGroups`.
            stride: pixels per cell.

        Returns:
            (R,) float32 logits of the IoU.
        """
        features = features.detach().float()
        weights = soft_masks.flatten(1)  # (R, h * w)
        mass = weights.sum(dim=1).clamp(min=1e-6)
        # The ring around a mask tells whether it stops where the object does.
        grown = F.max_pool2d(soft_masks.unsqueeze(1), (5, 1), stride=1, padding=(2, 0))
        grown = F.max_pool2d(grown, (1, 5), stride=1, padding=(0, 2)).squeeze(1)
        ring = (grown - soft_masks).flatten(1)
        pooled = [
            weight @ features.flatten(1).T / weight.sum(dim=1, keepdim=True).clamp(min=1e-6)
            for weight in (weights, ring)
        ]
        sure = (weights > 0.5).sum(dim=1)
        shape = [
            (mass * stride**2).log()
            / 5,  # about 0-2 for objects from a few to a hundred thousand pixels
            (weights.square().sum(dim=1) / mass),  # 1: every pixel is sure
            sure / mass,
            ring.sum(dim=1) / mass.sqrt() / 10,  # 10 x sqrt(area) is a usual perimeter here
            agreement,
        ]
        return self.layers(torch.cat([*pooled, torch.stack(shape, dim=1)], dim=1)).squeeze(1)


def quality_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of (R,) logits with IoUs in 0-1, mean over the groups of one image; 0 without any."""
    error = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return error / max(len(targets), 1)


def best_match(
    soft_masks: torch.Tensor, instance_map: torch.Tensor, mask_threshold: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    """IoU of each thresholded mask with the best instance of a label map, and which instance that is.

    Args:
        soft_masks: (R, h, w) in 0-1.
        instance_map: (h, w) int64, rows 0..n-1; -1 background; below that: ignored.
        mask_threshold: where the masks are cut.

    Returns:
        (R,) float32 in 0-1, 0 without instances, and (R,) int64.
    """
    masks = (soft_masks >= mask_threshold).flatten(1).float()  # (R, P)
    labels = instance_map.flatten()
    masks = masks * (labels >= -1)
    num_instances = int(labels.max()) + 1 if labels.numel() else 0
    if num_instances <= 0 or len(masks) == 0:
        return masks.new_zeros(len(masks)), labels.new_zeros(len(masks))
    # Everything that is no instance goes to one more column.
    column = torch.where(labels >= 0, labels, num_instances)
    overlap = masks.new_zeros(len(masks), num_instances + 1).index_add_(1, column, masks)[:, :-1]
    areas = torch.bincount(column, minlength=num_instances + 1)[:-1]
    union = masks.sum(dim=1, keepdim=True) + areas - overlap
    return (overlap / union.clamp(min=1)).max(dim=1)


def best_iou(
    soft_masks: torch.Tensor, instance_map: torch.Tensor, mask_threshold: float
) -> torch.Tensor:
    """The IoUs of :func:`best_match`."""
    return best_match(soft_masks, instance_map, mask_threshold)[0]
