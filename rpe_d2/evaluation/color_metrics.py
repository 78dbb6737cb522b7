"""Measures of predicted colors, the same for videos, pairs of frames and sparse pixels.

Colors are a and b of OpenCV's Lab in levels of 8 bits, (2, ...) in 0 to 255 with 128 for gray.
"""

import math

import numpy as np

__all__ = ["LEAST_SQUARE", "NEUTRAL", "PEAK", "delta_e", "psnr", "saturation_kept"]

PEAK = 255.0
NEUTRAL = 128
# The mean squared error of values that are rounded to 8 bits, below which differences mean nothing.
LEAST_SQUARE = 1 / 12


def psnr(pred: np.ndarray, target: np.ndarray) -> float:
    """Computes the peak signal-to-noise ratio in dB with a peak of 255.

    Args:
        pred, target: colors (2, ...).

    Returns:
        The ratio, at most 58.9, that of rounding to 8 bits.
    """
    error = float(np.mean((pred.astype(np.float64) - target) ** 2))
    return 10 * math.log10(PEAK**2 / max(error, LEAST_SQUARE))


def delta_e(pred: np.ndarray, target: np.ndarray, lightness: np.ndarray) -> float:
    """Computes the mean color difference CIEDE2000 of pictures of the same lightness.

    Args:
        pred, target: colors (2, ...).
        lightness: (...), L of OpenCV's Lab with 8 bits, 255 for white.
    """
    from skimage.color import deltaE_ciede2000  # slow to import

    lab = [
        np.stack([lightness * (100 / 255), *(colors.astype(np.float64) - NEUTRAL)], axis=-1)
        for colors in (pred, target)
    ]
    return float(deltaE_ciede2000(*lab).mean())


def saturation_kept(pred: np.ndarray, target: np.ndarray) -> float:
    """Returns the sum of chroma, sqrt(a² + b²), of a prediction as a share of the true one.

    Args:
        pred, target: colors (2, ...).

    Returns:
        The share, 1 for the same saturation. It is NaN if the target has no color at all.
    """
    chroma = [np.hypot(*(colors.astype(np.float64) - NEUTRAL)).sum() for colors in (pred, target)]
    return float(chroma[0] / chroma[1]) if chroma[1] else math.nan
