"""Clustering of shifted embeddings into groups of pixels."""

from typing import Optional, Tuple, Union

import numpy as np
import torch
from torch.nn import functional as F

# Largest number of points among which modes are searched. It bounds time and memory.
_MAX_SEEDS = 2048
# Elements of one block of the similarity matrix (64 MB in float32).
_BLOCK_ELEMENTS = 1 << 24
# Stands for an infinite distance in pixels. Its square is finite in float32.
_LARGEST_DISTANCE = 1e15


def cluster_embeddings(
    x: torch.Tensor,
    threshold: float,
    positions: Optional[torch.Tensor] = None,
    max_distance: Union[None, float, torch.Tensor] = None,
) -> torch.Tensor:
    """Clusters unit vectors around the modes of their density.

    Two points are neighbors if their cosine is at least ``threshold`` and, with ``max_distance``,
    if their positions are at most that far apart. Each point links to its densest neighbor, and
    a chain of links ends at a mode (the flat-kernel medoid shift of Sheikh et al., ICCV 2007).
    Every point that is a neighbor of a mode's center joins the nearest such mode. The remaining
    points are clustered in the same way. Each cluster therefore lies within ``threshold`` of one
    center, and the result does not depend on the order of the points.

    Vectors that are zero, NaN or infinite have no direction. They form a cluster of their own,
    together with the points whose position is NaN or infinite or whose distance is NaN.

    Modes are searched among at most 2,048 points at a time, so that K clusters of N points take
    O(N K) time and O(N) memory.

    Args:
        x: (N, D) floating-point unit vectors, usually the output of mean shift.
        threshold: cosine in -1 to 1, not calibrated to 0 to 1.
        positions: (N, 2) in pixels, required with ``max_distance``.
        max_distance: largest distance of neighbors in pixels, > 0. Infinity sets no limit. A tensor
            (N,) gives each point its own, and the smaller one of the two points applies.

    Returns:
        (N,) int64 labels 0 to K - 1 in descending order of cluster size. Permuting the points
        permutes the labels and changes nothing else. (On CUDA the order of summation is not
        fixed, so results are equal up to rounding.)

    Raises:
        ValueError: A shape does not fit, or a value is out of range.
    """
    _check(x, threshold, positions, max_distance)
    x = x.detach() if x.dtype == torch.float64 else x.detach().float()
    if max_distance is None:
        where, radius = x.new_zeros(len(x), 0), x.new_zeros(len(x))
    else:
        where = positions.detach().to(x.dtype)
        radius = torch.as_tensor(max_distance, device=x.device).detach().to(x.dtype).expand(len(x))
        if bool((radius <= 0).any()):
            raise ValueError(f"max_distance has the value {float(radius.min()):g}; allowed: > 0")
        radius = radius.clamp(max=_LARGEST_DISTANCE)
    usable = _has_direction(x) & where.isfinite().all(dim=1) & radius.isfinite()
    x, where, radius = x[usable], where[usable], radius[usable]
    if len(x):
        # Integer coordinates of a pixel grid stay integers. Squared distances are then exact, so
        # neither the order of the points nor rounding affects pairs exactly max_distance apart.
        where = where - ((where.amin(dim=0) + where.amax(dim=0)) / 2).round()
    # Everything below sees the points in an order that depends on nothing but their values.
    # Sorted points also fall into the same blocks of matrix products, whose rounding differs.
    order = torch.argsort(_sorting_key(x, where, radius), stable=True)
    clusters = _cluster_sorted(x[order], where[order], radius[order], threshold)
    labels = torch.empty_like(clusters).index_copy_(0, order, clusters)
    if bool(usable.all()):
        return labels
    result = torch.full(usable.shape, int(labels.max()) + 1 if len(labels) else 0).to(labels)
    result[usable] = labels
    return _number_by_size(result)


