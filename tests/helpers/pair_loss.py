"""Random examples for the pair loss."""

import torch

BLOCK = 512  # side of a block of pairs on the CPU


def example(num_points, dim=5, num_groups=6, ignored=False):
    """Samples raw embeddings, labels of groups of very different sizes, and grid positions."""
    embeddings = torch.randn(num_points, dim, dtype=torch.float64) * 3
    labels = (torch.rand(num_points) ** 2 * num_groups).long()
    if ignored:
        labels[torch.rand(num_points) < 0.2] = -1
    positions = torch.randint(0, 40, (num_points, 2)).double() + 5000
    return embeddings.requires_grad_(), labels, positions
