"""Labeled points by group, for losses on the embeddings of instances."""

from typing import NamedTuple

import torch


class PointGroups(NamedTuple):
    """The points that have a label, and the groups that these labels form.

    Attributes:
        points: (P,) int64 indices of the points with a label.
        group: (P,) int64 group of each of them, 0 to Q - 1.
        sizes: (Q,) int64 number of points of each group.
    """

    points: torch.Tensor
    group: torch.Tensor
    sizes: torch.Tensor

    def means(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the means (Q, ...) over the groups of values (P, ...) of the points."""
        sums = values.new_zeros(len(self.sizes), *values.shape[1:])
        counts = self.sizes.to(values).view(-1, *[1] * (values.dim() - 1))
        return sums.index_add(0, self.group, values) / counts


def point_groups(embeddings: torch.Tensor, labels: torch.Tensor) -> PointGroups:
    """Groups points by their label.

    Args:
        embeddings: (N, D) floating point, of which only the shape is checked.
        labels: (N,) integer group of each point. Points with negative labels are left out.

    Raises:
        ValueError: A shape or a dtype does not fit.
    """
    check_labeled_points(embeddings, labels)
    points = torch.nonzero(labels >= 0).squeeze(1)
    _, group, sizes = torch.unique(labels[points], return_inverse=True, return_counts=True)
    return PointGroups(points, group, sizes)


def check_labeled_points(embeddings: torch.Tensor, labels: torch.Tensor) -> None:
    """Raises a ValueError unless there are (N, D) floating point and (N,) integer labels."""
    if embeddings.dim() != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"embeddings are {embeddings.dtype} of shape {tuple(embeddings.shape)}; "
            "allowed: floating point (N, D)"
        )
    if labels.shape != embeddings.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; "
            f"allowed: integer ({len(embeddings)},)"
        )


def mean_over_pairs(terms: torch.Tensor) -> torch.Tensor:
    """Returns the mean of terms (Q, Q) over ordered pairs of different groups, 0 for Q < 2."""
    count = len(terms)
    same = torch.eye(count, dtype=torch.bool, device=terms.device)
    return terms.masked_fill(same, 0.0).sum() / max(count * (count - 1), 1)


def distances(x: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Returns the Euclidean distances (N, M) of points (N, D) and (M, D).

    They are computed from differences, so that small distances are exact. The gradient of a
    distance of 0 is 0.
    """
    return torch.cdist(x, others, compute_mode="donot_use_mm_for_euclid_dist")
