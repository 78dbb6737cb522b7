"""Reference for hypercolumns: every pixel is classified by every classifier of the grid."""

import numpy as np

from .position_sensitive import bilinear


def sigmoid(score) -> float:
    return 1 / (1 + np.exp(-score))


def weight_of(classifier, grid, position) -> float:
    """Returns the weight of one of ``grid`` classifiers in a row at a position in [0, 1].

    The weight is linear between the centers of the cells.
    """
    place = min(max(position * grid - 0.5, 0), grid - 1)
    return max(0.0, 1 - abs(place - classifier))


def masks(layers, strides, classifiers, bias, boxes, classes, grid, size) -> np.ndarray:
    """Computes the probabilities of the masks of boxes.

    Args:
        layers: feature maps (N, C_l, H_l, W_l).
        strides: their strides in pixels.
        classifiers: (K, grid grid, sum of C_l) weights.
        bias: (K, grid grid).
        boxes: (R, 5) image index, x0, y0, x1, y1.
        classes: the class of each box.
        grid: classifiers of the grid in each direction.
        size: side of the masks.

    Returns:
        (R, size, size).
    """
    probabilities = np.zeros((len(boxes), size, size))
    for r, (image, x0, y0, x1, y1) in enumerate(boxes):
        for row in range(size):
            for column in range(size):
                across, down = (column + 0.5) / size, (row + 0.5) / size
                x, y = x0 + across * (x1 - x0), y0 + down * (y1 - y0)
                hypercolumn = [
                    bilinear(plane, x / stride - 0.5, y / stride - 0.5)
                    for layer, stride in zip(layers, strides)
                    for plane in layer[int(image)]
                ]
                for i in range(grid):
                    for j in range(grid):
                        k = i * grid + j
                        weights = classifiers[classes[r], k]
                        score = float(np.dot(weights, hypercolumn)) + bias[classes[r], k]
                        weight = weight_of(i, grid, down) * weight_of(j, grid, across)
                        probabilities[r, row, column] += weight * sigmoid(score)
    return probabilities
