"""Simulation of careless annotation of semantic label maps."""

import cv2
import numpy as np

__all__ = ["corrupt_labels"]

_CELL = 4  # distance in pixels between independent displacements of a boundary
_DISPLACEMENT = 2.5  # standard deviation of the displacements in pixels
_HOLE_FRACTION = 0.12  # total area of the holes / foreground; holes overlap and cover about 0.1
_HOLE_RADIUS = (1.5, 5.0)  # pixels


def corrupt_labels(
    labels: np.ndarray, rng: np.random.Generator, scale: float = 1.0, background: int = 0
) -> np.ndarray:
    """Corrupts a semantic label map as if a careless annotator had drawn it.

    Boundaries become ragged: every pixel takes the label of a pixel displaced by smooth noise with
    a standard deviation of 2.5 pixels. Then round holes of background with a radius of 1.5 to 5
    pixels are cut into about a tenth of the foreground.

    Args:
        labels: (H, W) uint8, not changed.
        rng: generator of the noise.
        scale: factor of all lengths.
        background: label of the holes.

    Returns:
        (H, W) uint8.
    """
    height, width = labels.shape
    cells = [max(2, round(side / (_CELL * scale))) for side in (height, width)]
    shift = rng.standard_normal((*cells, 2)).astype(np.float32) * _DISPLACEMENT * scale
    shift = cv2.resize(shift, (width, height), interpolation=cv2.INTER_LINEAR)
    y, x = np.mgrid[0:height, 0:width]
    rows = np.clip(np.rint(y + shift[:, :, 0]), 0, height - 1).astype(int)
    columns = np.clip(np.rint(x + shift[:, :, 1]), 0, width - 1).astype(int)
    noisy = labels[rows, columns]

    foreground = np.argwhere(labels != background)  # row, column
    mean_area = np.pi * np.mean(np.square(_HOLE_RADIUS)) * scale**2
    count = round(_HOLE_FRACTION * len(foreground) / mean_area)
    for index in rng.integers(0, max(1, len(foreground)), count):
        row, column = foreground[index].tolist()
        radius = scale * rng.uniform(*_HOLE_RADIUS)
        noisy[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = background
    return noisy
