"""Deep metric learning: the similarity of two pixels is the probability of one instance."""

import math
from typing import Sequence

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .point_groups import distances, point_groups

# Pairs that exist at a time (8 MB in float32).
_PAIRS_AT_ONCE = 1 << 21
# Elements of a block of distances that no gradient needs (16 MB in float32).
_BLOCK_ELEMENTS = 1 << 22
# The logarithm of 1 - similarity is infinite where points of two instances coincide. Pairs at a
# smaller squared distance cost as much as at this one.
_SMALLEST_SQUARE = 1e-6


def similarity(squared_distance: torch.Tensor) -> torch.Tensor:
    """Returns the similarity ``2 / (1 + exp(d^2))`` in 0 to 1 of squared distances ``d^2``."""
    # sigmoid(-z) does not overflow.
    return 2 * torch.sigmoid(-squared_distance)


def squared_radius(threshold: float) -> float:
    """Returns the squared distance at which the similarity is a threshold in 0 to 1, exclusive."""
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is {threshold}; allowed: above 0 and below 1")
    return math.log(2 / threshold - 1)


def metric_learning_loss(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Computes the weighted cross-entropy of whether two pixels belong to one instance.

    See Fathi et al., *Semantic Instance Segmentation via Deep Metric Learning* (arXiv 1703.10277),
    section 3. The probability that pixels p and q belong together is their similarity s, see
    :func:`similarity`. A pair costs ``-log s`` if it does and ``-log(1 - s)`` otherwise. Its weight
    is inversely proportional to the numbers of points of both instances, and all weights sum to 1.

    All ordered pairs enter the loss, two million of them at a time, so that memory is linear in the
    points.

    Args:
        embeddings: (N, D) floating point, not normalized.
        labels: (N,) integer instance of each point. Points with negative labels are ignored.

    Returns:
        Scalar >= 0. Without labeled points it is a zero that supports backpropagation.

    Raises:
        ValueError: A shape does not fit.
    """
    groups = point_groups(embeddings, labels)
    x = embeddings[groups.points]
    if len(x) == 0:
        return x.sum()
    weight = groups.sizes.to(x).reciprocal()[groups.group] / len(groups.sizes)  # they sum to 1
    total = x.new_zeros(())
    at_once = max(1, _PAIRS_AT_ONCE // len(x))
    for start in range(0, len(x), at_once):
        rows = slice(start, start + at_once)
        block = x[rows], groups.group[rows], weight[rows], x, groups.group, weight
        if len(x) > at_once:  # the backward pass computes every block again
            total = total + checkpoint(
                _sum_of_rows, *block, use_reentrant=False, preserve_rng_state=False
            )
        else:
            total = total + _sum_of_rows(*block)
    return total


def _sum_of_rows(rows, row_group, row_weight, x, group, weight) -> torch.Tensor:
    """Returns the weighted sum of the costs of all pairs of some rows with all points."""
    square = distances(rows, x).square()  # (R, N)
    same = row_group[:, None] == group
    # -log s = log(1 + e^z) - log 2, and -log(1 - s) = log(1 + e^z) - log(e^z - 1).
    apart = square.clamp(min=_SMALLEST_SQUARE)
    odds = apart + torch.log(-torch.expm1(-apart))
    costs = F.softplus(square) - torch.where(same, math.log(2), odds)
    return row_weight @ (costs @ weight)


@torch.no_grad()
def seed_mask_ious(
    seeds: torch.Tensor,
    seed_labels: torch.Tensor,
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    thresholds: Sequence[float],
) -> torch.Tensor:
    """Compares the masks that grow from seeds with the instances that the seeds lie in.

    The mask of a seed p at a threshold t has all pixels whose similarity with p exceeds t (Fathi et
    al., section 3).

    Args:
        seeds: (S, D) embeddings of the seeds.
        seed_labels: (S,) integer instance of each seed. Seeds with negative labels are in none.
        embeddings: (N, D) embeddings of all pixels.
        labels: (N,) integer instance of each pixel, -1 for background. Pixels with lower labels are
            left out.
        thresholds: T similarities in 0 to 1, exclusive.

    Returns:
        (S, T) float32 IoU of each mask with the seed's instance, 0 for seeds in none.
    """
    embeddings, labels = embeddings[labels >= -1], labels[labels >= -1]
    radii = [squared_radius(threshold) for threshold in thresholds]
    blocks = [embeddings.new_zeros(0, len(radii), dtype=torch.float32)]
    for part, own in zip(*(v.split(_rows_of_block(len(labels))) for v in (seeds, seed_labels))):
        square = distances(part, embeddings).square()  # (S, N)
        inside = (own[:, None] == labels) & (own >= 0)[:, None]
        area = inside.count_nonzero(dim=1)
        ious = []
        for radius in radii:
            mask = square < radius
            common = (mask & inside).count_nonzero(dim=1)
            ious.append(common / (mask.count_nonzero(dim=1) + area - common).clamp(min=1))
        blocks.append(torch.stack(ious, dim=1).float())
    return torch.cat(blocks)


def _rows_of_block(columns: int) -> int:
    return max(1, _BLOCK_ELEMENTS // max(columns, 1))
