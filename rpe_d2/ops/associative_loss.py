"""Associative embedding: pixels of an instance get one tag, different instances different tags."""

from typing import NamedTuple

import torch

from .point_groups import distances, mean_over_pairs, point_groups


class AssociativeTerms(NamedTuple):
    """The two scalar terms of the loss."""

    pull: torch.Tensor
    push: torch.Tensor


def associative_loss(
    tags: torch.Tensor, labels: torch.Tensor, sigma: float = 1.0
) -> AssociativeTerms:
    """Pulls tags towards the mean of their instance and pushes the means apart.

    See Newell, Huang & Deng, *Associative Embedding* (NIPS 2017), section 3. With the mean tag m of
    each instance,

    * pull: the mean over instances of the mean over their points of ``|m - t|^2``,
    * push: the mean over ordered pairs of different instances of ``exp(-|m_a - m_b|^2 / (2
      sigma^2))``.

    The paper's sum also counts every instance with itself, which adds a constant. Its experiment on
    instances compares sampled pixels in pairs; the form with means, of its experiment on poses, has
    the same minima and takes memory linear in the points and quadratic in the instances.

    Args:
        tags: (N, D) floating point, D = 1 in the paper.
        labels: (N,) integer instance of each point. Points with negative labels are ignored.
        sigma: distance of means at which their repulsion has fallen to exp(-1/2), > 0.

    Returns:
        The two terms. Without labeled points they are zeros that support backpropagation.

    Raises:
        ValueError: A shape does not fit, or a value is out of range.
    """
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma is {sigma}; allowed: > 0, finite")
    groups = point_groups(tags, labels)
    x = tags[groups.points]
    if len(x) == 0:
        return AssociativeTerms(x.sum(), x.sum())
    means = groups.means(x)  # (Q, D)
    spread = (x - means[groups.group]).square().sum(dim=1)
    near = (-0.5 * (distances(means, means) / sigma).square()).exp()
    return AssociativeTerms(pull=groups.means(spread).mean(), push=mean_over_pairs(near))
