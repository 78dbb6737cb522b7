"""Non-maximum suppression across boundaries: ridges become lines."""

from typing import Tuple

import torch
from torch.nn import functional as F


def edge_nms(
    boundaries: torch.Tensor,
    smoothing: int = 4,
    radius: int = 1,
    border: int = 5,
    tolerance: float = 1.01,
) -> torch.Tensor:
    """Keeps the values of pixels that are largest across the boundary on which they lie, and sets the others to 0.

    The direction across is that of the largest curvature of the smoothed map, of either sign. A pixel stays where ``tolerance``
    times its value reaches the values, interpolated linearly, at 1 … ``radius`` pixels on both sides. This is what
    boundary detectors do before they are scored (Dollar & Zitnick, PAMI 2015, section 4; Kong & Fowlkes, CVPR 2018).
    They take the direction from a quotient of second derivatives, which is the same on a straight ridge and, unlike
    the curvature's own direction, undefined where the ridge follows a row.

    Args:
        boundaries: (..., H, W) floating point, >= 0.
        smoothing: radius, pixels, of the triangle filter before the derivatives; 0: none.
        radius: pixels on both sides that are compared.
        border: values are scaled by x / border at x pixels (0, 1, …) from the picture's edge, where they are unsure.
        tolerance: >= 1.

    Returns:
        Like ``boundaries``.

    Raises:
        ValueError: a number is out of range, or ``boundaries`` is no such map.
    """
    _check(boundaries, smoothing, radius, border, tolerance)
    maps = boundaries.reshape(-1, 1, *boundaries.shape[-2:])
    if maps.numel() == 0:
        return boundaries.clone()
    across_x, across_y = _across(_triangle_filter(maps, smoothing))
    kept = torch.ones_like(maps, dtype=torch.bool)
    for step in range(1, radius + 1):
        for signed in (-step, step):
            beside = _values_beside(maps, signed * across_x, signed * across_y)
            kept &= tolerance * maps >= beside
    result = maps * kept * _border_weight(maps, border)
    return result.reshape(boundaries.shape)


def _check(boundaries, smoothing, radius, border, tolerance) -> None:
    if boundaries.dim() < 2 or not boundaries.is_floating_point():
        raise ValueError(
            f"boundaries are {boundaries.dtype} of shape {tuple(boundaries.shape)}; "
            "allowed: floating point (..., H, W)"
        )
    for name, value, low in (
        ("smoothing", smoothing, 0),
        ("radius", radius, 1),
        ("border", border, 0),
        ("tolerance", tolerance, 1),
    ):
        if not value >= low:
            raise ValueError(f"{name} is {value}; allowed: {low} or more")


def _triangle_filter(maps: torch.Tensor, radius: int) -> torch.Tensor:
    """Weights 1, 2 … radius + 1 … 2, 1 in both directions; the edges' pixels are repeated outside."""
    if radius == 0:
        return maps
    up = torch.arange(1, radius + 2, device=maps.device, dtype=maps.dtype)
    weights = torch.cat([up, up[:-1].flip(0)])
    weights = weights / weights.sum()
    maps = F.pad(maps, [radius] * 4, mode="replicate")
    maps = F.conv2d(maps, weights.view(1, 1, 1, -1))
    return F.conv2d(maps, weights.view(1, 1, -1, 1))


def _slope(maps: torch.Tensor, dim: int) -> torch.Tensor:
    """Central differences, one-sided at the edges; 0 along a side of one pixel."""
    if maps.shape[dim] == 1:
        return torch.zeros_like(maps)
    return torch.gradient(maps, dim=dim)[0]


def _across(maps: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors x, y along the Hessian's eigenvector of the eigenvalue that is largest in size."""
    dx, dy = _slope(maps, -1), _slope(maps, -2)
    dxx, dxy, dyy = _slope(dx, -1), _slope(dx, -2), _slope(dy, -2)
    # Half the angle of (dxx - dyy, 2 dxy) belongs to the larger eigenvalue, the one at a right angle to the smaller. On a
    # ridge the smaller is the largest in size, on its flanks and in valleys the other one.
    angle = torch.atan2(2 * dxy, dxx - dyy) / 2
    upwards = dxx + dyy > 0
    sine, cosine = angle.sin(), angle.cos()
    return torch.where(upwards, cosine, -sine), torch.where(upwards, sine, cosine)


def _values_beside(maps: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Values at (x, y) pixels from each pixel, bilinear; the edges' pixels are repeated outside."""
    height, width = maps.shape[-2:]
    columns = torch.arange(width, device=maps.device, dtype=maps.dtype)
    rows = torch.arange(height, device=maps.device, dtype=maps.dtype).view(-1, 1)
    # grid_sample's -1 and 1 are the centres of the first and last pixel.
    grid_x = 2 * (columns + x) / max(width - 1, 1) - 1
    grid_y = 2 * (rows + y) / max(height - 1, 1) - 1
    grid = torch.stack([grid_x, grid_y], dim=-1).squeeze(1)  # (N, H, W, 2)
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=True)


def _border_weight(maps: torch.Tensor, border: int) -> torch.Tensor:
    """(H, W) 0-1."""
    sides = []
    for side in maps.shape[-2:]:
        place = torch.arange(side, device=maps.device, dtype=maps.dtype)
        distance = torch.minimum(place, side - 1 - place)
        # Of a small picture no more than the outer half.
        width = min(border, side // 2)
        sides.append((distance / width).clamp(max=1) if width else torch.ones_like(distance))
    return sides[0].view(-1, 1) * sides[1]
