"""Non-maximum suppression of boundary maps, and the direction of boundaries."""

import math
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
    """Suppresses pixels that are not a local maximum across the boundary on which they lie.

    The direction across the boundary is the eigenvector of the smoothed map's Hessian whose
    eigenvalue has the largest magnitude. A pixel is kept if ``tolerance`` times its value is at
    least the bilinearly interpolated values at 1 … ``radius`` pixels on both sides, and is set to 0
    otherwise.

    This is the usual step before boundary detectors are scored (Dollar & Zitnick, PAMI 2015,
    section 4; Kong & Fowlkes, CVPR 2018). The cited implementations take the direction from a
    quotient of second derivatives. It is the same on a straight ridge, but it is undefined where
    the ridge is parallel to a row.

    Args:
        boundaries: (..., H, W) floating point, >= 0.
        smoothing: radius in pixels of the triangle filter applied before the derivatives. 0
            disables it.
        radius: number of pixels compared on each side.
        border: values at distance d = 0, 1, … pixels from the edge of the image are multiplied by
            d / border (at most 1), because boundaries are unreliable there.
        tolerance: factor >= 1 on the pixel's own value in the comparison.

    Returns:
        A tensor like ``boundaries``.

    Raises:
        ValueError: A number is out of range, or ``boundaries`` has a wrong shape or dtype.
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


def edge_orientation(boundaries: torch.Tensor, smoothing: int = 4) -> torch.Tensor:
    """Computes the direction across the boundary at each pixel, as :func:`edge_nms` uses it.

    Edge Boxes need it (Zitnick & Dollar, ECCV 2014).

    Args:
        boundaries: (..., H, W) floating point, >= 0.
        smoothing: see :func:`edge_nms`.

    Returns:
        Angles from the x axis to the y axis, which points down, in radians from 0 to below pi.

    Raises:
        ValueError: ``smoothing`` is out of range, or ``boundaries`` has a wrong shape or dtype.
    """
    _check(boundaries, smoothing, 1, 0, 1)
    maps = boundaries.reshape(-1, 1, *boundaries.shape[-2:])
    if maps.numel() == 0:
        return boundaries.clone()
    across_x, across_y = _across(_triangle_filter(maps, smoothing))
    angles = torch.atan2(across_y, across_x) % math.pi
    # The remainder of a tiny negative angle is rounded to pi.
    angles = torch.where(angles < math.pi, angles, torch.zeros_like(angles))
    return angles.reshape(boundaries.shape)


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
    """Convolves both axes with the weights 1, 2 … radius + 1 … 2, 1; the padding repeats edges."""
    if radius == 0:
        return maps
    up = torch.arange(1, radius + 2, device=maps.device, dtype=maps.dtype)
    weights = torch.cat([up, up[:-1].flip(0)])
    weights = weights / weights.sum()
    maps = F.pad(maps, [radius] * 4, mode="replicate")
    maps = F.conv2d(maps, weights.view(1, 1, 1, -1))
    return F.conv2d(maps, weights.view(1, 1, -1, 1))


def _slope(maps: torch.Tensor, dim: int) -> torch.Tensor:
    """Computes central differences, one-sided at the edges, and 0 along an axis of one pixel."""
    if maps.shape[dim] == 1:
        return torch.zeros_like(maps)
    return torch.gradient(maps, dim=dim)[0]


def _across(maps: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Computes x and y of the unit eigenvector whose Hessian eigenvalue is largest in magnitude."""
    dx, dy = _slope(maps, -1), _slope(maps, -2)
    dxx, dxy, dyy = _slope(dx, -1), _slope(dx, -2), _slope(dy, -2)
    # Half the angle of (dxx - dyy, 2 dxy) is the direction of the larger eigenvalue; the smaller
    # one's is perpendicular. The smaller one has the largest magnitude on a ridge, and the larger
    # one on its flanks and in valleys.
    angle = torch.atan2(2 * dxy, dxx - dyy) / 2
    upwards = dxx + dyy > 0
    sine, cosine = angle.sin(), angle.cos()
    return torch.where(upwards, cosine, -sine), torch.where(upwards, sine, cosine)


def _values_beside(maps: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Interpolates the values at (x, y) pixels from each pixel; the padding repeats edges."""
    height, width = maps.shape[-2:]
    columns = torch.arange(width, device=maps.device, dtype=maps.dtype)
    rows = torch.arange(height, device=maps.device, dtype=maps.dtype).view(-1, 1)
    # In grid_sample -1 and 1 are the centers of the first and the last pixel.
    grid_x = 2 * (columns + x) / max(width - 1, 1) - 1
    grid_y = 2 * (rows + y) / max(height - 1, 1) - 1
    grid = torch.stack([grid_x, grid_y], dim=-1).squeeze(1)  # (N, H, W, 2)
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=True)


def _border_weight(maps: torch.Tensor, border: int) -> torch.Tensor:
    """Returns (H, W) weights in 0 to 1."""
    sides = []
    for side in maps.shape[-2:]:
        place = torch.arange(side, device=maps.device, dtype=maps.dtype)
        distance = torch.minimum(place, side - 1 - place)
        # In a small image the two borders must not overlap.
        width = min(border, side // 2)
        sides.append((distance / width).clamp(max=1) if width else torch.ones_like(distance))
    return sides[0].view(-1, 1) * sides[1]
