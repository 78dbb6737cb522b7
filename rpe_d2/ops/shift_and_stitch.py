"""Maps taken apart into shifted, coarser ones, and put together again."""

import torch
from torch.nn import functional as F


def split_shifts(maps: torch.Tensor, step: int) -> torch.Tensor:
    """Takes maps apart into one coarser map for each shift of a grid.

    Args:
        maps: (B, C, H, W); H and W are multiples of the step.
        step: s, distance of the cells of a coarse map.

    Returns:
        (s * s * B, C, H / s, W / s). The maps of the shift (i, j), which hold the cells
        ``maps[..., i::s, j::s]``, start at (i * s + j) * B.
    """
    batch, channels, height, width = maps.shape
    cells = maps.reshape(batch, channels, height // step, step, width // step, step)
    cells = cells.permute(3, 5, 0, 1, 2, 4)  # (s, s, B, C, H / s, W / s)
    return cells.reshape(step * step * batch, channels, height // step, width // step)


def stitch_shifts(maps: torch.Tensor, step: int) -> torch.Tensor:
    """Puts the maps of all shifts together, the inverse of :func:`split_shifts`.

    Args:
        maps: (s * s * B, C, h, w) in the order of :func:`split_shifts`.
        step: s, the number of shifts in each direction.

    Returns:
        (B, C, h * s, w * s).
    """
    _, channels, height, width = maps.shape
    cells = maps.reshape(step, step, -1, channels, height, width)
    cells = cells.permute(2, 3, 4, 0, 5, 1)  # (B, C, h, s, w, s)
    return cells.reshape(-1, channels, height * step, width * step)


def pool_shifts(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Pools maps to the maxima of blocks, once for each shift of the blocks.

    Args:
        maps: (B, C, H, W). H + 1 and W + 1 are multiples of the size, so that every shift has as
            many blocks.
        size: s, side of a block.

    Returns:
        (s * s * B, C, (H + 1) / s - 1, (W + 1) / s - 1) in the order of :func:`split_shifts`. They
        hold the maxima of all windows of s x s cells.
    """
    shifted = [
        F.max_pool2d(maps[..., row:, column:], size)
        for row in range(size)
        for column in range(size)
    ]
    return torch.cat(shifted)
