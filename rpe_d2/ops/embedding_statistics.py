"""Statistics of the orientation, distance, position and size that embeddings encode.

Kong & Fowlkes (CVPR 2018) observe that embeddings of boundaries encode the orientation of edges and
the distance to them, and that embeddings of instances encode their position and size. The functions
of this module quantify this.
"""

from typing import Tuple

import torch

__all__ = [
    "angle_colors",
    "kernel_row",
    "orientation_correlation",
    "plane_angles",
    "variance_explained",
]


def plane_angles(x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Computes the angles of embeddings in the plane in which the chosen ones vary most.

    Args:
        x: (D, H, W) floating point, D >= 2.
        chosen: (H, W) bool, the pixels whose two principal axes span the plane. Angles are measured
            around their mean.

    Returns:
        (H, W) angles in -pi to pi.
    """
    if x.dim() != 3 or len(x) < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; allowed: (D, H, W) with D of 2 or more")
    points = x[:, chosen].double()  # (D, M)
    if points.shape[1] == 0:
        return torch.zeros(x.shape[1:], dtype=x.dtype)
    mean = points.mean(dim=1, keepdim=True)
    centered = points - mean
    _, vectors = torch.linalg.eigh(centered @ centered.T)
    first, second = ((x.flatten(1).double() - mean).T @ vectors[:, -2:].flip(1)).unbind(1)
    return torch.atan2(second, first).view(x.shape[1:]).to(x.dtype)


def angle_colors(angles: torch.Tensor, doubled: bool = False) -> torch.Tensor:
    """Colors angles by hue.

    Args:
        angles: (H, W) in radians.
        doubled: whether opposite angles have the same color. The embeddings of an edge and of the
            edge turned by 180 degrees are then one point, as on a Möbius strip.

    Returns:
        (3, H, W) float32 RGB in 0-1.
    """
    hue = angles.float() * (2 if doubled else 1)
    phases = hue.new_tensor([0.0, 2 * torch.pi / 3, 4 * torch.pi / 3]).view(3, 1, 1)
    return 0.5 + 0.5 * torch.cos(hue - phases)


def orientation_correlation(
    angles: torch.Tensor, orientations: torch.Tensor
) -> Tuple[float, float]:
    """Computes the correlation between angles and orientations of edges.

    Orientations are equal after half a turn, so both the angle and the doubled angle are compared
    with twice the orientation. The correlation is the length of the mean of exp(i (k a - 2 o)), or
    of its mirror image exp(i (k a + 2 o)), whichever is larger. It is 1 if the two differ only by
    an offset, and near 0 if they are independent.

    Args:
        angles: (M,) angles of embeddings in radians.
        orientations: (M,) orientations of edges in radians.

    Returns:
        The correlations of the angles, k = 1, and of the doubled angles, k = 2, in 0-1. NaN for
        M = 0.
    """
    values = []
    for k in (1, 2):
        lengths = [
            torch.polar(torch.ones_like(angles), k * angles + sign * 2 * orientations).mean().abs()
            for sign in (-1, 1)
        ]
        values.append(float(torch.stack(lengths).max()))
    return values[0], values[1]


def variance_explained(x: torch.Tensor, values: torch.Tensor) -> float:
    """Computes the fraction of variance that a linear function of embeddings explains (R squared).

    Args:
        x: (M, D) embeddings.
        values: (M,) floating point.

    Returns:
        R squared in 0-1. NaN if all values are equal or if M <= D + 1, when any values would fit.
    """
    if len(x) <= x.shape[1] + 1 or not len(values) or values.min() == values.max():
        return float("nan")
    design = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64, device=x.device)], 1)
    target = values.double()[:, None]
    # Minimum-norm least squares, because unit vectors of a cluster are nearly dependent.
    solution = torch.linalg.pinv(design) @ target
    residual = (target - design @ solution).square().sum()
    total = (target - target.mean()).square().sum()
    return float((1 - residual / total).clamp(0, 1))


def kernel_row(x: torch.Tensor, row: int, column: int, bandwidth: float) -> torch.Tensor:
    """Computes the kernel between one pixel and all others, the pixel's row of G in mean shift.

    Args:
        x: (D, H, W) unit vectors.
        row, column: the pixel.
        bandwidth: bandwidth of the kernel, > 0.

    Returns:
        (H, W) exp((x.y - 1) / bandwidth^2) in 0-1.
    """
    cosine = torch.einsum("dhw,d->hw", x, x[:, row, column])
    return ((cosine - 1) / bandwidth**2).exp()
