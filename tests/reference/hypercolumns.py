"""Hypercolumns pixel by pixel: concatenate, classify with every classifier, mix the probabilities."""

import numpy as np

from .position_sensitive import bilinear as value_at


def sigmoid(score) -> float:
    return 1 / (1 + np.exp(-score))


def weight_of(classifier, grid, position) -> float:
    """Share of one of ``grid`` classifiers in a row at a position in 0-1: linear between the centres of the cells."""
    place = min(max(position * grid - 0.5, 0), grid - 1)
    return max(0.0, 1 - abs(place - classifier))


def masks(layers, strides, classifiers, bias, boxes, classes, grid, size) -> np.ndarray:
    """
    layers: maps (N, C_l, H_l, W_l); classifiers: (K, grid grid, sum of C_l), bias (K, grid grid); boxes (R, 5).
    Probabilities (R, size, size).
    """
    found = np.zeros((len(boxes), size, size))
    for r, (image, x0, y0, x1, y1) in enumerate(boxes):
        for row in range(size):
            for column in range(size):
                across, down = (column + 0.5) / size, (row + 0.5) / size
                x, y = x0 + across * (x1 - x0), y0 + down * (y1 - y0)
                hypercolumn = [
                    value_at(plane, x / stride - 0.5, y / stride - 0.5)
                    for layer, stride in zip(layers, strides)
                    for plane in layer[int(image)]
                ]
                for i in range(grid):
                    for j in range(grid):
                        k = i * grid + j
                        weights = classifiers[classes[r], k]
                        score = float(np.dot(weights, hypercolumn)) + bias[classes[r], k]
                        share = weight_of(i, grid, down) * weight_of(j, grid, across)
                        found[r, row, column] += share * sigmoid(score)
    return found
