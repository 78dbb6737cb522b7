"""Frames of moving layers, pixel by pixel."""

import math

import numpy as np


def reflected(index: int, size: int) -> int:
    """Index of the pixel that a border shows which mirrors at the last pixel."""
    if size == 1:
        return 0
    index = abs(index) % (2 * size - 2)
    return min(index, 2 * size - 2 - index)


def sample(picture, x, y):
    """Bilinear interpolation of a picture (H, W) or (H, W, C) at one position."""
    column, row = math.floor(x), math.floor(y)
    value = 0.0
    for i, weight_y in ((row, 1 - (y - row)), (row + 1, y - row)):
        for j, weight_x in ((column, 1 - (x - column)), (column + 1, x - column)):
            pixel = picture[reflected(i, picture.shape[0]), reflected(j, picture.shape[1])]
            value = value + weight_y * weight_x * pixel.astype(np.float64)
    return value


def render(layers, places):
    """Returns the picture (h, w, 3), the shares (L, h, w) and the layer in front (h, w)."""
    height, width = places[0].shape[:2]
    picture = np.zeros((height, width, 3))
    shares = np.zeros((len(layers), height, width))
    owner = np.zeros((height, width), int)
    for i in range(height):
        for j in range(width):
            for number, (layer, place) in enumerate(zip(layers, places)):
                x, y = (float(value) for value in place[i, j])
                share = sample(layer.mask, x, y) if number else 1.0
                picture[i, j] *= 1 - share
                picture[i, j] += share * sample(layer.picture, x, y)
                shares[:number, i, j] *= 1 - share
                shares[number, i, j] = share
                if share >= 0.5:
                    owner[i, j] = number
    return picture, shares, owner


def occluded(target_owner, target_places, key_owner, origin):
    """Returns where the key frame, whose layers have not moved, does not show a target's pixel."""
    height, width = target_owner.shape
    hidden = np.ones((height, width), bool)
    for i in range(height):
        for j in range(width):
            x, y = target_places[target_owner[i, j]][i, j] - origin
            column, row = round(float(x)), round(float(y))
            if 0 <= row < key_owner.shape[0] and 0 <= column < key_owner.shape[1]:
                hidden[i, j] = key_owner[row, column] != target_owner[i, j]
    return hidden
