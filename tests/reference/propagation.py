"""Spatial propagation pixel by pixel, and as the explicit matrix of the paper."""

import torch

OFFSETS = {3: (-1, 0, 1), 1: (0,)}


def propagate(x, gates):
    """Propagates x (B, C, H, W) by gates (B, C or 1, 4 K, H, W) to (4, B, C, H, W)."""
    gates = gates.expand(-1, x.shape[1], -1, -1, -1)
    connections = gates.shape[2] // 4
    outputs = []
    for direction in range(4):
        own = gates[:, :, direction * connections : (direction + 1) * connections]
        maps = x
        if direction >= 2:  # down and up are left to right in the transposed image
            maps, own = maps.transpose(-1, -2), own.transpose(-1, -2)
        if direction % 2:
            maps, own = maps.flip(-1), own.flip(-1)
        h = left_to_right(maps, own, OFFSETS[connections])
        if direction % 2:
            h = h.flip(-1)
        if direction >= 2:
            h = h.transpose(-1, -2)
        outputs.append(h)
    return torch.stack(outputs)


def left_to_right(x, gates, offsets):
    height, width = x.shape[-2:]
    columns = [x[..., 0]]
    for t in range(1, width):
        column = []
        for i in range(height):
            value, rest = 0.0, 1.0
            for number, offset in enumerate(offsets):
                if 0 <= i + offset < height:
                    gate = gates[:, :, number, i, t]
                    value = value + gate * columns[-1][..., i + offset]
                    rest = rest - gate
            column.append(value + rest * x[..., i, t])
        columns.append(torch.stack(column, dim=-1))
    return torch.stack(columns, dim=-1)


def matrix(gates):
    """Returns the (H W, H W) matrix of left-to-right propagation by gates (3, H, W)."""
    _, height, width = gates.shape
    result = torch.zeros(width, height, width, height, dtype=gates.dtype)  # t, i of h; t, i of x
    result[0, :, 0] = torch.eye(height, dtype=gates.dtype)
    for t in range(1, width):
        step = torch.zeros(height, height, dtype=gates.dtype)
        for number, offset in enumerate((-1, 0, 1)):
            for i in range(height):
                if 0 <= i + offset < height:
                    step[i, i + offset] = gates[number, i, t]
        result[t] = torch.einsum("ij,jsk->isk", step, result[t - 1])
        result[t, :, t] += torch.diag(1 - step.sum(dim=1))
    return result.reshape(width * height, width * height)
