"""Classification of groups of pixels from the features under their soft masks."""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from ..argument_checks import check_choice, check_range
from ..layers import at_least_float32
from .group_features import group_feature_dim, group_features
from .head import ImageMaps
from .labels import PixelLabels
from .oracles import true_groups
from .pixel_groups import PixelGroups

GROUP_CLASSES = ("vote", "head", "product")
POOLINGS = ("mean", "attention", "grid")
_HIDDEN = 128
# Cells of the grid on which the mask of a group and the features in its box are seen, per side.
_GRID = 8
_GRID_CHANNELS = 32
# Scores this far below the largest one have the same weight, which float32 still resolves.
_LOWEST_SCORE = -20.0
# IoU with an instance from which on a group has its class. Other groups are background.
_MIN_IOU = 0.5


class GroupHead(nn.Module):
    """Predicts the class of each group of pixels, or background where a group is no object.

    The class scores of pixels do not know the group. This head sees the features under the whole
    soft mask, as the heads of region-based detectors do. It does not backpropagate into the
    features, so that classification does not disturb grouping.
    """

    def __init__(self, feature_dim: int, num_classes: int, pooling: str = "grid"):
        """
        Args:
            feature_dim: C, the number of channels of the embedding head's features.
            num_classes: K, without background.
            pooling: "mean" pools the features under and around a mask and adds its shape.
                "attention" also pools them once for each class, with weights that a learned query
                of the class gives to the pixels of the mask. "grid" also sees the mask, and the
                features under it, on a grid of 8 x 8 cells over the box of the mask: the mean does
                not know its shape.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__()
        check_range("feature_dim", feature_dim, 1)
        check_range("num_classes", num_classes, 1)
        check_choice("pooling", pooling, POOLINGS)
        self.num_classes = num_classes
        self.queries = self.class_weights = None
        if pooling == "attention":
            self.queries = nn.Linear(feature_dim, num_classes + 1, bias=False)
            self.class_weights = nn.Parameter(torch.zeros(num_classes + 1, feature_dim))
            nn.init.normal_(self.class_weights, std=feature_dim**-0.5)
        self.grid = _GridLayers(feature_dim, num_classes) if pooling == "grid" else None
        self.layers = nn.Sequential(
            nn.Linear(group_feature_dim(feature_dim), _HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(_HIDDEN, num_classes + 1),
        )

    def forward(self, maps: ImageMaps, groups: PixelGroups) -> torch.Tensor:
        """Predicts the classes of groups.

        Args:
            maps: predictions for one image; only the features are used.
            groups: R groups of its pixels.

        Returns:
            (R, K + 1) float32 logits, background last.
        """
        feature_map = at_least_float32(maps.features.detach())
        features = feature_map.flatten(1).T  # (h * w, C)
        logits = [features.new_zeros(0, self.num_classes + 1)]
        for index, soft_masks in groups.chunks():
            inputs = group_features(features, soft_masks, groups.agreement[index], maps.stride)
            found = self.layers(inputs) + self._attended(features, soft_masks.flatten(1))
            logits.append(
                found if self.grid is None else found + self.grid(feature_map, soft_masks)
            )
        return torch.cat(logits)

    def _attended(self, features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Returns the logits (n, K + 1) of features that each class has pooled by its attention."""
        if self.queries is None:
            return features.new_zeros(())
        scores = self.queries(features) * features.shape[1] ** -0.5  # (P, K + 1)
        # Masks may lie where all scores are far below the largest one of the image.
        attention = (scores - scores.amax(dim=0)).clamp(min=_LOWEST_SCORE).exp()
        values = attention * (features @ self.class_weights.T)
        return weights @ values / (weights @ attention).clamp(min=1e-12)


class _GridLayers(nn.Module):
    """Classifies groups by their masks and the features under them, on a grid over their boxes."""

    def __init__(self, feature_dim: int, num_classes: int):
        super().__init__()
        self.reduce = nn.Conv2d(feature_dim, _GRID_CHANNELS, 1)
        self.layers = nn.Sequential(
            nn.Conv2d(_GRID_CHANNELS + 1, _GRID_CHANNELS, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(_GRID_CHANNELS * _GRID**2, _HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(_HIDDEN, num_classes + 1),
        )

    def forward(self, features: torch.Tensor, soft_masks: torch.Tensor) -> torch.Tensor:
        """
        Args:
            features: (C, h, w).
            soft_masks: (n, h, w) float32 in 0-1.

        Returns:
            (n, K + 1) logits.
        """
        boxes = _boxes(soft_masks)
        # All groups see the same map of features, and each its own mask.
        owner = torch.arange(len(boxes), device=boxes.device)[:, None]
        shared = roi_align(
            self.reduce(features[None]), [boxes], _GRID, sampling_ratio=2, aligned=True
        )
        own = torch.cat([owner.to(boxes), boxes], dim=1)
        masks = roi_align(soft_masks[:, None], own, _GRID, sampling_ratio=2, aligned=True)
        return self.layers(torch.cat([F.relu(shared) * masks, masks], dim=1))


def _boxes(soft_masks: torch.Tensor) -> torch.Tensor:
    """Returns the boxes (n, 4) float32 in cells of where masks exceed half of their maximum.

    The box of a mask without a cell is the whole map.
    """
    height, width = soft_masks.shape[1:]
    inside = soft_masks > 0.5 * soft_masks.amax(dim=(1, 2), keepdim=True)
    rows, columns = inside.any(dim=2).int(), inside.any(dim=1).int()
    starts = [part.argmax(dim=1) for part in (columns, rows)]
    stops = [side - part.flip(1).argmax(dim=1) for part, side in ((columns, width), (rows, height))]
    return torch.stack([*starts, *stops], dim=1).to(soft_masks.dtype)


def true_group_loss(head: GroupHead, maps: ImageMaps, labels: PixelLabels) -> torch.Tensor:
    """Computes the loss of a head on the true groups of an image.

    They need no grouping, and they show the head whole objects from the first step on.

    Args:
        head: the head.
        maps: predictions for the image.
        labels: ground truth of the image.

    Returns:
        A 0-d tensor, 0 for an image without objects.
    """
    with torch.no_grad():
        groups, instance = true_groups(maps, labels)
    logits = head(maps, groups)
    return group_class_loss(logits, logits.new_ones(len(instance)), instance, labels.classes)


def group_class_loss(
    logits: torch.Tensor, iou: torch.Tensor, instance: torch.Tensor, classes: torch.Tensor
) -> torch.Tensor:
    """Computes the mean cross-entropy of the classes of groups.

    Args:
        logits: (R, K + 1), background last.
        iou, instance: (R,) the IoU of each group with the instance that it overlaps most, and that
            instance, see :func:`rpe_d2.modeling.embedding.quality_head.best_match`.
        classes: (n,) int64 class of each instance.

    Returns:
        A 0-d tensor, 0 for R = 0.
    """
    target = torch.full_like(instance, logits.shape[1] - 1)
    good = iou >= _MIN_IOU
    target[good] = classes[instance[good]]
    return F.cross_entropy(logits, target, reduction="sum") / max(len(target), 1)
