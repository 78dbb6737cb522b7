"""Random embeddings and positions, and the forms of mean shift on them."""

from typing import Sequence

import torch
from torch.nn import functional as F

from rpe_d2.ops.mean_shift import mean_shift
from rpe_d2.ops.pair_loss import spherical_pair_loss


def unit_vectors(*shape, dtype=torch.float64):
    return F.normalize(torch.randn(*shape, dtype=dtype), dim=-1)


def grid_positions(num_points, dtype=torch.float64):
    return torch.rand(num_points, 2, dtype=dtype) * 30


OPTIONS = {
    "plain": {},
    "positions": dict(spatial_bandwidth=6.0),
    "shifted positions": dict(spatial_bandwidth=6.0, shift_positions=True),
    "positions carried along": dict(shift_positions=True),
}


def loop_gradients(num_loops: Sequence[int], bandwidth: float, dim: int = 8) -> torch.Tensor:
    """Gradients of the pair loss after each number of loops, for five noisy groups of 40 vectors.

    Returns:
        (2, len(num_loops)) float64: the norm of the gradient of the raw vectors, and the loss.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(5).repeat_interleave(40)
    centers = torch.randn(5, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(200, dim, generator=generator, dtype=torch.float64)
    raw = (F.normalize(centers, dim=1)[labels] + 0.3 * noise).requires_grad_()
    trajectory = mean_shift(
        F.normalize(raw, dim=1), bandwidth, max(num_loops), return_trajectory=True
    )
    rows = []
    for number in num_loops:
        loss = spherical_pair_loss(trajectory[number], labels, margin=0.5)
        (gradient,) = torch.autograd.grad(loss, raw, retain_graph=True)
        rows.append([gradient.norm().item(), loss.item()])
    return torch.tensor(rows, dtype=torch.float64).T
