"""Slow, obvious measures of the objects of a label map."""

import numpy as np


def axes_ratio(mask: np.ndarray) -> float:
    """The ratio of the axes of an ellipse with the second moments of a mask (H, W)."""
    points = np.argwhere(mask).astype(float)
    moments = np.linalg.eigvalsh(np.cov(points.T, ddof=0))
    return float(np.sqrt(moments[1] / moments[0]))


def touches(labels: np.ndarray, number: int) -> bool:
    """Whether one of the eight neighbors of a pixel of an object belongs to another object."""
    for y, x in np.argwhere(labels == number):
        around = labels[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        if ((around != 0) & (around != number)).any():
            return True
    return False
