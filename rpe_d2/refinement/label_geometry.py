"""Geometry of label maps: boundaries, colors and connected regions."""

from typing import TYPE_CHECKING, List, Tuple

import cv2
import numpy as np

if TYPE_CHECKING:
    from scipy import sparse

__all__ = [
    "boundary_distance",
    "boundary_pixels",
    "color_labels",
    "compact_labels",
    "nearest_labels",
]


def compact_labels(labels: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Numbers the labels that occur from 0. It is ``np.unique``, which sorts, in less time.

    Args:
        labels: integers of any shape.

    Returns:
        The labels in ascending order, and the index of each pixel's label in them, int64.
    """
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if high - low > 4 * labels.size:
        values, indices = np.unique(labels, return_inverse=True)
        return values, indices.reshape(labels.shape)
    offset = labels.astype(np.int64) - low
    present = np.bincount(offset.ravel(), minlength=1) > 0
    values = (np.flatnonzero(present) + low).astype(labels.dtype)
    return values, (np.cumsum(present) - 1)[offset]


def boundary_pixels(labels: np.ndarray) -> np.ndarray:
    """Finds the pixels that have a 4-neighbor with another label.

    Args:
        labels: (H, W) integers.

    Returns:
        (H, W) bool.
    """
    found = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        first, second = _halves(axis)
        differ = labels[first] != labels[second]
        found[first] |= differ
        found[second] |= differ
    return found


def _halves(axis: int) -> Tuple[tuple, tuple]:
    """Returns indices of all rows or columns but the last one, and of all but the first one."""
    before = tuple(slice(None, -1) if a == axis else slice(None) for a in (0, 1))
    after = tuple(slice(1, None) if a == axis else slice(None) for a in (0, 1))
    return before, after


def boundary_distance(labels: np.ndarray) -> np.ndarray:
    """Returns the distance of each pixel's center to the nearest boundary between two labels.

    Args:
        labels: (H, W) integers.

    Returns:
        (H, W) float32 in pixels: 0.5 beside a boundary; infinite where there is none.
    """
    pixels = boundary_pixels(labels)
    if not pixels.any():
        return np.full(labels.shape, np.inf, np.float32)
    outside = np.where(pixels, 0, 1).astype(np.uint8)
    return cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) + np.float32(0.5)


def color_labels(labels: np.ndarray, separation: float) -> Tuple[np.ndarray, int]:
    """Assigns few colors to labels, so that labels of the same color are far apart.

    The number of maps that have to be propagated then depends on how dense the labels are, and not
    on how many there are. The labels are the vertices of a graph, whose edges connect labels at
    most ``separation`` pixels apart, and some that are up to twice as far apart. Colors are
    assigned greedily, to the labels with the most neighbors first.

    Args:
        labels: (H, W) integers from 0 to N - 1.
        separation: pixels of two labels of the same color are farther apart than this.

    Returns:
        The color (N,) int64 of each label, from 0, and the number of colors.
    """
    from scipy import sparse  # slow to import

    count = int(labels.max()) + 1
    cell = max(1, int(separation) // 2)
    rows, columns = (-(-side // cell) for side in labels.shape)
    # A label of a cell is that of its first pixel, or has a boundary in the cell.
    near = boundary_pixels(labels)
    near[::cell, ::cell] = True
    y, x = np.nonzero(near)
    pairs = np.unique(((y // cell) * columns + x // cell) * count + labels[near])
    place, label = np.divmod(pairs, count)
    cells = sparse.csr_matrix(
        (np.ones(len(pairs), np.int32), (place, label)), shape=(rows * columns, count)
    )
    touched = sparse.csr_matrix((count, count), dtype=np.int32)
    for dy, dx in _offsets_of_cells(separation, cell):
        target = cells[_shifted(rows, columns, dy, dx)[0]]
        touched = touched + target.T @ cells[_shifted(rows, columns, dy, dx)[1]]
    touched = (touched + touched.T).tocsr()
    return _greedy_colors(touched)


def _offsets_of_cells(separation: float, cell: int) -> List[Tuple[int, int]]:
    """Returns the offsets of one of every two opposite cells that are near enough."""
    reach = int(separation // cell) + 1
    return [
        (dy, dx)
        for dy in range(reach + 1)
        for dx in range(-reach, reach + 1)
        if (dy > 0 or dx >= 0)
        and np.hypot(max(0, dy - 1) * cell, max(0, abs(dx) - 1) * cell) <= separation
    ]


def _shifted(rows: int, columns: int, dy: int, dx: int) -> Tuple[np.ndarray, np.ndarray]:
    """Returns the indices of cells, and of those at an offset from them, where both exist."""
    y = np.arange(max(0, -dy), min(rows, rows - dy))
    x = np.arange(max(0, -dx), min(columns, columns - dx))
    first = (y[:, None] * columns + x).ravel()
    return first, first + dy * columns + dx


def _greedy_colors(graph: "sparse.csr_matrix") -> Tuple[np.ndarray, int]:
    colors = np.full(graph.shape[0], -1)
    degree = np.diff(graph.indptr)
    for label in np.argsort(-degree, kind="stable"):
        used = colors[graph.indices[graph.indptr[label] : graph.indptr[label + 1]]]
        free = np.ones(len(used) + 1, bool)
        free[used[(used >= 0) & (used < len(free))]] = False
        colors[label] = int(np.argmax(free))
    return colors, int(colors.max()) + 1


def nearest_labels(
    labels: np.ndarray, colors: np.ndarray, where: np.ndarray, wanted: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Finds the nearest label of a color.

    Args:
        labels: (H, W) integers.
        colors: (H, W) color of each pixel's label.
        where: (H, W) bool, M pixels.
        wanted: (M,) color that is searched for each of them.

    Returns:
        (M,) the labels, and (M,) float32 their distances in pixels; infinite where the color does
        not occur.
    """
    found = labels[where]
    distance = np.full(len(wanted), np.inf, np.float32)
    for color in np.unique(wanted):
        chosen = wanted == color
        outside = np.where(colors == color, 0, 1).astype(np.uint8)
        if outside.all():
            continue
        far, nearest = cv2.distanceTransformWithLabels(
            outside, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
        )
        label_of = np.zeros(int(nearest.max()) + 1, labels.dtype)
        inside = outside == 0
        label_of[nearest[inside]] = labels[inside]
        found[chosen] = label_of[nearest[where][chosen]]
        distance[chosen] = far[where][chosen]
    return found, distance
