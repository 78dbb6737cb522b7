"""Mask voting by sampling every pixel of every mask."""

import numpy as np


def box_iou(one, other) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)


def value_at(mask, box, x, y) -> float:
    """A mask (m, m) laid over its box, linearly interpolated between its cells' centres and to 0 outside."""
    size = len(mask)
    column = (x - box[0]) / (box[2] - box[0]) * size - 0.5
    row = (y - box[1]) / (box[3] - box[1]) * size - 0.5
    total = 0.0
    for i in (int(np.floor(row)), int(np.floor(row)) + 1):
        for j in (int(np.floor(column)), int(np.floor(column)) + 1):
            if 0 <= i < size and 0 <= j < size:
                total += mask[i][j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


def vote(boxes, masks, scores, chosen, classes, iou) -> np.ndarray:
    size = len(masks[0])
    found = np.zeros((len(chosen), size, size))
    for number, (row, label) in enumerate(zip(chosen, classes)):
        box = boxes[row]
        voters = [r for r in range(len(boxes)) if r == row or box_iou(box, boxes[r]) >= iou]
        weight = sum(scores[r][label] for r in voters)
        for i in range(size):
            for j in range(size):
                x = box[0] + (j + 0.5) / size * (box[2] - box[0])
                y = box[1] + (i + 0.5) / size * (box[3] - box[1])
                values = [scores[r][label] * value_at(masks[r], boxes[r], x, y) for r in voters]
                found[number, i, j] = sum(values) / weight
    return found
