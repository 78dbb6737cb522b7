"""Spherical max-margin pair loss over all pairs of pixels, in linear memory."""

from typing import NamedTuple, Optional, Tuple

import torch
from torch.nn import functional as F

from .point_groups import check_labeled_points

FORMS = ("linear", "squared_hinge", "released")
NORMALIZATIONS = ("joint", "per_term")
# Squared distances of integer positions up to this far from their mean are exact in float32.
_EXACT_SIDE = 1024.0


def spherical_pair_loss(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    margin: float = 0.5,
    form: str = "linear",
    normalization: str = "joint",
    positive_weight: float = 1.0,
    negative_weight: float = 1.0,
    ignore_label: int = -1,
    positions: Optional[torch.Tensor] = None,
    negative_radius: Optional[float] = None,
) -> torch.Tensor:
    """Pulls embeddings of one group together and pushes embeddings of different groups apart.

    This is the spherical max-margin loss of Kong & Fowlkes, CVPR 2018, section 3. The calibrated
    similarity is ``s = (1 + cos) / 2`` in 0 to 1. Every ordered pair of pixels i, j, including
    i = j, contributes its term times ``w_i w_j``, where ``w = 1 / (size of the pixel's group)``:

    | ``form``          | same group        | different groups             |
    |-------------------|-------------------|------------------------------|
    | ``linear``        | ``1 - s``         | ``max(s - margin, 0)``       |
    | ``squared_hinge`` | ``(1 - s)^2 / 2`` | ``max(s - margin, 0)^2 / 2`` |
    | ``released``      | ``(1 - s^2) / 2`` | ``max(s - margin, 0)^2 / 2`` |

    ``linear`` is the published loss. ``released`` is the loss whose gradient the authors' code
    applies. ``squared_hinge`` has its largest gradients at the hardest pairs.

    ``normalization="joint"`` divides by the sum of all weights, so that with Q groups the positive
    pairs have 1/Q of the total weight. ``"per_term"`` averages positive and negative pairs
    separately, so that their balance does not depend on Q. With ``negative_radius``, only pixels of
    different groups at most that far apart repel each other, and only their weights are summed.
    Without any such pair the negative term is 0.

    All pairs enter the loss exactly, and memory is linear in N. The gradient is computed block by
    block in the forward pass, so second derivatives are not available.

    Args:
        embeddings: (N, D) floating point. They need not be unit vectors, since the loss normalizes
            them. Half precision is computed in float32, also under autocast.
        labels: (N,) integer group of each pixel.
        margin: calibrated similarity in 0 to 1 below which different groups do not repel.
        form: "linear", "squared_hinge" or "released".
        normalization: "joint" or "per_term".
        positive_weight: factor of the same-group term, >= 0.
        negative_weight: factor of the different-groups term, >= 0.
        ignore_label: label of pixels that are ignored.
        positions: (N, 2) pixel positions, required with ``negative_radius``.
        negative_radius: radius in pixels, > 0. None lets all pixels of different groups repel.

    Returns:
        Scalar >= 0. If all pixels are ignored, a zero that supports backpropagation.

    Raises:
        ValueError: A shape does not fit, or a value is out of range.
    """
    _check(embeddings, labels, margin, form, normalization, positions, negative_radius)
    _check_weights(positive_weight=positive_weight, negative_weight=negative_weight)
    with torch.autocast(device_type=embeddings.device.type, enabled=False):
        if embeddings.dtype != torch.float64:
            embeddings = embeddings.float()
        # torch wraps -1 to 255 when it compares it with uint8 labels, so compare as int64.
        kept = torch.nonzero(labels.long() != ignore_label).squeeze(1)
        if kept.numel() == 0:
            return embeddings[kept].sum()

        # After sorting by group, most blocks of pairs hold only different groups and need no mask.
        sorted_labels, order = torch.sort(labels[kept], stable=True)
        kept = kept[order]
        _, group, sizes = torch.unique_consecutive(
            sorted_labels, return_inverse=True, return_counts=True
        )
        num_groups = sizes.numel()
        unit = F.normalize(embeddings[kept], dim=1)
        weights = sizes.to(unit.dtype).reciprocal()[group]  # (N,)
        where = None
        if negative_radius is not None:
            # Small coordinates, shifted by an integer so that a pixel grid stays integer: squared
            # distances are then exact, and rounding cannot affect pairs at exactly the radius.
            where = _centered(positions[kept].to(unit.dtype))
            extent = float(where.abs().amax())
            if not extent < float("inf"):
                raise ValueError("positions contain NaN or infinity; allowed: finite numbers")
            if extent > _EXACT_SIDE:
                where = _centered(positions[kept].double())

        positive, negative, negative_sum = _PairSums.apply(
            unit, weights, group, where, negative_radius, margin, form
        )
        if where is None:
            negative_sum = float(num_groups * (num_groups - 1))
        positive = positive_weight * positive
        negative = negative_weight * negative
        if normalization == "joint":
            return (positive + negative) / (num_groups + negative_sum)
        if where is None:
            return positive / num_groups + negative / max(negative_sum, 1.0)
        tiny = torch.finfo(unit.dtype).tiny
        return positive / num_groups + negative / negative_sum.clamp(min=tiny)


