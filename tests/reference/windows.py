"""Reference for windows on maps, computed one value at a time."""

import math

import numpy as np


def assemble(maps: np.ndarray, row: int, column: int, size: int) -> np.ndarray:
    """Assembles InstanceFCN's mask of a window from its score maps.

    Args:
        maps: (k k, H, W), not padded; values outside of the maps are 0.
        row, column: the center of the window.
        size: side of the window in cells.

    Returns:
        (size, size).
    """
    parts = math.isqrt(len(maps))
    half = size // 2
    mask = np.zeros((size, size))
    for u in range(size):
        for v in range(size):
            y, x = row + u - half, column + v - half
            if 0 <= y < maps.shape[1] and 0 <= x < maps.shape[2]:
                mask[u, v] = maps[(u * parts // size) * parts + v * parts // size, y, x]
    return mask


def deepmask_loss(scores, masks, labels, targets, score_weight: float) -> float:
    """Computes DeepMask's joint loss, summed over windows.

    Args:
        scores: (N,) f_s.
        masks: (N, h, w) f_ij of all windows.
        labels: (N,) y_k, +1 or -1.
        targets: (N, h, w) m_ij, +1 or -1.
        score_weight: lambda.
    """
    total = 0.0
    for score, mask, label, target in zip(scores, masks, labels, targets):
        height, width = mask.shape
        pixels = 0.0
        for i in range(height):
            for j in range(width):
                pixels += math.log(1 + math.exp(-target[i, j] * mask[i, j]))
        total += (1 + label) / (2 * width * height) * pixels
        total += score_weight * math.log(1 + math.exp(-label * score))
    return total


def label(center, side: float, boxes) -> object:
    """Labels a window by DeepMask's rules for patches of 224 pixels.

    Args:
        center: x, y of the window in pixels.
        side: side of the window in pixels.
        boxes: boxes of the objects.

    Returns:
        The index of the object that the window shows, "negative" or "ignored".
    """
    best, nearest, all_far = None, None, True
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        scale = math.log2(128 / max(x1 - x0, y1 - y0) / (224 / side))  # octaves from canonical
        shift = max(abs(center[0] - (x0 + x1) / 2), abs(center[1] - (y0 + y1) / 2)) * 224 / side
        if shift <= 16 and abs(scale) <= 0.25:
            distance = max(shift / 16, abs(scale) / 0.25)
            if best is None or distance < nearest:
                best, nearest = number, distance
        if shift < 32 and abs(scale) < 1:
            all_far = False
    if best is not None:
        return best
    return "negative" if all_far else "ignored"
