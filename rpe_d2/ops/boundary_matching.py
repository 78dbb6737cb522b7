"""One-to-one matching of boundary pixels."""

from typing import Tuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree


def match_boundaries(
    predicted: np.ndarray, truth: np.ndarray, max_distance: float
) -> Tuple[np.ndarray, np.ndarray]:
    """Pairs of pixels, one from each map: as many as possible and, among those, of the smallest sum of distances.

    The matching of the Berkeley benchmark (Martin, Fowlkes and Malik, "Learning to detect natural image boundaries
    using local brightness, color, and texture cues", PAMI 2004, section 5). Its own program rounds distances to 1/100
    pixel and lets a pixel stay alone in only a few random ways, so it may be a pixel off in a thousand; this is exact.

    Args:
        predicted, truth: (H, W) bool.
        max_distance: in pixels, between the centres of the two pixels of a pair; inclusive.

    Returns:
        Two arrays (K,) int: the positions of the K pairs in the flattened maps, ascending in ``predicted``.

    Raises:
        ValueError: the maps differ in size.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"maps of one size are matched, found {predicted.shape} and {truth.shape}")
    points = [np.flatnonzero(side) for side in (predicted, truth)]
    rows, columns, distances = _near_pairs(*points, predicted.shape[1], max_distance)
    if not distances.size:
        return rows, columns
    # Pixels without a partner in reach play no part.
    rows_of, rows = np.unique(rows, return_inverse=True)
    columns_of, columns = np.unique(columns, return_inverse=True)
    if len(rows_of) <= len(columns_of):
        first, second = _assign(rows, columns, distances)
    else:  # the time grows with the side that is assigned
        second, first = _assign(columns, rows, distances)
        order = np.argsort(first)
        first, second = first[order], second[order]
    return points[0][rows_of[first]], points[1][columns_of[second]]


def _near_pairs(
    first: np.ndarray, second: np.ndarray, width: int, max_distance: float
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of all pairs within a distance, and their distances; points are positions in a map of that width."""
    if not (first.size and second.size):
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, np.zeros(0)
    trees = [cKDTree(np.column_stack(np.divmod(points, width))) for points in (first, second)]
    pairs = trees[0].sparse_distance_matrix(trees[1], max_distance, output_type="ndarray")
    return pairs["i"], pairs["j"], pairs["v"]


def _assign(
    rows: np.ndarray, columns: np.ndarray, distances: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """The matching on indices 0 … of rows and columns that each occur; rows ascending."""
    num_rows, num_columns = rows.max() + 1, columns.max() + 1
    # A column of its own for each row to stay alone in makes every row matchable. It costs more than what one more
    # pair may add along any exchange of partners: so the number of pairs comes first, their distances second.
    alone = (num_rows + 1) * (distances.max() + 1)
    # + 1: the library takes a weight of 0 for no edge; each row pays it once, so it changes nothing.
    graph = csr_array(
        (
            np.concatenate([distances + 1, np.full(num_rows, alone)]),
            (
                np.concatenate([rows, np.arange(num_rows)]),
                np.concatenate([columns, num_columns + np.arange(num_rows)]),
            ),
        ),
        shape=(num_rows, num_columns + num_rows),
    )
    matched_rows, matched_columns = min_weight_full_bipartite_matching(graph)
    paired = matched_columns < num_columns
    return matched_rows[paired], matched_columns[paired]