class _PairSums(torch.autograd.Function):
    """Weighted sums over all pairs: same-group and different-group terms, and the latter's weights.

    The inputs are ``unit`` (N, D) sorted by ``group`` (N,), ``weights`` (N,) and, if a radius is
    given, ``where`` (N, 2), centered positions in the radius's unit. Pairs are processed in square
    blocks on and above the diagonal.
    """

    @staticmethod
    def forward(ctx, unit, weights, group, where, radius, margin, form):
        positive, negative, negative_sum = unit.new_zeros(3).unbind()
        positive_gradient = negative_gradient = None
        if ctx.needs_input_grad[0]:
            positive_gradient, negative_gradient = torch.zeros_like(unit), torch.zeros_like(unit)

        # Appended constants turn a block of s - margin, or of radius^2 - distance^2, into one
        # matrix product.
        ones = torch.ones_like(unit[:, :1])
        left = torch.cat([unit / 2, ones], dim=1)
        right = torch.cat([unit, ones * (0.5 - margin)], dim=1)
        if where is not None:
            squared = where.square().sum(dim=1, keepdim=True)
            one = torch.ones_like(squared)
            near_left = torch.cat([2 * where, radius**2 - squared, one], dim=1)
            near_right = torch.cat([where, one, -squared], dim=1)

        weighted = weights[:, None] * unit
        size = _block_size(unit)
        blocks = [slice(start, start + size) for start in range(0, len(unit), size)]
        first = group[::size].tolist()
        last = [*group[size - 1 : -1 : size].tolist(), int(group[-1])]
        for i, rows in enumerate(blocks):
            for j, columns in enumerate(blocks[i:], start=i):
                pairs = _Block(weights, weighted, rows, columns)
                excess = left[rows] @ right[columns].T  # (rows, columns), s - margin
                same = None
                if first[j] <= last[i]:
                    same = group[rows, None] == group[columns]
                    terms, slope = _positive_terms(excess + margin, form)
                    positive += pairs.sum(terms.mul_(same))
                    pairs.add_gradient(positive_gradient, slope.mul_(same))
                    excess.masked_fill_(same, -1.0)
                if where is not None:
                    near = near_left[rows] @ near_right[columns].T >= 0
                    if same is not None:
                        near &= ~same
                    negative_sum += pairs.sum(near.to(unit.dtype))
                    excess.masked_fill_(~near, -1.0)
                terms, slope = _negative_terms(excess, form)
                negative += pairs.sum(terms)
                pairs.add_gradient(negative_gradient, slope)
        if positive_gradient is not None:
            ctx.save_for_backward(positive_gradient, negative_gradient)
        ctx.mark_non_differentiable(negative_sum)
        positive.clamp_(min=0)  # rounding makes the cosine of equal vectors exceed 1
        return positive, negative, negative_sum

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, positive_scale, negative_scale, _):
        positive_gradient, negative_gradient = ctx.saved_tensors
        gradient = positive_scale * positive_gradient + negative_scale * negative_gradient
        return gradient, None, None, None, None, None, None


class _Block(NamedTuple):
    """A block of pairs (rows x columns); off the diagonal it also represents its mirror image."""

    weights: torch.Tensor  # (N,)
    weighted: torch.Tensor  # (N, D) unit vectors times their weights
    rows: slice
    columns: slice

    def sum(self, terms: torch.Tensor) -> torch.Tensor:
        total = self.weights[self.rows] @ (terms @ self.weights[self.columns])
        return total if self.rows == self.columns else 2 * total

    def add_gradient(self, gradient: Optional[torch.Tensor], slope: torch.Tensor) -> None:
        """Adds d(sum)/d(unit) given d(term)/ds.

        ds/dx_i is x_j / 2, and it counts twice because (i, j) comes with (j, i).
        """
        if gradient is None:
            return
        rows, columns = self.rows, self.columns
        gradient[rows] += self.weights[rows, None] * (slope @ self.weighted[columns])
        if rows != columns:
            gradient[columns] += self.weights[columns, None] * (slope.T @ self.weighted[rows])


def _centered(positions: torch.Tensor) -> torch.Tensor:
    """Subtracts the mean position, rounded to an integer."""
    return positions - positions.mean(dim=0).round()


def _positive_terms(similarity: torch.Tensor, form: str) -> Tuple[torch.Tensor, torch.Tensor]:
    """Computes the same-group terms and their derivatives with respect to the similarity."""
    if form == "linear":
        return 1 - similarity, torch.full_like(similarity, -1.0)
    if form == "squared_hinge":
        gap = 1 - similarity
        return gap.square() / 2, -gap
    return (1 - similarity.square()) / 2, -similarity


def _negative_terms(excess: torch.Tensor, form: str) -> Tuple[torch.Tensor, torch.Tensor]:
    """Computes the different-groups terms and their derivatives with respect to the similarity.

    Overwrites ``excess``, which is s - margin.
    """
    hinge = excess.relu_()
    if form == "linear":
        return hinge, hinge.sign()
    return hinge.square() / 2, hinge


def _block_size(unit: torch.Tensor) -> int:
    # Blocks of this size stay in a CPU's cache, or fill a GPU (64 MB each).
    return 4096 if unit.is_cuda else 512


def _check(embeddings, labels, margin, form, normalization, positions, negative_radius):
    check_labeled_points(embeddings, labels)
    if not 0.0 <= margin <= 1.0:
        raise ValueError(f"margin is {margin}; allowed: 0 to 1")
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; allowed: {', '.join(FORMS)}")
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization is {normalization!r}; allowed: {', '.join(NORMALIZATIONS)}"
        )
    if negative_radius is None:
        return
    if not negative_radius > 0:
        raise ValueError(f"negative_radius is {negative_radius}; allowed: > 0 or None")
    if positions is None or positions.shape != (len(embeddings), 2):
        shape = None if positions is None else tuple(positions.shape)
        raise ValueError(f"positions are {shape}; negative_radius needs ({len(embeddings)}, 2)")


def _check_weights(**weights: float) -> None:
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ValueError(f"{name} is {weight}; allowed: >= 0, finite")
