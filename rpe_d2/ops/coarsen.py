"""Simulation of coarse masks from ground-truth masks."""

from typing import Optional

import torch
from torch.nn import functional as F


def coarsen_masks(
    masks: torch.Tensor,
    factor: int = 4,
    jitter: int = 2,
    generator: Optional[torch.Generator] = None,
) -> torch.Tensor:
    """Shifts each mask by a random offset and reduces its resolution.

    Args:
        masks: (R, H, W) bool, or floating point in 0 to 1.
        factor: side of a cell in pixels. A cell is foreground if at least half of it is.
        jitter: largest offset in x and in y, in pixels. Offsets are uniform integers.
        generator: CPU generator of the offsets. Defaults to torch's global one.

    Returns:
        (R, H, W) float32, 0 or 1, constant within each cell.
    """
    count, height, width = masks.shape
    offsets = torch.randint(-jitter, jitter + 1, (count, 2), generator=generator)
    padded = F.pad(masks.float(), (jitter,) * 4)
    moved = [
        mask[jitter + dy : jitter + dy + height, jitter + dx : jitter + dx + width]
        for mask, (dy, dx) in zip(padded, offsets.tolist())
    ]
    if not moved:
        return masks.new_zeros(masks.shape, dtype=torch.float32)
    cells = F.avg_pool2d(torch.stack(moved)[:, None], factor, ceil_mode=True)
    inside = (cells >= 0.5).float()
    return F.interpolate(inside, scale_factor=factor)[:, 0, :height, :width]
