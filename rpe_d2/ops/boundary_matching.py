"""One-to-one matching of boundary pixels."""

from typing import Tuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching


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
    first, second, distances = _near_pairs(predicted, truth, max_distance)
    if not distances.size:
        return first, second
    # Pixels without a partner in reach play no part.
    rows_of, rows = _numbered(first, predicted.size)
    columns_of, columns = _numbered(second, predicted.size)
    if len(rows_of) <= len(columns_of):
        rows, columns = _assign(rows, columns, distances)
    else:  # the time grows with the side that is assigned
        columns, rows = _assign(columns, rows, distances)
        order = np.argsort(rows)
        rows, columns = rows[order], columns[order]
    return rows_of[rows], columns_of[columns]


def _near_pairs(
    predicted: np.ndarray, truth: np.ndarray, max_distance: float
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions in the flattened maps of all pairs within a distance, and their distances."""
    height, width = predicted.shape
    down, right = (min(int(max_distance), side - 1) for side in (height, width))
    steps = np.stack(np.mgrid[-down : down + 1, -right : right + 1]).reshape(2, -1)
    lengths = np.hypot(*steps)
    steps, lengths = steps[:, lengths <= max_distance], lengths[lengths <= max_distance]
    padded = np.pad(predicted, ((down, down), (right, right)))
    padded_width = width + 2 * right
    second = np.flatnonzero(truth)
    row, column = np.divmod(second, width)
    place = (row + down) * padded_width + column + right  # of the true pixels in the padded map
    near = padded.reshape(-1)[place[:, None] + steps[0] * padded_width + steps[1]]  # (N, steps)
    which, step = np.nonzero(near)
    second = second[which]
    return second + steps[0][step] * width + steps[1][step], second, lengths[step]


def _numbered(positions: np.ndarray, size: int) -> Tuple[np.ndarray, np.ndarray]:
    """The different ones of positions below ``size``, ascending, and each position's index among them."""
    occurs = np.zeros(size, dtype=bool)
    occurs[positions] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[positions]


def _assign(
    rows: np.ndarray, columns: np.ndarray, distances: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """The matching on indices 0 … of rows and columns that each occur; rows ascending."""
    num_rows, num_columns = rows.max() + 1, columns.max() + 1
    # A column of its own for each row to stay alone in makes every row matchable. It costs more than what one more
    # pair may add along any exchange of partners: so the number of pairs comes first, their distances second. Few rows
    # need theirs, but where rows and columns are about as many the library is twenty times as slow without them.
    alone = (num_rows + 1) * (distances.max() + 1)
    # + 1: the library takes a weight of 0 for no edge; each row pays it once, so it changes nothing.
    graph = csr_array(
        (
            np.concatenate([distances + 1, np.full(num_rows, alone)]),
            (
                np.concatenate([rows, np.arange(num_rows)]),
                np.concatenate([columns, num_columns + np.arange(num_rows)]),
            ),
        )
    )
    matched_rows, matched_columns = min_weight_full_bipartite_matching(graph)
    paired = matched_columns < num_columns
    return matched_rows[paired], matched_columns[paired]
