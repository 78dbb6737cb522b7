"""Grids of spatial transformers pixel by pixel, in NumPy."""

import numpy as np


def pixel_centers(height, width):
    """Returns (h, w, 2) centers of pixels, where -1 and 1 are the edges of the image."""
    centers = np.zeros((height, width, 2))
    for row in range(height):
        for column in range(width):
            centers[row, column] = (2 * column + 1) / width - 1, (2 * row + 1) / height - 1
    return centers


def projective_grid(matrix, height, width):
    """Maps the center of every pixel by a matrix (3, 3)."""
    grid = pixel_centers(height, width)
    for row in range(height):
        for column in range(width):
            x, y, depth = matrix @ [*grid[row, column], 1.0]
            grid[row, column] = x / depth, y / depth
    return grid


def bilinear(image, x, y):
    """Reads an image (H, W) at a point, where pixels beyond the border are 0."""
    column, row = (x + 1) * image.shape[1] / 2 - 0.5, (y + 1) * image.shape[0] / 2 - 0.5
    value = 0.0
    for i in (int(np.floor(row)), int(np.floor(row)) + 1):
        for j in (int(np.floor(column)), int(np.floor(column)) + 1):
            if 0 <= i < image.shape[0] and 0 <= j < image.shape[1]:
                value += max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j)) * image[i, j]
    return value
