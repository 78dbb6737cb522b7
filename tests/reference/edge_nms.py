"""Edge non-maximum suppression pixel by pixel."""

import numpy as np


def edge_nms(boundaries, smoothing, radius, border, tolerance):
    """Computes :func:`rpe_d2.ops.edge_nms.edge_nms` of (H, W) float64."""
    height, width = boundaries.shape
    across = _directions(_smooth(boundaries, smoothing))
    result = np.zeros_like(boundaries)
    rows, columns = min(border, height // 2), min(border, width // 2)
    for y in range(height):
        for x in range(width):
            step = across[y, x]
            beside = [
                _interpolate(boundaries, y + d * step[1], x + d * step[0])
                for d in range(-radius, radius + 1)
                if d
            ]
            if all(tolerance * boundaries[y, x] >= value for value in beside):
                weight = 1.0
                for place, side, size in ((y, height, rows), (x, width, columns)):
                    if size:
                        weight *= min(1, min(place, side - 1 - place) / size)
                result[y, x] = weight * boundaries[y, x]
    return result


def _smooth(boundaries, radius):
    height, width = boundaries.shape
    padded = np.pad(boundaries, radius, mode="edge")
    total = np.zeros_like(boundaries)
    for dy in range(2 * radius + 1):
        for dx in range(2 * radius + 1):
            weight = (radius + 1 - abs(dy - radius)) * (radius + 1 - abs(dx - radius))
            total += weight * padded[dy : dy + height, dx : dx + width]
    return total / (radius + 1) ** 4


def _directions(maps):
    """Returns (H, W, 2) x, y of the eigenvector whose eigenvalue has the largest magnitude."""
    dy, dx = np.gradient(maps)
    dxy, dxx = np.gradient(dx)
    dyy = np.gradient(dy, axis=0)
    result = np.zeros((*maps.shape, 2))
    for y, x in np.ndindex(maps.shape):
        values, vectors = np.linalg.eigh([[dxx[y, x], dxy[y, x]], [dxy[y, x], dyy[y, x]]])
        result[y, x] = vectors[:, np.argmax(np.abs(values))]
    return result


def _interpolate(maps, y, x):
    height, width = maps.shape
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), height - 2), min(int(x), width - 2)
    v, u = y - top, x - left
    return (
        (1 - v) * (1 - u) * maps[top, left]
        + (1 - v) * u * maps[top, left + 1]
        + v * (1 - u) * maps[top + 1, left]
        + v * u * maps[top + 1, left + 1]
    )
