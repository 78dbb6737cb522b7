"""Instance locations: every pixel predicts the center and two corners of the box it belongs to."""

import torch

from .point_groups import PointGroups, point_groups


def locations_of_instances(positions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Computes the location vector of the instance of every labeled pixel.

    See Liang et al., *Proposal-free Network for Instance-level Object Segmentation* (arXiv
    1509.02636), section 3: the center of the bounding box of the instance, its top left corner
    and its bottom right corner.

    Args:
        positions: (N, 2) floating-point positions x, y of the pixels.
        labels: (N,) integer instance of each pixel.

    Returns:
        (P, 6) the vector x, y of the center, of the first and of the last corner, for the P pixels
        with a label >= 0 in their order.

    Raises:
        ValueError: A shape does not fit.
    """
    return _locations(positions, point_groups(positions, labels))


def location_loss(
    pred: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Computes the mean squared distance of location vectors from those of the instances.

    Args:
        pred: (N, 6) predictions, in the unit of the positions.
        positions: (N, 2) positions of the pixels.
        labels: (N,) integer instance of each pixel. Pixels with negative labels are left out.

    Returns:
        Scalar >= 0. Without labeled pixels it is a zero that supports backpropagation.

    Raises:
        ValueError: A shape does not fit.
    """
    if pred.shape != (len(positions), 6):
        raise ValueError(
            f"pred has shape {tuple(pred.shape)}; allowed: ({len(positions)}, 6), a location for "
            "each position"
        )
    groups = point_groups(positions, labels)
    error = (pred[groups.points] - _locations(positions, groups)).square().sum(dim=1)
    return error.sum() / max(len(error), 1)


def _locations(positions: torch.Tensor, groups: PointGroups) -> torch.Tensor:
    inside = positions[groups.points]
    index = groups.group[:, None].expand(-1, 2)
    corners = [
        inside.new_zeros(len(groups.sizes), 2).scatter_reduce(
            0, index, inside, reduction, include_self=False
        )
        for reduction in ("amin", "amax")
    ]
    first, last = (corner[groups.group] for corner in corners)
    return torch.cat([(first + last) / 2, first, last], dim=1)
