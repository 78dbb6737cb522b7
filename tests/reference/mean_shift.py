"""Mean shift of one set of points with a dense N x M kernel matrix."""

import torch


def dense_mean_shift(
    x,
    bandwidth,
    num_loops,
    keys=None,
    positions=None,
    key_positions=None,
    spatial_bandwidth=None,
    shift_positions=False,
):
    """Returns (points, positions) of the input and after every loop, for x (N, D)."""
    trajectory = [(x, positions)]
    for _ in range(num_loops):
        x, positions = trajectory[-1]
        other = x if keys is None else keys
        other_positions = positions if keys is None else key_positions
        kernel = torch.exp((x @ other.T - 1) / bandwidth**2)  # (N, M)
        if spatial_bandwidth is not None:
            offset = positions[:, None] - other_positions[None, :]  # (N, M, 2)
            sigma = torch.as_tensor(spatial_bandwidth, dtype=x.dtype).reshape(-1, 1)  # (N or 1, 1)
            kernel = kernel * torch.exp(-offset.pow(2).sum(dim=2) / (2 * sigma**2))
        weights = kernel / kernel.sum(dim=1, keepdim=True)
        mean = weights @ other
        shifted = mean / mean.norm(dim=1, keepdim=True)
        trajectory.append((shifted, weights @ other_positions if shift_positions else positions))
    return trajectory
