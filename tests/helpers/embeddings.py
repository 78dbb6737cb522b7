"""Random embeddings and positions, and the forms of mean shift on them."""

import torch
from torch.nn import functional as F


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
