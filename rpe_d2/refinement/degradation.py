"""Label maps with the errors of other models, made from true ones, to train a refiner."""

from typing import Callable, Dict

import cv2
import numpy as np

__all__ = ["DEGRADATIONS", "degrade_labels"]

# Share of the training examples that stay as they are: right labels must not be changed.
_UNCHANGED = 0.25


def degrade_labels(
    labels: np.ndarray, random: np.random.Generator, strength: float = 6.0
) -> np.ndarray:
    """Makes the errors of a model in a true label map: of one kind, and often smoothly warped.

    Args:
        labels: (H, W) int32, 0 for the background.
        random: source of random numbers.
        strength: largest size of the errors in pixels.

    Returns:
        (H, W) int32, with some of the labels of the input.
    """
    if random.random() < _UNCHANGED:
        return labels.copy()
    names = list(DEGRADATIONS)
    amount = _amount(random, strength)
    degraded = DEGRADATIONS[names[random.integers(len(names))]](labels, random, amount)
    if random.random() < 0.5:
        degraded = warp(degraded, random, _amount(random, strength) / 2)
    return degraded


def _amount(random: np.random.Generator, strength: float) -> float:
    """Returns the size of an error in pixels. Small errors are the most frequent."""
    return 0.5 + (strength - 0.5) * random.random() ** 2


def downsample(labels: np.ndarray, random: np.random.Generator, amount: float) -> np.ndarray:
    """Gives each object the smooth outline that it has at a fraction of its resolution."""
    factor = max(2, round(amount))
    return _of_objects(labels, factor, lambda mask: _resized(mask, factor, cv2.INTER_LINEAR))


