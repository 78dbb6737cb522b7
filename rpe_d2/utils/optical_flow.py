"""Optical flow between two frames, and warping by it."""

import cv2
import numpy as np

__all__ = ["SMALLEST_SIDE", "flow_positions", "warp"]

# DIS divides frames into patches of this side, and does not work on smaller ones.
SMALLEST_SIDE = 12


def flow_positions(key_frame: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Computes where each pixel of a frame was in the key frame, by DIS (Kroeger et al., ECCV 2016).

    Args:
        key_frame, frame: (H, W, 3) uint8 RGB.

    Returns:
        (H, W, 2) float32, x and y in pixels.

    Raises:
        ValueError: The frames are smaller than a patch.
    """
    height, width = frame.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(
            f"the frames have {width} x {height} pixels; allowed for optical flow: "
            f"{SMALLEST_SIDE} x {SMALLEST_SIDE} or more"
        )
    gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (frame, key_frame)]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*gray, None)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return flow + np.stack([x, y], axis=2)


def warp(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Samples maps at positions, bilinearly.

    Args:
        values: (C, H, W) float32.
        positions: (H, W, 2) float32, x and y in pixels. Outside the image, the nearest pixel is
            taken.

    Returns:
        (C, H, W) float32.
    """
    x, y = np.ascontiguousarray(positions[..., 0]), np.ascontiguousarray(positions[..., 1])
    maps = [
        cv2.remap(
            np.ascontiguousarray(one), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        for one in values
    ]
    return np.stack(maps)
