"""Clusters of points that lie in balls: groupings of embeddings that are not on a sphere."""

from typing import Tuple

import torch

from .point_groups import distances

# Elements of one block of distances (16 MB in float32).
_BLOCK_ELEMENTS = 1 << 22
# Mean shift with a flat kernel moves in finitely many steps; nearly all of them are the first few.
_MOST_SHIFTS = 10
# Bins of the histogram that can be peaks.
_MOST_BINS = 4096


@torch.no_grad()
def cluster_by_threshold(
    x: torch.Tensor, bandwidth: float, max_clusters: int
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Clusters points by thresholding around a center, one cluster after the other.

    See De Brabandere et al. (arXiv 1708.02551), section 3. The first point without a cluster is
    the start of a mean shift with a flat kernel: all points without a cluster within the bandwidth
    are selected, and their mean is the next center, until the selection does not change. The
    selected points are a cluster. The paper starts at random points; in the order of the points,
    results do not depend on chance.

    Every cluster takes at most ten steps of O(N D) time.

    Args:
        x: (N, D) floating-point points.
        bandwidth: radius of the kernel, > 0.
        max_clusters: number of clusters after which the remaining points are left out.

    Returns:
        Labels (N,) int64, 0 to K - 1 in the order of discovery, -1 for points that are left out,
        and the means (K, D) of the clusters.

    Raises:
        ValueError: A shape does not fit, or a value is out of range.
    """
    _check(x, bandwidth=bandwidth, max_clusters=max_clusters)
    labels = torch.full((len(x),), -1, dtype=torch.long, device=x.device)
    free = torch.arange(len(x), device=x.device)
    centers = []
    while len(free) and len(centers) < max_clusters:
        candidates = x[free]
        center, selected = candidates[0], None
        for _ in range(_MOST_SHIFTS):
            near = (candidates - center).square().sum(dim=1) <= bandwidth**2
            # Far from the mean of a ring, say, there may be no point.
            if not bool(near.any()) or (selected is not None and torch.equal(near, selected)):
                break
            selected = near
            center = candidates[near].mean(dim=0)
        if selected is None:  # a point that is NaN or infinite
            selected = torch.zeros(len(free), dtype=torch.bool, device=x.device)
            selected[0] = True
        else:
            labels[free[selected]] = len(centers)
            centers.append(center)
        free = free[~selected]
    return labels, torch.stack(centers) if centers else x.new_zeros(0, x.shape[1])


@torch.no_grad()
def histogram_peaks(
    x: torch.Tensor, bin_width: float, min_distance: float, max_peaks: int
) -> torch.Tensor:
    """Finds the peaks of the histogram of points.

    See Newell et al. (NIPS 2017), section 3.4: peaks of the histogram of the tags of foreground
    pixels are the tags of the instances. Bins are taken in descending order of their counts, and
    those near a peak that was found before are suppressed. In more than one dimension the bins are
    cubes. At most 4,096 of the fullest bins can be peaks.

    Args:
        x: (N, D) floating-point points.
        bin_width: side of a bin, > 0.
        min_distance: distance of two peaks, > 0.
        max_peaks: largest number of peaks.

    Returns:
        (K, D) peaks, the mean of the points of each bin, the fullest bin first.

    Raises:
        ValueError: A shape does not fit, or a value is out of range.
    """
    _check(x, bin_width=bin_width, min_distance=min_distance, max_peaks=max_peaks)
    x = x[x.isfinite().all(dim=1)]
    if len(x) == 0:
        return x
    cells = (x / bin_width).floor()
    _, index, counts = torch.unique(cells, dim=0, return_inverse=True, return_counts=True)
    means = x.new_zeros(len(counts), x.shape[1]).index_add_(0, index, x) / counts[:, None]
    order = torch.argsort(counts, descending=True, stable=True)[:_MOST_BINS]
    means = means[order]
    free = torch.ones(len(means), dtype=torch.bool, device=x.device)
    peaks = []
    while len(peaks) < max_peaks and bool(free.any()):
        first = int(torch.nonzero(free)[0])
        peaks.append(first)
        far = (means - means[first]).square().sum(dim=1) >= min_distance**2
        free &= far
        free[first] = False
    return means[peaks]


@torch.no_grad()
def nearest_center(
    x: torch.Tensor, centers: torch.Tensor, max_distance: float = float("inf")
) -> torch.Tensor:
    """Returns (N,) int64 the nearest of centers (K, D) to each of points (N, D).

    It is -1 for points that are farther from all centers than ``max_distance``, and for K = 0.
    """
    nearest = torch.full((len(x),), -1, dtype=torch.long, device=x.device)
    if len(centers) == 0:
        return nearest
    rows = max(1, _BLOCK_ELEMENTS // len(centers))
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        distance, index = distances(x[part], centers).min(dim=1)
        nearest[part] = torch.where(distance <= max_distance, index, -1)
    return nearest


def _check(x: torch.Tensor, **values: float) -> None:
    if x.dim() != 2 or not x.is_floating_point():
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}; allowed: floating point (N, D)"
        )
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} is {value}; allowed: > 0, finite")
