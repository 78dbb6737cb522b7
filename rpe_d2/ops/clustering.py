"""From shifted embeddings to groups of pixels."""

from typing import Optional, Tuple, Union

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch.nn import functional as F

# Points that stand for all others when modes are sought: bounds time and memory whatever the number of points.
_MAX_SEEDS = 2048
# Elements of one block of similarities (64 MB in float32).
_BLOCK_ELEMENTS = 1 << 24


def cluster_embeddings(
    x: torch.Tensor,
    threshold: float,
    positions: Optional[torch.Tensor] = None,
    max_distance: Union[None, float, torch.Tensor] = None,
) -> torch.Tensor:
    """Groups unit vectors around the modes of their density.

    Two points are neighbours when their cosine is at least ``threshold`` and, with ``max_distance``, their positions
    are at most that far apart. Each point leads to its densest neighbour; following the leads ends at a mode (the
    flat-kernel medoid shift of Sheikh et al., ICCV 2007). Every point that neighbours the centre of a mode's points
    joins the nearest such mode; the others are grouped among themselves in the same way. So each cluster lies
    within ``threshold`` of one centre, and the order of the points does not matter.

    At most 2,048 points seek modes at once, so time is O(N K) and memory O(N) for K clusters.

    Args:
        x: (N, D) unit vectors, floating point, as a rule already shifted.
        threshold: raw cosine in -1..1.
        positions: (N, 2) in pixels; needed with ``max_distance``.
        max_distance: in pixels, > 0; one for all, or one for each point, (N,): of two points the smaller one counts.

    Returns:
        (N,) int64 labels 0..K-1 by falling cluster size. Reordering the points reorders the labels and nothing else
        (on CUDA up to the rounding of sums whose order is not fixed there).

    Raises:
        ValueError: shapes do not fit, or a value is out of range.
    """
    _check(x, threshold, positions, max_distance)
    x = x.detach() if x.dtype == torch.float64 else x.detach().float()
    if max_distance is None:
        where, reach = x.new_zeros(len(x), 0), x.new_zeros(len(x))
    else:
        reach = torch.as_tensor(max_distance, device=x.device).detach().to(x.dtype).expand(len(x))
        # Whole coordinates of a pixel grid stay whole: squared distances are then exact, and neither the order of
        # the points nor rounding decides about points that are exactly max_distance apart.
        where = positions.detach().to(x.dtype)
        if len(where):
            where = where - ((where.amin(dim=0) + where.amax(dim=0)) / 2).round()
    labels = torch.full((len(x),), -1, dtype=torch.long, device=x.device)
    key = _order_free_key(x, where)
    num_clusters = 0
    while True:
        open_points = torch.nonzero(labels < 0).squeeze(1)
        if open_points.numel() == 0:
            break
        free = x[open_points], where[open_points], reach[open_points]
        modes = _find_modes(*free, key[open_points], threshold)
        centers = modes[0]
        nearest = _nearest_center(*free, *modes, threshold)
        joined = nearest >= 0
        labels[open_points[joined]] = nearest[joined] + num_clusters
        num_clusters += len(centers)
    return _number_by_size(labels, key)


def split_components(label_map: torch.Tensor) -> torch.Tensor:
    """Gives every 8-connected part of every group its own number.

    Args:
        label_map: (H, W) integer; negative = no group.

    Returns:
        (H, W) int64: 0..K-1 in raster order of the parts' first pixels, -1 where ``label_map`` is negative.
    """
    if label_map.dim() != 2 or label_map.is_floating_point():
        raise ValueError(
            f"label_map is {label_map.dtype} of shape {tuple(label_map.shape)}; allowed: integer (H, W)"
        )
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


