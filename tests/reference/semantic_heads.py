"""Layers of semantic heads, value by value."""

import numpy as np


def max_pool(maps):
    """Pools (C, H, W) to the maximum of each 2 x 2 block, and its position in the flattened map."""
    channels, height, width = maps.shape
    result = np.zeros((channels, height // 2, width // 2))
    places = np.zeros(result.shape, int)
    for c in range(channels):
        for y in range(height // 2):
            for x in range(width // 2):
                options = [(2 * y + dy, 2 * x + dx) for dy in (0, 1) for dx in (0, 1)]
                best = max(options, key=lambda place: maps[c][place])
                result[c, y, x] = maps[c][best]
                places[c, y, x] = best[0] * width + best[1]
    return result, places


def unpool(maps, places):
    """Unpools (C, H, W) to (C, 2 H, 2 W), with zeros except at ``places``."""
    channels, height, width = maps.shape
    result = np.zeros((channels, 2 * height, 2 * width))
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                row, column = divmod(int(places[c, y, x]), 2 * width)
                result[c, row, column] = maps[c, y, x]
    return result


def transposed_conv(maps, weight, bias):
    """Convolves (C, H, W) by the transposed kernel (C, D, k, k), stride 1, cropped to H x W."""
    _, height, width = maps.shape
    size = weight.shape[-1]
    half = size // 2
    canvas = np.zeros((weight.shape[1], height + size - 1, width + size - 1))
    for y in range(height):
        for x in range(width):
            painted = np.tensordot(maps[:, y, x], weight, axes=(0, 0))  # (D, k, k)
            canvas[:, y : y + size, x : x + size] += painted
    return canvas[:, half : half + height, half : half + width] + bias[:, None, None]


def conv(maps, weight, bias, stride=1):
    """Convolves (C, H, W) by (D, C, k, k) with zero padding."""
    _, height, width = maps.shape
    size = weight.shape[-1]
    half = size // 2
    padded = np.pad(maps, ((0, 0), (half, half), (half, half)))
    result = np.zeros((len(weight), -(-height // stride), -(-width // stride)))
    for y in range(result.shape[1]):
        for x in range(result.shape[2]):
            seen = padded[:, y * stride : y * stride + size, x * stride : x * stride + size]
            result[:, y, x] = np.tensordot(weight, seen, axes=3) + bias
    return result


def padded(maps, height, width):
    """Pads (C, h, w) to (C, height, width) with zeros below and to the right."""
    result = np.zeros((len(maps), height, width))
    result[:, : maps.shape[1], : maps.shape[2]] = maps
    return result


def average(maps, factor):
    """Averages blocks of (C, H, W) to (C, H / factor, W / factor)."""
    channels, height, width = maps.shape
    blocks = maps.reshape(channels, height // factor, factor, width // factor, factor)
    return blocks.mean(axis=(2, 4))


def enlarge(maps, factor):
    """Enlarges (C, H, W) by a factor, bilinearly between the centers of cells."""

    def axis(size):
        places = np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1)
        low = np.floor(places).astype(int)
        return low, np.minimum(low + 1, size - 1), places - low

    top, bottom, down = axis(maps.shape[1])
    left, right, across = axis(maps.shape[2])
    down = down[:, None]
    upper = maps[:, top][:, :, left] * (1 - across) + maps[:, top][:, :, right] * across
    lower = maps[:, bottom][:, :, left] * (1 - across) + maps[:, bottom][:, :, right] * across
    return upper * (1 - down) + lower * down


def cross_entropy(scores, labels, ignored):
    """Averages the loss over pixels, then over images, for scores (B, K, H, W)."""
    images = []
    for image, target in zip(scores, labels):
        terms = []
        for y, x in np.argwhere(target != ignored):
            values = image[:, y, x] - image[:, y, x].max()
            terms.append(np.log(np.exp(values).sum()) - values[target[y, x]])
        images.append(np.mean(terms) if terms else 0.0)
    return np.mean(images)
