"""The authors' 1-D demonstration of gradients through mean shift: points that train themselves."""

import torch

from rpe_d2.ops.mean_shift import mean_shift

BANDWIDTH = 0.1
LOOPS = 5
# Step size of 30 steps on the sum of squared errors. With smaller steps the middle mode does not
# arrive, and with larger ones training without loops converges too.
STEP_SIZE = 0.1


def shift(values, num_loops):
    """Shifts values on a line, as positions of equal embeddings."""
    positions = torch.stack([values, torch.zeros_like(values)], dim=1)
    _, positions = mean_shift(
        torch.ones(len(values), 1),
        1.0,
        num_loops,
        positions=positions,
        spatial_bandwidth=BANDWIDTH,
        shift_positions=True,
    )
    return positions[:, 0]


def train(values, num_loops):
    """Trains the points themselves for a fixed regressor, and returns their final values."""
    targets = 1 + (values >= 3.5).float()
    for _ in range(30):
        values = values.detach().requires_grad_()
        loss = (0.5 * shift(values, num_loops) - 0.5 - targets).square().sum()
        (gradient,) = torch.autograd.grad(loss, values)
        values = values - STEP_SIZE * gradient
    return values.detach()


def points_on_a_line(num_points, seed):
    """Draws the points of three normal distributions, ``num_points`` of each."""
    generator = torch.Generator().manual_seed(seed)
    groups = [(3, 0.2), (4, 0.3), (5, 0.1)]
    noise = torch.randn(3, num_points, generator=generator)
    return torch.cat([mean + deviation * x for (mean, deviation), x in zip(groups, noise)])
