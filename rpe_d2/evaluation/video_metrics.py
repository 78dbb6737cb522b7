"""Measures of properties that are propagated through a clip: colors and masks.

Colors are a and b of OpenCV's Lab with 8 bits, (2, H, W) in 0 to 255 with 128 for gray.
"""

import math
from typing import Dict

import cv2
import numpy as np

__all__ = [
    "color_metrics",
    "colors_of",
    "delta_e",
    "mask_similarity",
    "psnr",
    "quantized",
    "saturation_kept",
]

_NEUTRAL = 128


def colors_of(picture: np.ndarray) -> np.ndarray:
    """Returns the colors (2, H, W) uint8 of a picture (H, W, 3) uint8 RGB."""
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)
    return np.ascontiguousarray(lab[:, :, 1:].transpose(2, 0, 1))


def quantized(colors: np.ndarray) -> np.ndarray:
    """Rounds colors to 8 bits.

    Args:
        colors: (2, H, W) in -1 to 1, as :mod:`rpe_d2.utils.frame_properties` describes them.

    Returns:
        (2, H, W) uint8.
    """
    return np.clip(np.rint(_NEUTRAL * (colors + 1)), 0, 255).astype(np.uint8)


def psnr(pred: np.ndarray, target: np.ndarray) -> float:
    """Computes the peak signal-to-noise ratio in dB with a peak of 255.

    Args:
        pred, target: colors (2, H, W) uint8.

    Returns:
        The ratio, infinite for equal colors.
    """
    error = float(np.mean((pred.astype(np.float64) - target) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def delta_e(pred: np.ndarray, target: np.ndarray, lightness: np.ndarray) -> float:
    """Computes the mean color difference CIEDE2000 of pictures of the same lightness.

    Args:
        pred, target: colors (2, H, W) uint8.
        lightness: (H, W) uint8, L of OpenCV's Lab with 8 bits, 255 for white.
    """
    from skimage.color import deltaE_ciede2000  # slow to import

    lab = [
        np.stack([lightness * (100 / 255), *(colors.astype(np.float64) - _NEUTRAL)], axis=-1)
        for colors in (pred, target)
    ]
    return float(deltaE_ciede2000(*lab).mean())


def saturation_kept(pred: np.ndarray, target: np.ndarray) -> float:
    """Returns the sum of chroma, sqrt(a² + b²), of a prediction as a share of the true one.

    Args:
        pred, target: colors (2, H, W) uint8.

    Returns:
        The share, 1 for the same saturation. It is NaN if the target has no color at all.
    """
    chroma = [np.hypot(*(colors.astype(np.float64) - _NEUTRAL)).sum() for colors in (pred, target)]
    return float(chroma[0] / chroma[1]) if chroma[1] else math.nan


def color_metrics(pred: np.ndarray, target: np.ndarray) -> Dict[str, float]:
    """Measures predicted colors of a frame.

    Args:
        pred: colors (2, H, W) in -1 to 1, see :func:`quantized`.
        target: the true frame (H, W, 3) uint8 RGB.

    Returns:
        "psnr" in dB, "delta_e" (CIEDE2000) and "saturation".
    """
    colors = quantized(pred)
    lab = cv2.cvtColor(target, cv2.COLOR_RGB2LAB)
    true = lab[:, :, 1:].transpose(2, 0, 1)
    return {
        "psnr": psnr(colors, true),
        "delta_e": delta_e(colors, true, lab[:, :, 0]),
        "saturation": saturation_kept(colors, true),
    }


def mask_similarity(pred: np.ndarray, target: np.ndarray) -> Dict[int, float]:
    """Computes the region similarity J, the IoU, of each object of a frame.

    Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation",
    CVPR 2016, section 5.

    Args:
        pred, target: label maps (H, W) of integers, 0 for background, with the same labels for the
            same objects.

    Returns:
        J by the labels of both maps. A label in only one of them has 0.
    """
    labels = np.setdiff1d(np.union1d(pred, target), [0])
    result = {}
    for label in labels.tolist():
        found, true = pred == label, target == label
        result[label] = np.count_nonzero(found & true) / np.count_nonzero(found | true)
    return result
