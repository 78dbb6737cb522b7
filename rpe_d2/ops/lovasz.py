"""Lovász hinge: a convex surrogate of the IoU of binary masks."""

import torch


def lovasz_hinge(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Computes the Lovász hinge of the Jaccard loss, 1 - IoU, of several binary masks.

    See Berman, Rannen Triki & Blaschko, *The Lovász-Softmax Loss* (CVPR 2018), section 2 and
    algorithm 1. A pixel with logit f and sign y = 1 or -1 has the error ``max(1 - f y, 0)``. Sorted
    by descending error, pixel k weighs as much as the Jaccard loss grows if the first k pixels are
    wrong rather than the first k - 1. The loss is the sum of errors times weights. For logits of 1
    or -1 it is twice the Jaccard loss of the signs, and it is convex in between.

    Args:
        logits: (..., N) floating point, positive for pixels of the mask.
        targets: (..., N) bool, the masks.

    Returns:
        (...) one loss for each mask. An empty target costs the largest error.

    Raises:
        ValueError: The shapes differ, or a dtype does not fit.
    """
    if logits.shape != targets.shape or not logits.is_floating_point():
        raise ValueError(
            f"logits are {logits.dtype} of shape {tuple(logits.shape)}; allowed: floating point "
            f"of the targets' shape {tuple(targets.shape)}"
        )
    if targets.dtype != torch.bool:
        raise ValueError(f"targets are {targets.dtype}; allowed: bool")
    if logits.shape[-1] == 0:
        return logits.sum(dim=-1)
    errors = 1 - torch.where(targets, logits, -logits)
    errors, order = torch.sort(errors, dim=-1, descending=True)
    weights = jaccard_increments(targets.gather(-1, order)).to(errors)
    return (errors.clamp(min=0) * weights).sum(dim=-1)


def jaccard_increments(targets: torch.Tensor) -> torch.Tensor:
    """Returns by how much the Jaccard loss grows with each further pixel that is wrong.

    Args:
        targets: (..., N) bool, the mask in the order in which pixels become wrong.

    Returns:
        (..., N) float64. All are >= 0, and they sum to 1.
    """
    # A wrong pixel of the mask leaves the intersection, and one outside joins the union.
    wrong_inside = targets.double().cumsum(dim=-1)
    wrong_outside = (~targets).double().cumsum(dim=-1)
    area = wrong_inside[..., -1:]
    loss = 1 - (area - wrong_inside) / (area + wrong_outside).clamp(min=1)
    return torch.diff(loss, dim=-1, prepend=torch.zeros_like(area))
