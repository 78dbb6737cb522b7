"""Square windows that slide over maps: how they are labelled and how maps are read inside of them.

A window of n cells on a map with padding n // 2 on all sides is named by its first row and column on the padded map: there
are as many as cells, for even n one more each way. On the map itself it begins n // 2 cells earlier.
"""

import math
from typing import NamedTuple, Sequence, Tuple

import torch

NEGATIVE = -1
IGNORED = -2


class WindowTolerances(NamedTuple):
    """How a window may lie to an object (DeepMask, Pinheiro et al., NIPS 2015, section 3.2).

    An object is canonical in a window that has its centre and ``object_size`` times whose side is the longer side of its
    box. A window is positive for it within both positive tolerances, and negative if it is beyond one of the negative ones
    for every object.

    Attributes:
        object_size: share of a window's side, above 0 (the paper's 128 of 224 pixels).
        positive_shift, negative_shift: of the centres, each way, as shares of the window's side (16 and 32 of 224).
        positive_scale, negative_scale: of the size, in octaves (1 / 4 and 1).
    """

    object_size: float
    positive_shift: float
    positive_scale: float
    negative_shift: float
    negative_scale: float


def window_counts(size: Sequence[int], cells: int) -> Tuple[int, int]:
    """Windows of so many cells, each way, on a map of a size (H, W)."""
    return tuple(side + 1 - cells % 2 for side in size)


def label_windows(
    centers: torch.Tensor, sizes: torch.Tensor, boxes: torch.Tensor, tolerances: WindowTolerances
) -> torch.Tensor:
    """Which object a window shows.

    Args:
        centers: (A, 2) x, y in pixels.
        sizes: (A,) sides in pixels, above 0.
        boxes: (n, 4) of the objects, x0, y0, x1, y1; those without extent are never shown.
        tolerances: of windows' places; tolerances belong to the range.

    Returns:
        (A,) int64: the object that a window is positive for, of several the nearest; NEGATIVE; or IGNORED.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)  # (n,)
    present = torch.nonzero(sides > 0).squeeze(1)
    if len(present) == 0:
        return torch.full((len(centers),), NEGATIVE, dtype=torch.int64, device=centers.device)
    boxes, sides = boxes[present], sides[present]
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    shift = (centers[:, None] - middles).abs().amax(dim=2) / sizes[:, None]  # (A, n)
    scale = torch.log2(sizes[:, None] * tolerances.object_size / sides).abs()
    # Windows' places are sums and quotients: the edges of the ranges bear their rounding.
    slack = 1e-4
    near = (shift <= tolerances.positive_shift + slack) & (
        scale <= tolerances.positive_scale + slack
    )
    far = (shift >= tolerances.negative_shift - slack) | (
        scale >= tolerances.negative_scale - slack
    )
    # Distances in units of the tolerances; a tolerance may be 0.
    distance = torch.maximum(
        shift / max(tolerances.positive_shift, slack), scale / max(tolerances.positive_scale, slack)
    )
    nearest = distance.masked_fill(~near, torch.inf).argmin(dim=1)
    labels = torch.where(far.all(dim=1), NEGATIVE, IGNORED)
    return torch.where(near.any(dim=1), present[nearest], labels)


def crop_windows(
    maps: torch.Tensor, image: torch.Tensor, row: torch.Tensor, column: torch.Tensor, size: int
) -> torch.Tensor:
    """What maps hold inside of windows.

    Args:
        maps: (B, C, H, W), padded.
        image, row, column: (N,) int64: place in the batch, first row and first column.
        size: cells of a window, each way; windows lie inside of the maps.

    Returns:
        (N, C, size, size) like ``maps``.
    """
    steps = torch.arange(size, device=maps.device)
    rows = (row[:, None] + steps)[:, :, None]  # (N, size, 1)
    columns = (column[:, None] + steps)[:, None, :]  # (N, 1, size)
    cropped = maps.permute(0, 2, 3, 1)[image[:, None, None], rows, columns]  # (N, size, size, C)
    return cropped.permute(0, 3, 1, 2)


def assemble_windows(
    maps: torch.Tensor, image: torch.Tensor, row: torch.Tensor, column: torch.Tensor, size: int
) -> torch.Tensor:
    """Instance-sensitive maps put together: each of k x k parts of a window is copied from a map of its own.

    InstanceFCN (Dai et al., ECCV 2016), section 3.1: the module has no parameters. Cell (u, v) of a window is read at its own
    place on map i k + j, i = floor(u k / size), j = floor(v k / size), so that neighbouring windows share what they read.

    Args:
        maps: (B, k k, H, W), padded.
        image, row, column, size: as in :func:`crop_windows`.

    Returns:
        (N, size, size) like ``maps``.

    Raises:
        ValueError: the number of maps is no square.
    """
    parts = math.isqrt(int(maps.shape[1]))  # also where a tracer has made a tensor of it
    if parts * parts != maps.shape[1]:
        raise ValueError(f"there are {maps.shape[1]} maps; allowed: squares, 9, 25, 49")
    steps = torch.arange(size, device=maps.device)
    part = steps * parts // size
    place = part[:, None] * parts + part  # (size, size)
    rows = (row[:, None] + steps)[:, :, None]
    columns = (column[:, None] + steps)[:, None, :]
    return maps[image[:, None, None], place, rows, columns]
