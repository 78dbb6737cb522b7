"""Oracles: what the same network would predict if one step from its maps to instances were perfect.

They show how much accuracy that step costs.
"""

from typing import Tuple

import torch

from .head import ImageMaps
from .labels import BACKGROUND, PixelLabels
from .pixel_groups import PixelGroups, SoftMasks

# A logit that decides the class by itself.
_CERTAIN = 50.0


class LabelMasks(SoftMasks):
    """Soft masks of labeled cells."""

    def __init__(self, labels: torch.Tensor, numbers: torch.Tensor, weights: torch.Tensor):
        """
        Args:
            labels: (h, w) int64.
            numbers: (R,) the label of each mask.
            weights: (h, w) float32 in 0-1, the values of the masks.
        """
        self._labels, self._numbers, self._weights = labels, numbers, weights
        self.size = labels.shape

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        return (self._labels == self._numbers[index].view(-1, 1, 1)) * self._weights


def true_groups(maps: ImageMaps, labels: PixelLabels) -> Tuple[PixelGroups, torch.Tensor]:
    """Groups the cells by their true instances, with the predicted foreground and classes.

    Args:
        maps: predictions for the image.
        labels: ground truth of the image, including the padding of its batch.

    Returns:
        R groups, one for each instance that has a cell, and these instances (R,) int64.
    """
    cells = labels.at_cells(maps.stride)
    probability = maps.logits.softmax(dim=0)
    numbers = torch.unique(cells[cells >= 0])
    masks = LabelMasks(cells, numbers, (1 - probability[-1]) * maps.valid)
    return PixelGroups(masks, probability.new_ones(len(numbers)), probability), numbers


def with_true_foreground(maps: ImageMaps, labels: PixelLabels) -> ImageMaps:
    """Replaces the background logits of an image by the ground truth.

    Ratios of the probabilities of the other classes do not change. Ignored cells are not changed.

    Args:
        maps: predictions for the image.
        labels: ground truth of the image, including the padding of its batch.
    """
    cells = labels.at_cells(maps.stride)
    largest, smallest = maps.logits[:-1].amax(dim=0), maps.logits[:-1].amin(dim=0)
    background = torch.where(cells == BACKGROUND, largest + _CERTAIN, maps.logits[-1])
    background = torch.where(cells >= 0, smallest - _CERTAIN, background)
    return maps._replace(logits=torch.cat([maps.logits[:-1], background[None]]))
