"""Mask boundaries, pixel by pixel."""

import numpy as np


def mask_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """Returns the pixels of a mask (H, W) bool within a Chebyshev distance of the background."""
    height, columns = mask.shape
    result = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask)):
        for dy in range(-width, width + 1):
            for dx in range(-width, width + 1):
                inside = 0 <= y + dy < height and 0 <= x + dx < columns
                if not inside or not mask[y + dy, x + dx]:
                    result[y, x] = True
    return result


def boundary_iou(one: np.ndarray, other: np.ndarray, width: int) -> float:
    """Computes the IoU of the boundaries of two masks, 0 if there are none."""
    one, other = mask_boundary(one, width), mask_boundary(other, width)
    return (one & other).sum() / max((one | other).sum(), 1)
