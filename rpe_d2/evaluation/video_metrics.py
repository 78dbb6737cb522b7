"""Measures of properties that are propagated through a clip: colors and masks.

Colors are a and b of OpenCV's Lab with 8 bits, (2, H, W) in 0 to 255 with 128 for gray.
"""

from typing import Dict

import cv2
import numpy as np

from .color_metrics import NEUTRAL, delta_e, psnr, saturation_kept

__all__ = ["color_metrics", "colors_of", "mask_similarity", "quantized"]


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
    return np.clip(np.rint(NEUTRAL * (colors + 1)), 0, 255).astype(np.uint8)


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