def split_components(label_map: torch.Tensor) -> torch.Tensor:
    """Splits every group into its 8-connected components.

    Args:
        label_map: (H, W) integer. Negative values mark pixels without a group.

    Returns:
        (H, W) int64 component numbers 0 to K - 1 in raster order of the components' first pixels,
        -1 where ``label_map`` is negative.

    Raises:
        ValueError: ``label_map`` has a wrong shape or dtype.
    """
    if label_map.dim() != 2 or label_map.is_floating_point():
        raise ValueError(
            f"label_map is {label_map.dtype} of shape {tuple(label_map.shape)}; "
            "allowed: integer (H, W)"
        )
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    labels = label_map.cpu().numpy()
    number = np.arange(labels.size).reshape(labels.shape)
    starts, ends = [], []
    height, width = labels.shape
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = (slice(0, height - down), slice(max(0, -right), width - max(0, right)))
        there = (slice(down, height), slice(max(0, right), width - max(0, -right)))
        joined = (labels[here] == labels[there]) & (labels[here] >= 0)
        starts.append(number[here][joined])
        ends.append(number[there][joined])
    starts, ends = np.concatenate(starts), np.concatenate(ends)
    links = coo_matrix((np.ones(len(starts), bool), (starts, ends)), shape=(labels.size,) * 2)
    _, component = connected_components(links, directed=False)
    parts = np.full(labels.size, -1, dtype=np.int64)
    grouped = labels.ravel() >= 0
    _, first, inverse = np.unique(component[grouped], return_index=True, return_inverse=True)
    parts[grouped] = np.argsort(np.argsort(first))[inverse]
    return torch.from_numpy(parts.reshape(labels.shape)).to(label_map.device)


def _has_direction(x: torch.Tensor) -> torch.Tensor:
    """Returns (N,) bool, False for vectors that are zero, NaN or infinite."""
    length = x.norm(dim=1)
    return (length >= 0.5) & length.isfinite()


