"""Thinning of binary masks to lines one pixel wide."""

from typing import Tuple

import numpy as np

# (row, column) offsets of the neighbors x1 … x8 of the paper: east, then counter-clockwise.
_NEIGHBORS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def thin(mask: np.ndarray) -> np.ndarray:
    """Thins a mask to connected lines of one pixel, as MATLAB's ``bwmorph(mask, "thin", Inf)``.

    This is the parallel algorithm with two subiterations of Guo and Hall, with the conditions G1,
    G2 and G3 of Lam, Lee and Suen, "Thinning methodologies", PAMI 1992, p. 879. Pixels outside the
    mask are background.

    Args:
        mask: (H, W), non-zero for foreground.

    Returns:
        (H, W) bool, a subset of the mask.
    """
    height, width = np.shape(mask)
    padded = np.zeros((height + 2, width + 2), dtype=bool)
    padded[1:-1, 1:-1] = mask
    flat = padded.reshape(-1)  # a view
    steps = np.array([row * (width + 2) + column for row, column in _NEIGHBORS])
    # Whether a pixel is removed depends on its neighbors alone. After the first round only pixels
    # that lost a neighbor in this or the previous subiteration are examined again.
    changed = [flat.copy(), flat.copy()]
    turn = 0
    while True:
        candidates = np.flatnonzero((changed[0] | changed[1]) & flat)
        if not candidates.size:
            break
        code = np.zeros(candidates.size, dtype=np.uint8)
        for bit, step in enumerate(steps):
            code |= flat[candidates + step].view(np.uint8) << bit
        removed = candidates[_REMOVABLE[turn][code]]
        flat[removed] = False
        # Neighbors of removed pixels lie inside the padding's outer edge.
        around = np.zeros_like(flat)
        around[removed[:, None] + steps] = True
        changed = [changed[1], around]
        turn = 1 - turn
    return padded[1:-1, 1:-1].copy()


def _removable() -> Tuple[np.ndarray, np.ndarray]:
    """Returns (256,) bool tables of removable pixels for both subiterations.

    Bit k - 1 of the index is the neighbor x_k.
    """

    x = (np.arange(256)[:, None] >> np.arange(8) & 1).astype(bool).T  # (8, 256)
    odd, even, next_odd = x[0::2], x[1::2], np.roll(x[0::2], -1, axis=0)  # x_2k-1, x_2k, x_2k+1
    crossings = (~odd & (even | next_odd)).sum(axis=0)
    thickness = np.minimum((odd | even).sum(axis=0), (even | next_odd).sum(axis=0))
    common = (crossings == 1) & (thickness >= 2) & (thickness <= 3)  # G1 and G2
    x1, x2, x3, x4, x5, x6, x7, x8 = x
    return common & ~((x2 | x3 | ~x8) & x1), common & ~((x6 | x7 | ~x4) & x5)  # G3, G3'


_REMOVABLE = _removable()
