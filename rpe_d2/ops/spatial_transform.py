"""Sampling grids of spatial transformers: affine, projective and thin plate spline.

A grid gives each pixel of the output the point of the input that it shows. Points are (x, y) in the
coordinates of ``grid_sample(align_corners=False)``: -1 and 1 are the outer edges of the first and
the last pixel. The transformations are those of Jaderberg et al., "Spatial Transformer Networks",
NIPS 2015, section 3.2.
"""

from typing import Tuple

import torch
from torch.nn import functional as F

# Lower bound of the determinant of a transformation that is inverted.
_MIN_DETERMINANT = 1e-6
# Coefficients of a spline are larger only if its control points are not in general position.
_LARGEST_COEFFICIENT = 1e9


def identity_grid(
    size: Tuple[int, int], dtype: torch.dtype = torch.float32, device: torch.device = "cpu"
) -> torch.Tensor:
    """Returns the centers of the pixels of an image.

    Args:
        size: (h, w) of the image.
        dtype: floating point type of the grid.
        device: device of the grid.

    Returns:
        (h, w, 2).
    """
    return affine_grid(torch.eye(2, 3, dtype=dtype, device=device)[None], size)[0]


def affine_grid(matrices: torch.Tensor, size: Tuple[int, int]) -> torch.Tensor:
    """Returns the grids of affine transformations (equation 1).

    Args:
        matrices: (N, 2, 3) floating point, each maps (x, y, 1) in the output to (x, y) in the
            input.
        size: (h, w) of the output.

    Returns:
        (N, h, w, 2).
    """
    with torch.autocast(device_type=matrices.device.type, enabled=False):
        return F.affine_grid(matrices, [len(matrices), 1, *size], align_corners=False)


def projective_grid(
    matrices: torch.Tensor, size: Tuple[int, int], min_depth: float = 0.1
) -> torch.Tensor:
    """Returns the grids of projective transformations.

    Args:
        matrices: (N, 3, 3) floating point, each maps homogeneous coordinates (x, y, 1) in the
            output to those in the input.
        size: (h, w) of the output.
        min_depth: lower bound of the third coordinate, by which the others are divided. The grid is
            exact where it is larger. At the horizon the division has no bound, and beyond it the
            image would appear a second time, upside down.

    Returns:
        (N, h, w, 2).
    """
    x, y = identity_grid(size, matrices.dtype, matrices.device).unbind(dim=-1)  # (h, w)
    rows = matrices[:, :, :, None, None]  # (N, 3, 3, 1, 1)
    # No matrix product, which has less precision under autocast.
    mapped = rows[:, :, 0] * x + rows[:, :, 1] * y + rows[:, :, 2]  # (N, 3, h, w)
    return (mapped[:, :2] / mapped[:, 2:].clamp(min=min_depth)).permute(0, 2, 3, 1)


def thin_plate_spline_grid(
    targets: torch.Tensor, control_points: torch.Tensor, size: Tuple[int, int]
) -> torch.Tensor:
    """Returns the grids of thin plate splines.

    Args:
        targets: (N, K, 2) floating point, the points of the input that the control points show.
        control_points: (K, 2) points of the output.
        size: (h, w) of the output.

    Returns:
        (N, h, w, 2).
    """
    points = identity_grid(size, targets.dtype, targets.device).flatten(0, 1)  # (h * w, 2)
    return thin_plate_spline(points, targets, control_points).unflatten(1, size)


def thin_plate_spline(
    points: torch.Tensor, targets: torch.Tensor, control_points: torch.Tensor
) -> torch.Tensor:
    """Maps points by the smoothest function that maps each control point to its target.

    The function has the least integral of squared second derivatives (Bookstein, "Principal Warps",
    PAMI 1989). Affine functions have none, and are reproduced. Gradients reach the targets only.

    Args:
        points: (P, 2) floating point.
        targets: (N, K, 2) targets of the control points.
        control_points: (K, 2) different points, at least three of which are not on a line.

    Returns:
        (N, P, 2).

    Raises:
        ValueError: The control points are not as described.
    """
    with torch.no_grad(), torch.autocast(device_type=points.device.type, enabled=False):
        weights = _interpolation_weights(points.double(), control_points.double()).to(targets)
    # The displacements are interpolated: at zero displacement the identity is exact.
    displacements = targets - control_points.to(targets)
    with torch.autocast(device_type=points.device.type, enabled=False):
        return points + weights @ displacements


