"""Reference for mask voting, which samples every pixel of every mask."""

import numpy as np


def box_iou(one, other) -> float:
    """Computes the IoU of two boxes x0, y0, x1, y1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    intersection = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return intersection / (sum(areas) - intersection)


def value_at(mask, box, x, y) -> float:
    """Interpolates a mask (m, m) of a box at a position in pixels.

    The interpolation is linear between the centers of the cells, and to 0 outside of the box.
    """
    size = len(mask)
    column = (x - box[0]) / (box[2] - box[0]) * size - 0.5
    row = (y - box[1]) / (box[3] - box[1]) * size - 0.5
    total = 0.0
    for i in (int(np.floor(row)), int(np.floor(row)) + 1):
        for j in (int(np.floor(column)), int(np.floor(column)) + 1):
            if 0 <= i < size and 0 <= j < size:
                total += mask[i][j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


def vote(boxes, masks, scores, selected, classes, iou) -> np.ndarray:
    """Averages the masks of boxes with at least an IoU, weighted by their scores.

    Args:
        boxes: (R, 4).
        masks: (R, m, m).
        scores: (R, K).
        selected: D indices of the boxes that get a mask.
        classes: D classes.
        iou: the least IoU of the boxes that vote.

    Returns:
        (D, m, m).
    """
    size = len(masks[0])
    voted = np.zeros((len(selected), size, size))
    for number, (row, label) in enumerate(zip(selected, classes)):
        box = boxes[row]
        voters = [r for r in range(len(boxes)) if r == row or box_iou(box, boxes[r]) >= iou]
        weight = sum(scores[r][label] for r in voters)
        for i in range(size):
            for j in range(size):
                x = box[0] + (j + 0.5) / size * (box[2] - box[0])
                y = box[1] + (i + 0.5) / size * (box[3] - box[1])
                values = [scores[r][label] * value_at(masks[r], boxes[r], x, y) for r in voters]
                voted[number, i, j] = sum(values) / weight
    return voted
