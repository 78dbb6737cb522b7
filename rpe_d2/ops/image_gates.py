"""Gates of spatial propagation that are computed from an image, without a network."""

import torch
from torch.nn import functional as F

from .propagation import spatial_propagation

__all__ = ["image_gates", "spread_known"]

# Offsets (rows, columns) to the previous, the same and the next neighbor of each direction.
_NEIGHBORS = (
    ((-1, -1), (0, -1), (1, -1)),  # left to right
    ((-1, 1), (0, 1), (1, 1)),  # right to left
    ((-1, -1), (-1, 0), (-1, 1)),  # top down
    ((1, -1), (1, 0), (1, 1)),  # bottom up
)


def image_gates(image: torch.Tensor, contrast: float, reach: float = 0.95) -> torch.Tensor:
    """Computes gates that are open within regions of the image and closed across its edges.

    The gate to a neighbor is ``reach / 3 * exp(-d / contrast)`` with the distance d of the two
    pixels, the mean over channels of the absolute difference.

    Args:
        image: (B, C, H, W) floating point.
        contrast: the difference at which a gate falls to a third, above 0.
        reach: sum of the gates of a direction where the image is constant, above 0 and below 1.
            A value decays to about a third over 1 / (1 - reach) pixels.

    Returns:
        (B, 1, 12, H, W) gates of :func:`rpe_d2.ops.propagation.spatial_propagation`.

    Raises:
        ValueError: A value is not allowed.
    """
    if not contrast > 0:
        raise ValueError(f"contrast is {contrast}; allowed: above 0")
    if not 0 < reach < 1:
        raise ValueError(f"reach is {reach}; allowed: above 0 and below 1")
    height, width = image.shape[-2:]
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    gates = []
    for offsets in _NEIGHBORS:
        for row, column in offsets:
            rows = slice(1 + row, 1 + row + height)
            neighbor = padded[:, :, rows, 1 + column : 1 + column + width]
            distance = (image - neighbor).abs().mean(dim=1)
            gates.append(torch.exp(-distance / contrast))
    return reach / 3 * torch.stack(gates, dim=1)[:, None]


def spread_known(
    maps: torch.Tensor, known: torch.Tensor, gates: torch.Tensor, num_units: int = 2
) -> torch.Tensor:
    """Propagates the values of known pixels to all others.

    An unknown pixel gets the mean of the known ones, weighted by the gates on the way. Known pixels
    keep their values. Pixels that nothing reaches get the value of the nearest known one.

    Args:
        maps: (C, H, W) floating point; values at unknown pixels are ignored.
        known: (H, W) bool, where the values are known; at least one pixel.
        gates: (1, 1, 12, H, W), or with 4 instead of 12, at least 0 with a sum of at most 1 in each
            direction.
        num_units: number of propagations.

    Returns:
        (C, H, W) like ``maps``, within their range.

    Raises:
        ValueError: No pixel is known.
    """
    if not bool(known.any()):
        raise ValueError("no pixel is known; allowed: one or more")
    # In double precision, because weights decay exponentially with the distance.
    weighted = torch.cat([maps, torch.ones_like(maps[:1])]).double() * known  # (C + 1, H, W)
    gates = gates.double() * ~known
    for _ in range(num_units):
        weighted = spatial_propagation(weighted[None], gates, "mean")[0]
    weight = weighted[-1:]
    spread = weighted[:-1] / weight.clamp(min=torch.finfo(torch.float64).tiny)
    if bool((weight == 0).any()):
        from scipy.ndimage import distance_transform_edt  # slow to import, and rarely needed

        row, column = distance_transform_edt(
            ~known.cpu().numpy(), return_distances=False, return_indices=True
        )
        spread = torch.where(weight > 0, spread, maps.double()[:, row, column])
    return torch.where(known, maps, spread.to(maps.dtype))
