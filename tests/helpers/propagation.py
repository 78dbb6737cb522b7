"""Inputs of spatial propagation, and the comparison of its backends."""

import torch

from rpe_d2.ops.propagation import normalize_gates, spatial_propagation

SHAPES = [
    # shape of x, gates shared by the channels, connections
    ((2, 3, 5, 7), False, 3),
    ((1, 2, 6, 6), True, 3),
    ((2, 2, 1, 4), False, 3),
    ((1, 3, 5, 1), True, 3),
    ((1, 1, 1, 1), True, 3),
    ((2, 3, 5, 5), True, 1),
    ((1, 2, 3, 8), False, 1),
    ((0, 2, 3, 4), True, 3),
    ((1, 2, 19, 40), True, 3),  # more columns than in a block
]


def inputs(shape, shared=False, connections=3, dtype=torch.float64, mode="softmax", device="cpu"):
    batch, channels, height, width = shape
    x = torch.randn(shape, dtype=dtype, device=device)
    raw = torch.randn(
        batch, 1 if shared else channels, 4 * connections, height, width, dtype=dtype, device=device
    )
    return x, normalize_gates(raw, mode, connections)


def with_gradients(function, x, gates):
    """Returns function(x, gates) and the gradients of a weighted sum of it."""
    x, gates = x.detach().requires_grad_(), gates.detach().requires_grad_()
    result = function(x, gates)
    weights = torch.cos(torch.arange(result.numel(), device=x.device).to(x.dtype)).view(
        result.shape
    )
    gradients = torch.autograd.grad(
        (result * weights).sum(), (x, gates), allow_unused=True, materialize_grads=True
    )
    return result, *gradients


def differences_of_triton(device):
    """Compares values and gradients of Triton and torch, relative to 1 + their magnitude.

    Returns:
        of single precision, and of half precision in units of its rounding step.
    """
    torch.manual_seed(0)
    single, half = 0.0, 0.0
    more = [((2, 2, 17, 33), True, 3), ((1, 2, 33, 17), False, 1)]
    for shape, shared, connections in [*SHAPES, *more]:
        x, gates = inputs(shape, shared, connections, torch.float32, device=device)
        result, expected = (
            with_gradients(lambda x, gates: spatial_propagation(x, gates, "none", name), x, gates)
            for name in ("triton", "torch")
        )
        single = max(single, *map(largest_difference, result, expected))
        for dtype in (torch.float16, torch.bfloat16) if x.numel() < 100 else ():
            low = x.to(dtype), gates.to(dtype)
            one, other = (spatial_propagation(*low, "none", name) for name in ("triton", "torch"))
            assert one.dtype == dtype
            half = max(half, largest_difference(one, other) / torch.finfo(dtype).eps)
    return single, half


def largest_difference(one, other):
    assert one.shape == other.shape
    one, other = one.detach().double(), other.detach().double()
    relative = (one - other).abs() / (1 + other.abs())
    assert relative.isfinite().all()
    return float(relative.max()) if relative.numel() else 0.0
