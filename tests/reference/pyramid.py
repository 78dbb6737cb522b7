"""Pyramids pixel by pixel, in NumPy."""

import numpy as np

WEIGHTS = (1, 3, 3, 1)


def halve(image):
    """Halves (H, W) by the weights 1, 3, 3, 1 along each axis, without those beyond the border."""
    return _halve_rows(_halve_rows(image).T).T


def _halve_rows(image):
    result = np.zeros((image.shape[0] // 2, image.shape[1]))
    for row in range(len(result)):
        places = [(2 * row - 1 + k, weight) for k, weight in enumerate(WEIGHTS)]
        places = [(place, weight) for place, weight in places if 0 <= place < len(image)]
        total = sum(weight for _, weight in places)
        for place, weight in places:
            result[row] += weight / total * image[place]
    return result


def double(image):
    """Doubles (H, W) linearly between the centers of cells, and constantly beyond them."""
    return _double_rows(_double_rows(image).T).T


def _double_rows(image):
    result = np.zeros((2 * image.shape[0], image.shape[1]))
    for row in range(len(result)):
        near = row // 2
        far = min(max(near + (1 if row % 2 else -1), 0), len(image) - 1)
        result[row] = 0.75 * image[near] + 0.25 * image[far]
    return result


def laplacian_pyramid(image, levels):
    """Returns the bands of (H, W), of which the last one is the low-pass residual."""
    bands = []
    for _ in range(levels - 1):
        smaller = halve(image)
        bands.append(image - double(smaller))
        image = smaller
    return [*bands, image]


def normalize_contrast(maps, size, floor):
    """Normalizes pixels of (C, H, W) by mean and standard deviation of their neighborhood."""
    result = np.zeros_like(maps)
    centered = np.zeros_like(maps)
    _, height, width = maps.shape
    half = size // 2

    def around(values, y, x):
        return values[:, max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]

    for y in range(height):
        for x in range(width):
            centered[:, y, x] = maps[:, y, x] - around(maps, y, x).mean()
    for y in range(height):
        for x in range(width):
            deviation = np.sqrt((around(centered, y, x) ** 2).mean())
            result[:, y, x] = centered[:, y, x] / max(deviation, floor)
    return result
