"""Thinning pixel by pixel, and matching by a dense assignment."""

import numpy as np
from scipy.optimize import linear_sum_assignment


def slow_thin(mask):
    """Thins by Guo and Hall's algorithm (Lam, Lee and Suen, PAMI 1992, p. 879) on nested lists."""
    height, width = np.shape(mask)
    pixels = [[bool(value) for value in row] for row in mask]

    def value(row, column):
        return 0 <= row < height and 0 <= column < width and pixels[row][column]

    def goes(row, column, first):
        around = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1)]
        x = [None, *(value(row + down, column + right) for down, right in around)]  # x[1] … x[9]
        crossings = sum(not x[2 * i - 1] and (x[2 * i] or x[2 * i + 1]) for i in range(1, 5))
        n1 = sum(x[2 * k - 1] or x[2 * k] for k in range(1, 5))
        n2 = sum(x[2 * k] or x[2 * k + 1] for k in range(1, 5))
        if crossings != 1 or not 2 <= min(n1, n2) <= 3:
            return False
        if first:
            return not ((x[2] or x[3] or not x[8]) and x[1])
        return not ((x[6] or x[7] or not x[4]) and x[5])

    while True:
        before = [list(row) for row in pixels]
        for first in (True, False):
            gone = [
                (row, column)
                for row in range(height)
                for column in range(width)
                if pixels[row][column] and goes(row, column, first)
            ]
            for row, column in gone:
                pixels[row][column] = False
        if pixels == before:
            return np.array(pixels, dtype=bool).reshape(height, width)


def dense_matching(predicted, truth, max_distance):
    """Returns the size of the largest matching, and the smallest sum of distances at that size."""
    first, second = np.argwhere(predicted), np.argwhere(truth)
    distances = np.linalg.norm(first[:, None] - second[None], axis=2)
    near = distances <= max_distance
    gain = (len(first) + len(second) + 1) * (max_distance + 1)  # gain of one more pair
    rows, columns = linear_sum_assignment(np.where(near, distances - gain, 0))
    paired = near[rows, columns]
    return int(paired.sum()), float(distances[rows, columns][paired].sum())
