"""Boundaries of masks, the pixels near their contours (Boundary IoU, Cheng et al., CVPR 2021)."""

from typing import Any, Dict, Tuple

import cv2
import numpy as np
import pycocotools.mask as mask_util

# Width of a boundary as a fraction of the image diagonal (section 4 of the paper).
DILATION_RATIO = 0.02


def boundary_width(size: Tuple[int, int], ratio: float = DILATION_RATIO) -> int:
    """Returns the width, at least 1 pixel, of boundaries in an image of size (H, W)."""
    return max(1, int(round(ratio * float(np.hypot(*size)))))


def mask_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """Returns the pixels of a mask within a Chebyshev distance ``width`` of the background.

    Everything outside the image is background.

    Args:
        mask: (H, W) bool or 0 and 1.
        width: width of the boundary in pixels, >= 1.

    Returns:
        (H, W) uint8, 0 or 1.
    """
    mask = np.ascontiguousarray(mask, np.uint8)
    boundary = np.zeros_like(mask)
    x, y, w, h = cv2.boundingRect(mask)
    if w == 0:
        return boundary
    inner = mask[y : y + h, x : x + w]
    padded = cv2.copyMakeBorder(inner, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    kernel = np.ones((3, 3), np.uint8)
    eroded = cv2.erode(padded, kernel, iterations=width)[1:-1, 1:-1]
    boundary[y : y + h, x : x + w] = inner - eroded
    return boundary


def boundary_rle(rle: Dict[str, Any], width: int) -> Dict[str, Any]:
    """Computes the boundary of a run-length encoded mask, as RLE."""
    boundary = mask_boundary(mask_util.decode(rle), width)
    return mask_util.encode(np.asfortranarray(boundary))
