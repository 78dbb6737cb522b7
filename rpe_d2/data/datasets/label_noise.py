"""Careless annotation: semantic maps with holes and ragged borders."""

import cv2
import numpy as np

__all__ = ["corrupt_labels"]

_CELL = 4  # pixels between independent displacements of a border
_RAGGED = 2.5  # their standard deviation in pixels
_HOLE_SHARE = 0.12  # of the foreground; holes overlap, a tenth is covered
_HOLE_RADIUS = (1.5, 5.0)  # pixels


def corrupt_labels(
    labels: np.ndarray, rng: np.random.Generator, scale: float = 1.0, background: int = 0
) -> np.ndarray:
    """A semantic map as a careless annotator would draw it.

    Borders are ragged: every pixel takes the label of a place displaced by smooth noise, about 2.5 pixels away. Then
    round holes of background, of radius 1.5 to 5 pixels, are cut into about a tenth of the foreground.

    Args:
        labels: (H, W) uint8; unchanged.
        rng: what it depends on.
        scale: of all lengths.
        background: the label of holes.

    Returns:
        (H, W) uint8.
    """
    height, width = labels.shape
    cells = [max(2, round(side / (_CELL * scale))) for side in (height, width)]
    shift = rng.standard_normal((*cells, 2)).astype(np.float32) * _RAGGED * scale
    shift = cv2.resize(shift, (width, height), interpolation=cv2.INTER_LINEAR)
    y, x = np.mgrid[0:height, 0:width]
    rows = np.clip(np.rint(y + shift[:, :, 0]), 0, height - 1).astype(int)
    columns = np.clip(np.rint(x + shift[:, :, 1]), 0, width - 1).astype(int)
    found = labels[rows, columns]

    foreground = np.argwhere(labels != background)  # row, column
    mean_area = np.pi * np.mean(np.square(_HOLE_RADIUS)) * scale**2
    count = round(_HOLE_SHARE * len(foreground) / mean_area)
    for place in rng.integers(0, max(1, len(foreground)), count):
        row, column = foreground[place].tolist()
        radius = scale * rng.uniform(*_HOLE_RADIUS)
        found[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = background
    return found
