"""Spatial embeddings: pixels point to the center of their instance, which has its own bandwidth."""

from typing import NamedTuple, Optional

import torch
from torch.utils.checkpoint import checkpoint

from .lovasz import lovasz_hinge
from .point_groups import point_groups

# Elements of the soft masks that exist at a time in training (8 MB in float32).
_BLOCK_ELEMENTS = 1 << 21
# The exponential of the bandwidth output is taken at this scale, as in the authors' release.
_SCALE = 10.0
# A larger exponent is infinite after the multiplication with squared distances.
_LARGEST_EXPONENT = 40.0


class SpatialTerms(NamedTuple):
    """The three scalar terms of the loss, without weights."""

    mask: torch.Tensor
    bandwidth: torch.Tensor
    seed: torch.Tensor


def spatial_kernel(
    positions: torch.Tensor, centers: torch.Tensor, bandwidths: torch.Tensor
) -> torch.Tensor:
    """Computes how much pixels belong to instances, ``exp(-|e - C|^2 / (2 sigma^2))``.

    See Neven et al., *Instance Segmentation by Jointly Optimizing Spatial Embeddings and Clustering
    Bandwidth* (CVPR 2019), section 3. The network predicts b with ``1 / (2 sigma^2) =
    exp(10 b)``, so that any output is a bandwidth.

    Args:
        positions: (..., 2) positions e that the pixels point to.
        centers: (..., 2) centers C of the instances.
        bandwidths: (..., 1) outputs b for a circle, or (..., 2) for an ellipse along the axes.
            The leading dimensions of all three broadcast.

    Returns:
        (...) values in 0 to 1.
    """
    precision = (_SCALE * bandwidths).clamp(max=_LARGEST_EXPONENT).exp()
    return (-((positions - centers).square() * precision).sum(dim=-1)).exp()


def spatial_loss(
    positions: torch.Tensor,
    bandwidths: torch.Tensor,
    seeds: torch.Tensor,
    labels: torch.Tensor,
    *,
    center_positions: Optional[torch.Tensor] = None,
    foreground_weight: float = 10.0,
) -> SpatialTerms:
    """Maximizes the IoU of the masks that the kernels of all instances give.

    See Neven et al. (CVPR 2019), section 3. The center and the bandwidth of an instance are means
    over its pixels.

    * mask: the mean over instances of the Lovász hinge of ``2 phi - 1`` over all pixels, where phi
      is the kernel, see :func:`spatial_kernel` and :func:`rpe_d2.ops.lovasz.lovasz_hinge`,
    * bandwidth: the mean over instances of the variance of the bandwidth outputs of their pixels,
    * seed: the mean over all pixels of the squared distance of the seed score from phi of the
      pixel's own instance, times ``foreground_weight``, and from 0 in the background.

    The authors' release weights them 1, 10 and 1. Masks are computed for a few instances at a time,
    and again in the backward pass, so that memory is linear in the pixels.

    Args:
        positions: (N, 2) floating-point positions that the pixels point to.
        bandwidths: (N, 1) or (N, 2) bandwidth outputs.
        seeds: (N,) seed scores in 0 to 1.
        labels: (N,) integer instance of each pixel, -1 for background. Pixels with lower labels are
            ignored.
        center_positions: (N, 2) positions whose means are the centers. None means ``positions``,
            so that centers are learned; the pixels' own positions give the centroids.
        foreground_weight: weight of pixels of instances in the seed term, >= 0.

    Returns:
        The three terms. Without labeled pixels they are zeros that support backpropagation.

    Raises:
        ValueError: A shape does not fit, or a value is out of range.
    """
    _check(positions, bandwidths, seeds, labels, center_positions, foreground_weight)
    counted = torch.nonzero(labels >= -1).squeeze(1)
    positions, bandwidths, seeds = positions[counted], bandwidths[counted], seeds[counted]
    labels = labels[counted]
    groups = point_groups(positions, labels)
    nothing = positions[:0].sum() + bandwidths[:0].sum() + seeds[:0].sum()
    if len(groups.sizes) == 0:
        background = seeds.square().sum() / max(len(labels), 1)
        return SpatialTerms(nothing, nothing, background + nothing)
    inside = groups.points
    where = positions if center_positions is None else center_positions[counted]
    centers = groups.means(where[inside])  # (Q, 2)
    means = groups.means(bandwidths[inside])  # (Q, 1 or 2)
    spread = (bandwidths[inside] - means.detach()[groups.group]).square().mean(dim=1)
    numbers = torch.full_like(labels, -1)
    numbers[inside] = groups.group
    own = spatial_kernel(positions[inside], centers[groups.group], means[groups.group]).detach()
    seed = seeds[labels < 0].square().sum()
    seed = seed + foreground_weight * (seeds[inside] - own).square().sum()
    return SpatialTerms(
        mask=_mask_term(positions, centers, means, numbers),
        bandwidth=groups.means(spread).mean(),
        seed=seed / len(labels),
    )


def _mask_term(positions, centers, bandwidths, numbers) -> torch.Tensor:
    """Returns the mean Lovász hinge of the masks of all instances."""
    count = len(centers)
    at_once = max(1, _BLOCK_ELEMENTS // len(positions))
    total = positions.new_zeros(())
    for start in range(0, count, at_once):
        part = slice(start, start + at_once)
        rows = torch.arange(count, device=numbers.device)[part]
        block = positions, centers[part], bandwidths[part], rows, numbers
        if count > at_once:
            total = total + checkpoint(
                _sum_of_masks, *block, use_reentrant=False, preserve_rng_state=False
            )
        else:
            total = total + _sum_of_masks(*block)
    return total / count


def _sum_of_masks(positions, centers, bandwidths, rows, numbers) -> torch.Tensor:
    phi = spatial_kernel(positions, centers[:, None], bandwidths[:, None])  # (R, N)
    return lovasz_hinge(2 * phi - 1, rows[:, None] == numbers).sum()


def _check(positions, bandwidths, seeds, labels, center_positions, foreground_weight):
    count = len(positions)
    if positions.shape != (count, 2) or not positions.is_floating_point():
        raise ValueError(
            f"positions are {positions.dtype} of shape {tuple(positions.shape)}; "
            "allowed: floating point (N, 2)"
        )
    if bandwidths.shape not in ((count, 1), (count, 2)):
        raise ValueError(
            f"bandwidths have shape {tuple(bandwidths.shape)}; allowed: ({count}, 1 or 2)"
        )
    for name, values in (("seeds", seeds), ("labels", labels)):
        if values.shape != (count,):
            raise ValueError(f"{name} have shape {tuple(values.shape)}; allowed: ({count},)")
    if center_positions is not None and center_positions.shape != (count, 2):
        shape = tuple(center_positions.shape)
        raise ValueError(f"center_positions have shape {shape}; allowed: ({count}, 2)")
    if not 0 <= foreground_weight < float("inf"):
        raise ValueError(f"foreground_weight is {foreground_weight}; allowed: >= 0, finite")