def _sorting_key(x: torch.Tensor, where: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Returns (N,) float64 keys that are equal only for equal points.

    In float32, keys of several thousand points collide.
    """
    # An infinite one would hide the differences in the other columns.
    radius = radius.masked_fill(radius == _LARGEST_DISTANCE, 0)
    columns = torch.cat([x, where, radius[:, None]], dim=1).double()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(columns.shape[1], generator=generator, dtype=torch.float64)
    # An element-wise sum does not depend on how a matrix product is split into blocks.
    return (columns * direction.to(columns)).sum(dim=1)


def _cluster_sorted(
    x: torch.Tensor, where: torch.Tensor, radius: torch.Tensor, threshold: float
) -> torch.Tensor:
    """Returns (N,) cluster labels of sorted points, see :func:`cluster_embeddings`."""
    labels = torch.full((len(x),), -1, dtype=torch.long, device=x.device)
    num_clusters = 0
    while True:
        remaining = torch.nonzero(labels < 0).squeeze(1)
        if remaining.numel() == 0:
            break
        free = x[remaining], where[remaining], radius[remaining]
        points, *modes = _find_modes(*free, threshold)
        nearest = _nearest_center(*free, *modes, threshold)
        joined = nearest >= 0
        if not bool(joined.any()):
            # The center of a spread mode may have no neighbor at all. Where that holds for every
            # center, the point at each mode joins it, so that every round makes progress.
            nearest[points] = torch.arange(len(points), device=x.device)
            joined = nearest >= 0
        labels[remaining[joined]] = nearest[joined] + num_clusters
        num_clusters += len(points)
    return _number_by_size(labels)


def _find_modes(
    x: torch.Tensor,
    where: torch.Tensor,
    radius: torch.Tensor,
    threshold: float,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Finds the modes among evenly sampled seeds.

    Returns:
        Indices (K,) of the points at the modes, and the means of the seeds that lead there: centers
        (K, D), positions (K, 2 or 0) and radii (K,).
    """
    num_seeds = min(len(x), _MAX_SEEDS)
    picks = torch.arange(num_seeds, device=x.device) * len(x) // num_seeds
    seeds, seed_where, seed_radius = x[picks], where[picks], radius[picks]

    near = seeds @ seeds.T >= threshold  # (S, S)
    if where.shape[1]:
        smaller = torch.minimum(seed_radius[:, None], seed_radius)
        near &= _squared_distances(seed_where, seed_where) <= smaller**2
    # With rounding a point may not be its own neighbor. (torch cannot trace a fill with True.)
    near.fill_diagonal_(1)
    # Unique priorities: a denser seed comes first, and ties go to the smaller index.
    priority = near.sum(dim=1) * num_seeds - torch.arange(num_seeds, device=x.device)
    by_priority = torch.argsort(priority, descending=True)
    lead = by_priority[near[:, by_priority].to(torch.uint8).argmax(dim=1)]
    while True:  # each iteration doubles the number of links followed
        further = lead[lead]
        if torch.equal(further, lead):
            break
        lead = further
    points, mode, sizes = torch.unique(lead, return_inverse=True, return_counts=True)
    num_modes = len(sizes)
    centers = F.normalize(x.new_zeros(num_modes, x.shape[1]).index_add_(0, mode, seeds), dim=1)
    center_where = x.new_zeros(num_modes, where.shape[1]).index_add_(0, mode, seed_where)
    center_radius = x.new_zeros(num_modes).index_add_(0, mode, seed_radius)
    means = center_where / sizes[:, None], center_radius / sizes
    return picks[points], centers, *means


def _squared_distances(where: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Returns (N, M) squared distances; one product is several times faster than torch.cdist."""
    ones = torch.ones_like(where[:, :1]), torch.ones_like(others[:, :1])
    left = torch.cat([-2 * where, where.square().sum(dim=1, keepdim=True), ones[0]], dim=1)
    right = torch.cat([others, ones[1], others.square().sum(dim=1, keepdim=True)], dim=1)
    return left @ right.T


def _nearest_center(
    x, where, radius, centers, center_where, center_radius, threshold
) -> torch.Tensor:
    """Returns (N,) the index of the nearest center that is a neighbor, or -1 without one."""
    nearest = torch.empty(len(x), dtype=torch.long, device=x.device)
    rows_per_block = max(1, _BLOCK_ELEMENTS // len(centers))
    scale = 1.0 / max(1.0 - threshold, 1e-6)
    for start in range(0, len(x), rows_per_block):
        rows = slice(start, start + rows_per_block)
        distance = (1.0 - x[rows] @ centers.T) * scale
        if where.shape[1]:
            smaller = torch.minimum(radius[rows, None], center_radius)
            far = _squared_distances(where[rows], center_where) / smaller**2
            distance = torch.maximum(distance, far)
        value, nearest[rows] = distance.min(dim=1)
        nearest[rows].masked_fill_(value > 1.0, -1)
    return nearest


def _number_by_size(labels: torch.Tensor) -> torch.Tensor:
    """Renumbers clusters by descending size. Ties go to the cluster that had the smaller number."""
    if labels.numel() == 0:
        return labels
    _, labels, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    order = torch.argsort(sizes, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return rank[labels]


def _check(x, threshold, positions, max_distance):
    if x.dim() != 2 or not x.is_floating_point():
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}; allowed: floating point (N, D)"
        )
    if not -1.0 <= threshold <= 1.0:
        raise ValueError(f"threshold is {threshold}; allowed: -1 to 1, a raw cosine")
    if max_distance is None:
        return
    if isinstance(max_distance, torch.Tensor) and max_distance.dim():
        if max_distance.shape != (len(x),):
            raise ValueError(
                f"max_distance has shape {tuple(max_distance.shape)}; allowed: a number or one for "
                f"each of the {len(x)} points"
            )
    elif not max_distance > 0:
        raise ValueError(f"max_distance is {max_distance}; allowed: > 0 or None")
    if positions is None or positions.shape != (len(x), 2):
        shape = None if positions is None else tuple(positions.shape)
        raise ValueError(f"positions are {shape}; max_distance needs ({len(x)}, 2)")
