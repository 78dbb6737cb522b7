"""Ways to spread the labels or colors of a few pixels without training.

Source of the random walker: Grady, PAMI 2006. For colors, its linear system has real values at the
known pixels, as in Levin et al., "Colorization using optimization", SIGGRAPH 2004.
"""

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.linalg import splu
from skimage.segmentation import random_walker

# The smallest weight of an edge, as in scikit-image.
_LEAST_WEIGHT = 1e-10


def nearest(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Gives every pixel the value of the nearest known pixel.

    Args:
        values: (H, W) labels or (H, W, C) colors.
        known: (H, W) bool with at least one True.

    Returns:
        An array like ``values``.
    """
    row, column = ndimage.distance_transform_edt(
        ~known, return_distances=False, return_indices=True
    )
    return values[row, column]


def walk_labels(
    image: np.ndarray, labels: np.ndarray, known: np.ndarray, beta: float
) -> np.ndarray:
    """Gives every pixel the label that a random walk from it most probably reaches first.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W) int, read where ``known`` is True.
        known: (H, W) bool with at least one True.
        beta: how fast weights of edges decrease with the difference of colors.

    Returns:
        (H, W) labels.
    """
    present, indices = np.unique(labels[known], return_inverse=True)
    if len(present) == 1:
        return np.full_like(labels, present[0])
    seeds = np.zeros(labels.shape, np.int32)
    seeds[known] = indices + 1
    # The iterative solvers are inaccurate for large beta.
    found = random_walker(image / 255.0, seeds, beta=beta, mode="bf", channel_axis=-1)
    # Pixels that the walker cannot reach keep no label.
    return np.where(found > 0, present[np.maximum(found, 1) - 1], nearest(labels, known))


def walk_values(
    lightness: np.ndarray, values: np.ndarray, known: np.ndarray, beta: float
) -> np.ndarray:
    """Gives every pixel the mean of the values that random walks from it reach first.

    Args:
        lightness: (H, W) uint8.
        values: (H, W, C), read where ``known`` is True.
        known: (H, W) bool with at least one True.
        beta: how fast weights of edges decrease with the difference of lightness, as in
            scikit-image.

    Returns:
        (H, W, C) float64.
    """
    laplacian = _laplacian(lightness / 255.0, beta)
    fixed, free = np.flatnonzero(known), np.flatnonzero(~known)
    given = values.reshape(known.size, -1)[fixed].astype(float)
    rows = laplacian[free]
    found = splu(rows[:, free].tocsc()).solve(-(rows[:, fixed] @ given))
    result = np.empty((known.size, given.shape[1]))
    result[fixed], result[free] = given, found
    return result.reshape(*known.shape, -1)


def _laplacian(image: np.ndarray, beta: float) -> sparse.csr_matrix:
    """Returns the weighted Laplacian of the pixels of an image (H, W), each with 4 neighbors."""
    numbers = np.arange(image.size).reshape(image.shape)
    spread = image.std() or 1.0
    one, other, weights = [], [], []
    for axis in (0, 1):
        pairs = [np.delete(numbers, end, axis).ravel() for end in (-1, 0)]
        difference = image.ravel()[pairs[0]] - image.ravel()[pairs[1]]
        one.append(pairs[0])
        other.append(pairs[1])
        weights.append(np.exp(-beta * difference**2 / (10 * spread)) + _LEAST_WEIGHT)
    one, other, weights = map(np.concatenate, (one, other, weights))
    graph = sparse.coo_matrix((weights, (one, other)), shape=(image.size, image.size))
    graph = (graph + graph.T).tocsr()
    degrees = np.asarray(graph.sum(axis=1)).ravel()
    return (sparse.diags(degrees) - graph).tocsr()
