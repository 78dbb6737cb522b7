"""Windows on maps as their definitions say, one number at a time."""

import math

import numpy as np


def assemble(maps: np.ndarray, row: int, column: int, size: int) -> np.ndarray:
    """InstanceFCN's mask (size, size) of the window with this middle, from unpadded (k k, H, W); 0 outside."""
    parts = math.isqrt(len(maps))
    half = size // 2
    found = np.zeros((size, size))
    for u in range(size):
        for v in range(size):
            y, x = row + u - half, column + v - half
            if 0 <= y < maps.shape[1] and 0 <= x < maps.shape[2]:
                found[u, v] = maps[(u * parts // size) * parts + v * parts // size, y, x]
    return found


def deepmask_loss(scores, masks, labels, targets, score_weight: float) -> float:
    """DeepMask's joint loss of windows, summed.

    Args:
        scores: (N,) f_s.
        masks: (N, h, w) f_ij, of all windows.
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
    """The object that a window of a pixel's size shows, by DeepMask's rules for patches of 224 pixels.

    Returns:
        Its number, "negative" or "ignored".
    """
    best, nearest, all_far = None, None, True
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        scale = math.log2(128 / max(x1 - x0, y1 - y0) / (224 / side))  # octaves to be canonical
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
