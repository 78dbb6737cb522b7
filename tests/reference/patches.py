"""Interpolation of maps, pixel by pixel."""

import math

import numpy as np


def bilinear(array: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Reads an array (H, W) at positions x, y; outside of it, its last pixels are repeated."""
    height, width = array.shape
    result = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        left, top = math.floor(x[index]), math.floor(y[index])
        for column in (left, left + 1):
            for row in (top, top + 1):
                weight = (1 - abs(x[index] - column)) * (1 - abs(y[index] - row))
                inside = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
                result[index] += weight * array[inside]
    return result


def nearest(array: np.ndarray, x: np.ndarray, y: np.ndarray, outside: float) -> np.ndarray:
    """Reads the pixels that are nearest to positions x, y of one shape."""
    height, width = array.shape
    result = np.full(x.shape, outside)
    for index in np.ndindex(*x.shape):
        column, row = math.floor(x[index] + 0.5), math.floor(y[index] + 0.5)
        if 0 <= row < height and 0 <= column < width:
            result[index] = array[row, column]
    return result
