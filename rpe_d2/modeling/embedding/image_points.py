"""The cells of one image as points that mean shift moves."""

from typing import Iterator, NamedTuple

import torch

from .head import ImageMaps
from .mean_shift_layer import MeanShiftLayer


class ImagePoints(NamedTuple):
    """P cells of one image as points that mean shift moves.

    Attributes:
        cells: (P,) int64 indices into the flattened grid.
        weight: (P,) foreground probability.
        grouped: (P,) bool, whether the foreground probability reaches the threshold.
        x, votes, sizes: (P, D), (P, 2) and (P,) predictions at the cells.
        keys: (M,) int64 indices of the points that define the density.
    """

    cells: torch.Tensor
    weight: torch.Tensor
    grouped: torch.Tensor
    x: torch.Tensor
    votes: torch.Tensor
    sizes: torch.Tensor
    keys: torch.Tensor

    def split(self, at_once: int) -> Iterator["ImagePoints"]:
        """Yields ``at_once`` points at a time, with the keys of all points."""
        for parts in zip(*(values.split(at_once) for values in self[:-1])):
            yield ImagePoints(*parts, self.keys)


def image_points(
    maps: ImageMaps,
    foreground: torch.Tensor,
    shift: MeanShiftLayer,
    *,
    foreground_threshold: float,
    min_foreground: float,
) -> ImagePoints:
    """Selects the cells of an image that mean shift moves, and the keys among them.

    Args:
        maps: predictions for the image.
        foreground: (h, w) foreground probability, 0 in padding.
        shift: layer that chooses the keys.
        foreground_threshold: foreground probability at or above which a cell can be a key.
        min_foreground: cells with a foreground probability of at most this are left out.
    """
    cells = torch.nonzero(foreground.flatten() > min_foreground).squeeze(1)
    weight = foreground.flatten()[cells]
    grouped = weight >= foreground_threshold
    x = maps.embeddings.flatten(1)[:, cells].T
    votes = maps.votes.flatten(1)[:, cells].T
    sizes = maps.sizes.flatten()[cells]
    keys = shift.choose_keys(x, votes, sizes, grouped)
    return ImagePoints(cells, weight, grouped, x, votes, sizes, keys)