def _interpolation_weights(points: torch.Tensor, control_points: torch.Tensor) -> torch.Tensor:
    """Returns the weights (P, K) of the targets of control points at each point."""
    count = len(control_points)
    linear = F.pad(control_points, (0, 1), value=1.0)  # (K, 3)
    system = control_points.new_zeros(count + 3, count + 3)
    system[:count, :count] = _radial_basis(control_points, control_points)
    system[:count, count:] = linear
    system[count:, :count] = linear.T
    # The coefficients of the spline are linear in the targets; three more equations are zero.
    unit_targets = torch.eye(count + 3, count, dtype=system.dtype, device=system.device)
    coefficients, failed = torch.linalg.solve_ex(system, unit_targets)
    if int(failed) or not float(coefficients.abs().max()) < _LARGEST_COEFFICIENT:
        raise ValueError(
            f"the {count} control points coincide or lie on a line; allowed: different points, at "
            "least three of them not on a line"
        )
    basis = [_radial_basis(points, control_points), F.pad(points, (0, 1), value=1.0)]
    return torch.cat(basis, dim=1) @ coefficients


def _radial_basis(points: torch.Tensor, control_points: torch.Tensor) -> torch.Tensor:
    """Returns r² log r² (P, K), up to a factor the response of a thin plate to a point load."""
    squared = (points[:, :1] - control_points[:, 0]).square()
    squared += (points[:, 1:] - control_points[:, 1]).square()
    return torch.special.xlogy(squared, squared)


def control_grid(side: int) -> torch.Tensor:
    """Returns control points on a regular grid that reaches the corners of the image.

    Args:
        side: number of points of a row and of a column, 2 or more.

    Returns:
        (side², 2) float32, row by row.
    """
    line = torch.linspace(-1, 1, side)
    return torch.cartesian_prod(line, line).flip(1)


def homographies(points: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the projective transformations that map four points to four targets.

    Args:
        points: (N, 4, 2) floating point, no three of them on a line.
        targets: (N, 4, 2).

    Returns:
        (N, 3, 3) matrices with a last element of 1.

    Raises:
        torch.linalg.LinAlgError: Three of the points are on a line.
    """
    x, y = points.unbind(dim=-1)  # (N, 4)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    # From (h1 x + h2 y + h3) / (h7 x + h8 y + 1) = u, and likewise for v.
    u, v = targets.unbind(dim=-1)
    equations = [
        torch.stack([x, y, one, zero, zero, zero, -x * u, -y * u], dim=-1),
        torch.stack([zero, zero, zero, x, y, one, -x * v, -y * v], dim=-1),
    ]
    elements = torch.linalg.solve(torch.cat(equations, dim=1), torch.cat([u, v], dim=1))
    return F.pad(elements, (0, 1), value=1.0).unflatten(1, (3, 3))


def invert_projective(matrices: torch.Tensor) -> torch.Tensor:
    """Inverts projective transformations.

    Args:
        matrices: (N, 3, 3) floating point. Determinants closer to 0 than 1e-6 are replaced by a
            number of that size, so that the result is finite and no matrix raises an error.

    Returns:
        (N, 3, 3).
    """
    first, second, third = matrices.unbind(dim=1)
    cofactors = torch.stack(
        [
            torch.linalg.cross(second, third),
            torch.linalg.cross(third, first),
            torch.linalg.cross(first, second),
        ],
        dim=2,
    )
    determinants = (first * cofactors[:, :, 0]).sum(dim=1)
    signs = torch.where(determinants < 0, -1.0, 1.0)
    sizes = determinants.abs().clamp(min=_MIN_DETERMINANT)
    return cofactors / (signs * sizes)[:, None, None]


def sample_grid(maps: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    """Samples maps bilinearly at the points of grids (equation 5). Beyond the border they are 0.

    Args:
        maps: (N, C, H, W) floating point.
        grids: (N, h, w, 2), not of lower precision than ``maps``.

    Returns:
        (N, C, h, w) like ``maps``. Half precision is interpolated in float32.
    """
    precise = torch.promote_types(maps.dtype, grids.dtype)
    sampled = F.grid_sample(maps.to(precise), grids.to(precise), align_corners=False)
    return sampled.to(maps.dtype)
