"""Boundaries of masks: the pixels of a mask that lie near its edge (Cheng et al., CVPR 2021)."""

from typing import Any, Dict, Tuple

import cv2
import numpy as np
import pycocotools.mask as mask_util

# Of the picture's diagonal: how wide a boundary is in Boundary IoU (section 4).
BOUNDARY_SHARE = 0.02


def boundary_width(size: Tuple[int, int], share: float = BOUNDARY_SHARE) -> int:
    """Width in pixels, at least 1, of boundaries in a picture of a size (H, W)."""
    return max(1, int(round(share * float(np.hypot(*size)))))


def mask_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask from which something else is at most ``width`` pixels away, also diagonally.

    Beyond the picture's border is something else.

    Args:
        mask: (H, W) bool or 0 and 1.
        width: at least 1.

    Returns:
        (H, W) uint8, 0 or 1.
    """
    mask = np.ascontiguousarray(mask, np.uint8)
    found = np.zeros_like(mask)
    x, y, w, h = cv2.boundingRect(mask)
    if w == 0:
        return found
    inner = mask[y : y + h, x : x + w]
    padded = cv2.copyMakeBorder(inner, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    kernel = np.ones((3, 3), np.uint8)
    eroded = cv2.erode(padded, kernel, iterations=width)[1:-1, 1:-1]
    found[y : y + h, x : x + w] = inner - eroded
    return found


def boundary_rle(rle: Dict[str, Any], width: int) -> Dict[str, Any]:
    """The boundary of a run-length encoded mask, encoded."""
    boundary = mask_boundary(mask_util.decode(rle), width)
    return mask_util.encode(np.asfortranarray(boundary))