def blocky(labels: np.ndarray, random: np.random.Generator, amount: float) -> np.ndarray:
    """Divides the image into square cells of one label each."""
    factor = max(2, round(amount))
    height, width = labels.shape
    y = np.minimum(np.arange(height) // factor * factor + random.integers(factor), height - 1)
    x = np.minimum(np.arange(width) // factor * factor + random.integers(factor), width - 1)
    return labels[y][:, x]


def mask_grid(labels: np.ndarray, random: np.random.Generator, amount: float) -> np.ndarray:
    """Gives each object a mask of 28 x 28 or 14 x 14 cells of its box, as of Mask R-CNN."""
    side = 28 if random.random() < 0.5 else 14

    def through_grid(mask: np.ndarray) -> np.ndarray:
        y, x = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        top, bottom, left, right = y[0], y[-1] + 1, x[0], x[-1] + 1
        box = mask[top:bottom, left:right].astype(np.float32)
        grid = cv2.resize(box, (side, side), interpolation=cv2.INTER_AREA)
        result = np.zeros(mask.shape, bool)
        size = (right - left, bottom - top)
        result[top:bottom, left:right] = cv2.resize(grid, size) >= 0.5
        return result

    return warp(_of_objects(labels, 0, through_grid), random, amount / 2)


def smooth(labels: np.ndarray, random: np.random.Generator, amount: float) -> np.ndarray:
    """Rounds corners and removes thin parts."""
    sigma = amount / 2
    return _of_objects(
        labels,
        int(2 * amount),
        lambda mask: cv2.GaussianBlur(mask.astype(np.float32), (0, 0), sigma) >= 0.5,
    )


def shrink(labels: np.ndarray, random: np.random.Generator, amount: float) -> np.ndarray:
    """Removes the outermost pixels of objects."""
    kernel = _disk(max(1, amount / 2))
    return _of_objects(
        labels,
        len(kernel),
        lambda mask: cv2.erode(
            mask.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=1
        )
        > 0,
    )


def grow(labels: np.ndarray, random: np.random.Generator, amount: float) -> np.ndarray:
    """Lets objects grow into the background."""
    from skimage.segmentation import expand_labels  # slow to import

    return expand_labels(labels, amount / 2)


def shift(labels: np.ndarray, random: np.random.Generator, amount: float) -> np.ndarray:
    """Moves each object on its own."""
    reach = max(1, round(amount / 2))

    def moved(mask: np.ndarray) -> np.ndarray:
        dy, dx = random.integers(-reach, reach + 1, 2)
        matrix = np.float32([[1, 0, dx], [0, 1, dy]])
        return cv2.warpAffine(mask.astype(np.uint8), matrix, mask.shape[::-1]) > 0

    return _of_objects(labels, reach + 1, moved)


def polygons(labels: np.ndarray, random: np.random.Generator, amount: float) -> np.ndarray:
    """Draws each object as a polygon of few corners, as annotators do."""

    def as_polygons(mask: np.ndarray) -> np.ndarray:
        outlines = cv2.findContours(
            mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )[0]
        result = np.zeros(mask.shape, np.uint8)
        cv2.fillPoly(result, [cv2.approxPolyDP(line, amount, True) for line in outlines], 1)
        return result > 0

    return _of_objects(labels, 2, as_polygons)


def missing_tips(labels: np.ndarray, random: np.random.Generator, amount: float) -> np.ndarray:
    """Removes the parts of objects that are thinner than a disk."""
    kernel = _disk(amount)
    return _of_objects(
        labels,
        len(kernel),
        lambda mask: cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel) > 0,
    )


def warp(labels: np.ndarray, random: np.random.Generator, amount: float) -> np.ndarray:
    """Moves boundaries by a smooth random field of at most about ``amount`` pixels."""
    height, width = labels.shape
    cell = random.uniform(6.0, 32.0)
    grid = (int(width / cell) + 2, int(height / cell) + 2)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    fields = [
        cv2.resize(
            random.uniform(-amount, amount, grid[::-1]).astype(np.float32),
            (width, height),
            interpolation=cv2.INTER_CUBIC,
        )
        for _ in range(2)
    ]
    rows = np.clip(np.rint(y + fields[0]), 0, height - 1).astype(np.int64)
    columns = np.clip(np.rint(x + fields[1]), 0, width - 1).astype(np.int64)
    return labels[rows, columns]


DEGRADATIONS: Dict[str, Callable[[np.ndarray, np.random.Generator, float], np.ndarray]] = {
    function.__name__: function
    for function in (
        downsample,
        blocky,
        mask_grid,
        smooth,
        shrink,
        grow,
        shift,
        polygons,
        missing_tips,
        warp,
    )
}


def _disk(radius: float) -> np.ndarray:
    side = 2 * int(np.ceil(radius)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def _resized(mask: np.ndarray, factor: int, method: int) -> np.ndarray:
    height, width = mask.shape
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    area = cv2.resize(mask.astype(np.float32), small, interpolation=cv2.INTER_AREA)
    return cv2.resize(area, (width, height), interpolation=method) >= 0.5


def _of_objects(
    labels: np.ndarray, margin: int, change: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Changes the mask of each object; larger objects are drawn first.

    Args:
        labels: (H, W) int32.
        margin: pixels around an object's box that its changed mask may reach.
        change: returns the changed mask for the object's mask (h, w) bool.
    """
    result = np.zeros_like(labels)
    height, width = labels.shape
    boxes = _boxes(labels)
    for label in sorted(boxes, key=lambda label: -boxes[label][4]):
        top, bottom, left, right, _ = boxes[label]
        window = (
            slice(max(0, top - margin), min(height, bottom + margin)),
            slice(max(0, left - margin), min(width, right + margin)),
        )
        result[window][change(labels[window] == label)] = label
    return result


def _boxes(labels: np.ndarray) -> Dict[int, tuple]:
    """Returns top, bottom, left, right and area of each object by its label."""
    y, x = np.nonzero(labels)
    present, index, areas = np.unique(labels[y, x], return_inverse=True, return_counts=True)
    if len(present) == 0:
        return {}
    order = np.argsort(index, kind="stable")
    starts = np.concatenate([[0], np.cumsum(areas)[:-1]])
    y, x = y[order], x[order]
    top, left = (np.minimum.reduceat(values, starts) for values in (y, x))
    bottom, right = (np.maximum.reduceat(values, starts) + 1 for values in (y, x))
    return {
        int(label): tuple(map(int, box))
        for label, box in zip(present, np.stack([top, bottom, left, right, areas], axis=1))
    }
