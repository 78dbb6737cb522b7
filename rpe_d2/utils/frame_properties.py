"""Properties of video frames that are propagated from key frames, as tensors.

A property belongs to a point of the scene, and a guidance is what is known of every frame:

* ``ab``: the colors a and b of CIE Lab, (2, H, W) in -1 to 1. The guidance is the lightness,
  (1, H, W) in 0-1.
* ``rgb``: a picture in its full range of intensities, (3, H, W), 1 for white. The guidance is the
  picture as a camera shows it, (3, H, W) in 0-1.
* ``masks``: K masks, (K, H, W) in 0-1. The guidance is the picture, (3, H, W) in 0-1.
"""

from typing import Tuple

import cv2
import numpy as np

__all__ = [
    "GRAY_LEVELS",
    "GUIDANCE_CHANNELS",
    "PROPERTIES",
    "PROPERTY_CHANNELS",
    "join_lab",
    "split_lab",
    "to_planes",
]

PROPERTIES = ("ab", "rgb", "masks")
# Channels that belong together. Masks are propagated one by one.
PROPERTY_CHANNELS = {"ab": 2, "rgb": 3, "masks": 1}
GUIDANCE_CHANNELS = {"ab": 1, "rgb": 3, "masks": 3}
# Levels of 8 bits in a difference of 1.
GRAY_LEVELS = {"ab": 128.0, "rgb": 255.0, "masks": 255.0}


def split_lab(picture: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Splits a picture into its lightness and its colors.

    In OpenCV's Lab of 8 bits, L is 255 times the lightness, and a and b are 128 times the colors
    plus 128, up to rounding.

    Args:
        picture: (H, W, 3) RGB of 0 to 255, uint8 or floating point.

    Returns:
        Lightness (1, H, W) in 0-1 and colors (2, H, W) in -1 to 1, float32.
    """
    unit = np.ascontiguousarray(picture, dtype=np.float32) / 255
    lab = cv2.cvtColor(unit, cv2.COLOR_RGB2Lab)  # L is 0 to 100, and a and b are -127 to 127
    return to_planes(lab[:, :, :1] / 100), to_planes(lab[:, :, 1:] / 128)


def join_lab(lightness: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Joins lightness and colors of :func:`split_lab` to a picture (H, W, 3) RGB, uint8.

    Colors that a screen cannot show are clipped.
    """
    lab = np.concatenate([lightness * 100, colors * 128]).astype(np.float32).transpose(1, 2, 0)
    rgb = cv2.cvtColor(np.ascontiguousarray(lab), cv2.COLOR_Lab2RGB)
    return (255 * rgb.clip(0, 1)).round().astype(np.uint8)


def to_planes(picture: np.ndarray) -> np.ndarray:
    """Turns (H, W, C) into contiguous (C, H, W) float32."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1), dtype=np.float32)
