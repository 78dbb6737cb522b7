"""Reference for position-sensitive regions, computed one value at a time."""

import numpy as np


def position_sensitive_regions(features, boxes, parts, cells, scale) -> np.ndarray:
    """Reads the values at the centers of the cells by bilinear interpolation.

    Args:
        features: (N, C k k, H, W).
        boxes: (R, 5) image index, x0, y0, x1, y1.
        parts: k.
        cells: cells of a part in each direction.
        scale: cells of the maps per pixel.

    Returns:
        (R, C, k cells, k cells).
    """
    channels = features.shape[1] // parts**2
    side = parts * cells
    regions = np.zeros((len(boxes), channels, side, side))
    for r, (image, x0, y0, x1, y1) in enumerate(boxes):
        for c in range(channels):
            for row in range(side):
                for column in range(side):
                    channel = c * parts**2 + (row // cells) * parts + column // cells
                    x = (x0 + (column + 0.5) / side * (x1 - x0)) * scale - 0.5
                    y = (y0 + (row + 0.5) / side * (y1 - y0)) * scale - 0.5
                    regions[r, c, row, column] = bilinear(features[int(image), channel], x, y)
    return regions


def bilinear(values, x, y) -> float:
    """Interpolates a map (H, W) at a position, which is clamped to the map."""
    height, width = values.shape
    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    u, v = x - left, y - top
    upper = values[top, left] * (1 - u) + values[top, right] * u
    lower = values[bottom, left] * (1 - u) + values[bottom, right] * u
    return upper * (1 - v) + lower * v
