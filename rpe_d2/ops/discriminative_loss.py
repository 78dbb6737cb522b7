"""Discriminative loss: instances are balls in the space of embeddings, apart from each other."""

from typing import NamedTuple

import torch

from .point_groups import distances, mean_over_pairs, point_groups


class DiscriminativeTerms(NamedTuple):
    """The three scalar terms of the loss, without weights."""

    variance: torch.Tensor
    distance: torch.Tensor
    regularization: torch.Tensor


def discriminative_loss(
    embeddings: torch.Tensor, labels: torch.Tensor, delta_v: float = 0.5, delta_d: float = 1.5
) -> DiscriminativeTerms:
    """Pulls embeddings towards the mean of their instance and pushes the means apart.

    See De Brabandere, Neven & Van Gool, *Semantic Instance Segmentation with a Discriminative Loss
    Function* (arXiv 1708.02551), section 3.1, equations 1 to 3. With means m of C instances,

    * variance: the mean over instances of the mean over their points of ``max(|m - x| - delta_v,
      0)^2``,
    * distance: the mean over ordered pairs of different instances of ``max(2 delta_d - |m_a -
      m_b|, 0)^2``,
    * regularization: the mean of ``|m|``.

    The paper weights them 1, 1 and 0.001. Memory is linear in the points and quadratic in the
    instances.

    Args:
        embeddings: (N, D) floating point, not normalized.
        labels: (N,) integer instance of each point. Points with negative labels are ignored.
        delta_v: distance from the mean within which points are not pulled, >= 0.
        delta_d: half of the distance of two means beyond which they do not repel, >= 0.

    Returns:
        The three terms. Without labeled points they are zeros that support backpropagation.

    Raises:
        ValueError: A shape does not fit, or a value is out of range.
    """
    for name, value in (("delta_v", delta_v), ("delta_d", delta_d)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} is {value}; allowed: >= 0, finite")
    groups = point_groups(embeddings, labels)
    x = embeddings[groups.points]
    if len(x) == 0:
        return DiscriminativeTerms(x.sum(), x.sum(), x.sum())
    means = groups.means(x)  # (Q, D)
    outside = ((x - means[groups.group]).norm(dim=1) - delta_v).clamp(min=0).square()
    near = (2 * delta_d - distances(means, means)).clamp(min=0).square()
    return DiscriminativeTerms(
        variance=groups.means(outside).mean(),
        distance=mean_over_pairs(near),
        regularization=means.norm(dim=1).mean(),
    )