def _order_free_key(x: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """A number per point that depends on the point alone: breaks ties without looking at the order of the points."""
    generator = torch.Generator().manual_seed(0)
    width = x.shape[1] + where.shape[1]
    direction = torch.randn(width, generator=generator, dtype=torch.float64).to(x)
    # Summed element by element, the result does not depend on how a matrix product is blocked.
    return (torch.cat([x, where], dim=1) * direction).sum(dim=1)


def _find_modes(
    x: torch.Tensor,
    where: torch.Tensor,
    reach: torch.Tensor,
    key: torch.Tensor,
    threshold: float,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centres (K, D), positions (K, 2 or 0) and reaches (K,) of the modes of evenly chosen seeds."""
    order = torch.argsort(key, stable=True)
    if len(order) > _MAX_SEEDS:
        picks = torch.arange(_MAX_SEEDS, device=x.device) * len(order) // _MAX_SEEDS
        order = order[picks]
    seeds, seed_where, seed_reach = x[order], where[order], reach[order]
    num_seeds = len(order)

    near = seeds @ seeds.T >= threshold  # (S, S)
    if where.shape[1]:
        smaller = torch.minimum(seed_reach[:, None], seed_reach)
        near &= _squared_distances(seed_where, seed_where) <= smaller**2
    # Rounding may tell a point from itself. (torch cannot trace a fill with True.)
    near.fill_diagonal_(1)
    # Distinct priorities: the denser first, among equally dense the smaller key.
    priority = near.sum(dim=1) * num_seeds - torch.arange(num_seeds, device=x.device)
    by_priority = torch.argsort(priority, descending=True)
    lead = by_priority[near[:, by_priority].to(torch.uint8).argmax(dim=1)]
    while True:  # doubles the length of the paths each time
        further = lead[lead]
        if torch.equal(further, lead):
            break
        lead = further
    _, mode, sizes = torch.unique(lead, return_inverse=True, return_counts=True)
    num_modes = len(sizes)
    centers = F.normalize(x.new_zeros(num_modes, x.shape[1]).index_add_(0, mode, seeds), dim=1)
    center_where = x.new_zeros(num_modes, where.shape[1]).index_add_(0, mode, seed_where)
    center_reach = x.new_zeros(num_modes).index_add_(0, mode, seed_reach)
    return centers, center_where / sizes[:, None], center_reach / sizes


def _squared_distances(where: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """(N, M); as one product, several times faster than torch.cdist."""
    ones = torch.ones_like(where[:, :1]), torch.ones_like(others[:, :1])
    left = torch.cat([-2 * where, where.square().sum(dim=1, keepdim=True), ones[0]], dim=1)
    right = torch.cat([others, ones[1], others.square().sum(dim=1, keepdim=True)], dim=1)
    return left @ right.T


def _nearest_center(
    x, where, reach, centers, center_where, center_reach, threshold
) -> torch.Tensor:
    """(N,) index of the nearest centre that neighbours the point, -1 where there is none.

    A point that is its own mode's only nearby seed may miss the centre of a spread mode; so that every round makes
    progress, the point nearest to each centre joins it.
    """
    nearest = torch.empty(len(x), dtype=torch.long, device=x.device)
    rows_per_block = max(1, _BLOCK_ELEMENTS // len(centers))
    best_value = x.new_full((len(centers),), float("inf"))
    best_point = torch.zeros(len(centers), dtype=torch.long, device=x.device)
    scale = 1.0 / max(1.0 - threshold, 1e-6)
    for start in range(0, len(x), rows_per_block):
        rows = slice(start, start + rows_per_block)
        distance = (1.0 - x[rows] @ centers.T) * scale
        if where.shape[1]:
            smaller = torch.minimum(reach[rows, None], center_reach)
            far = _squared_distances(where[rows], center_where) / smaller**2
            distance = torch.maximum(distance, far)
        value, nearest[rows] = distance.min(dim=1)
        nearest[rows].masked_fill_(value > 1.0, -1)
        value, point = distance.min(dim=0)
        closer = value < best_value
        best_value = torch.where(closer, value, best_value)
        best_point = torch.where(closer, point + start, best_point)
    lonely = torch.bincount(nearest[nearest >= 0], minlength=len(centers)) == 0
    if bool(lonely.all()):
        nearest[best_point] = torch.arange(len(centers), device=x.device)
    return nearest


def _number_by_size(labels: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Renumbers clusters by falling size, equal sizes by their smallest key."""
    if labels.numel() == 0:
        return labels
    _, labels, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    smallest = key.new_full((len(sizes),), float("inf")).scatter_reduce(0, labels, key, "amin")
    by_key = torch.argsort(smallest, stable=True)
    order = by_key[torch.argsort(sizes[by_key], descending=True, stable=True)]
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
                f"max_distance has shape {tuple(max_distance.shape)}; allowed: a number or one for each of the "
                f"{len(x)} points"
            )
    elif not max_distance > 0:
        raise ValueError(f"max_distance is {max_distance}; allowed: > 0 or None")
    if positions is None or positions.shape != (len(x), 2):
        found = None if positions is None else tuple(positions.shape)
        raise ValueError(f"positions are {found}; max_distance needs ({len(x)}, 2)")
