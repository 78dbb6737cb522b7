"""One-to-one matching of the pixels of two boundary maps."""

from typing import Tuple

import numpy as np

# Elements of one block of the search for pairs (int64: 64 MB).
_BLOCK_ELEMENTS = 1 << 23
# More pairs, at about 80 bytes each, are refused. An image of 12 megapixels with 72,000 contour
# pixels has 7 million.
_MOST_PAIRS = 1 << 25
_INDEX = np.int32  # positions in a map


def match_boundaries(
    predicted: np.ndarray, truth: np.ndarray, max_distance: float
) -> Tuple[np.ndarray, np.ndarray]:
    """Matches the pixels of two boundary maps one to one.

    The matching has the largest possible number of pairs and, among all such matchings, the
    smallest sum of distances. This is the matching of the Berkeley benchmark (Martin, Fowlkes and
    Malik, "Learning to detect natural image boundaries using local brightness, color, and texture
    cues", PAMI 2004, section 5). The benchmark's own program rounds distances to 1/100 pixel and
    samples the edges to outliers, so its counts may differ by about one pixel in a thousand. This
    implementation is exact.

    Args:
        predicted: (H, W) bool.
        truth: (H, W) bool.
        max_distance: largest distance between the centers of two matched pixels, inclusive, in
            pixels.

    Returns:
        Two arrays (K,) int, the positions of the K pairs in the flattened ``predicted`` and
        ``truth``. The positions in ``predicted`` ascend.

    Raises:
        ValueError: The maps differ in size, or have so many pairs of nearby pixels that these would
            not fit into memory.
    """
    if predicted.shape != truth.shape:
        raise ValueError(
            f"sizes of the two maps are {predicted.shape} and {truth.shape}; allowed: equal sizes"
        )
    first, second, distances = _near_pairs(predicted, truth, max_distance)
    if not distances.size:
        return first, second
    # Pixels with no candidate within max_distance cannot be matched and are left out of the graph.
    rows_of, rows = _numbered(first, predicted.size)
    columns_of, columns = _numbered(second, predicted.size)
    if len(rows_of) <= len(columns_of):
        rows, columns = _assign(rows, columns, distances)
    else:  # the run time grows with the side whose vertices are assigned
        columns, rows = _assign(columns, rows, distances)
        order = np.argsort(rows)
        rows, columns = rows[order], columns[order]
    return rows_of[rows], columns_of[columns]


def _near_pairs(
    predicted: np.ndarray, truth: np.ndarray, max_distance: float
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds all pairs of pixels within a distance.

    Returns:
        Three arrays (P,): positions in the flattened ``predicted``, positions in the flattened
        ``truth``, and distances in pixels.
    """
    height, width = predicted.shape
    down, right = (min(int(max_distance), side - 1) for side in (height, width))
    steps = np.stack(np.mgrid[-down : down + 1, -right : right + 1]).reshape(2, -1)
    lengths = np.hypot(*steps)
    steps, lengths = steps[:, lengths <= max_distance], lengths[lengths <= max_distance]
    padded = np.pad(predicted, ((down, down), (right, right)))
    padded_width = width + 2 * right
    true = np.flatnonzero(truth)
    row, column = np.divmod(true, width)
    place = (row + down) * padded_width + column + right  # of the true pixels in the padded map
    offset = steps[0] * padded_width + steps[1]
    # A few true pixels at a time: all of them times all steps would not fit into memory.
    at_once = max(1, _BLOCK_ELEMENTS // len(offset))
    parts = [(np.zeros(0, _INDEX), np.zeros(0, _INDEX))]
    num_pairs = 0
    for start in range(0, len(true), at_once):
        near = padded.reshape(-1)[place[start : start + at_once, None] + offset]  # (n, steps)
        which, step = np.nonzero(near)
        parts.append(((which + start).astype(_INDEX), step.astype(_INDEX)))
        num_pairs += len(which)
        if num_pairs > _MOST_PAIRS:
            raise ValueError(
                f"the boundaries of {height} x {width} pixels have more than {_MOST_PAIRS} pairs "
                f"of pixels within {max_distance:.1f} pixels; allowed: fewer, as in maps that are "
                "thinner or smaller"
            )
    which, step = (np.concatenate(columns) for columns in zip(*parts))
    second = true[which].astype(_INDEX)
    shift = (steps[0] * width + steps[1]).astype(_INDEX)
    return second + shift[step], second, lengths[step]


def _numbered(positions: np.ndarray, size: int) -> Tuple[np.ndarray, np.ndarray]:
    """Returns the unique positions in ascending order and each position's index among them."""
    occurs = np.zeros(size, dtype=bool)
    occurs[positions] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[positions]


def _assign(
    rows: np.ndarray, columns: np.ndarray, distances: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Solves the matching on compact indices, each of which occurs at least once.

    Returns:
        Two arrays (K,), the matched rows in ascending order and their columns.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    num_rows, num_columns = rows.max() + 1, columns.max() + 1
    # Each row gets a private outlier column, so that a matching of all rows always exists. Its
    # cost exceeds what one more pair can add along any augmenting path, so the number of pairs is
    # maximized first and the distances are minimized second. Few rows need their outlier column,
    # but with about as many rows as columns the solver is twenty times slower without them.
    alone = (num_rows + 1) * (distances.max() + 1)
    # The solver treats a weight of 0 as a missing edge. Each row pays the added 1 exactly once.
    indices = (
        np.concatenate([rows, np.arange(num_rows)]),
        np.concatenate([columns, num_columns + np.arange(num_rows)]),
    )
    # SciPy before 1.15 takes no other integers.
    indices = tuple(index.astype(np.int32) for index in indices)
    graph = csr_array((np.concatenate([distances + 1, np.full(num_rows, alone)]), indices))
    matched_rows, matched_columns = min_weight_full_bipartite_matching(graph)
    paired = matched_columns < num_columns
    return matched_rows[paired], matched_columns[paired]
