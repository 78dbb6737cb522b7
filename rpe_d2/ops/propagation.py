"""Spatial propagation: linear recurrences over an image in four directions.

Liu et al., "Learning Affinity via Spatial Propagation Networks", NIPS 2017. From left to right,
with the column t and the row i, ``h_1 = x_1`` and

    h_t[i] = (1 - a - b - c) x_t[i] + a h_{t-1}[i-1] + b h_{t-1}[i] + c h_{t-1}[i+1],

where a, b and c are the gates of the pixel (t, i). The other directions are the same recurrence on
the flipped or transposed image.
"""

from typing import Tuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from . import propagation_cpp, propagation_torch

GATE_MODES = ("softmax", "abs_sum", "clipped")
MERGES = ("max", "mean", "none")
BACKENDS = ("auto", "torch", "cpp", "triton")
DIRECTIONS = ("left to right", "right to left", "top down", "down top")


def normalize_gates(raw: torch.Tensor, mode: str = "softmax", connections: int = 3) -> torch.Tensor:
    """Normalizes raw gates so that the recurrence is stable.

    Args:
        raw: (B, G, 4 x connections, H, W). Each of the four directions has its connections to the
            previous, the same and the next neighbor, or to the same neighbor alone.
        mode: "softmax" includes the weight of the input with logit 0, so all weights are positive
            and results stay within the range of the input. "abs_sum" divides gates by the sum of
            their magnitudes, as the released networks do. "clipped" does so only where that sum
            exceeds 1.
        connections: 3 or 1.

    Returns:
        A tensor like ``raw``. The magnitudes of a direction's gates sum to at most 1, up to
        rounding.

    Raises:
        ValueError: A shape does not fit, or a value is not allowed.
    """
    if mode not in GATE_MODES:
        raise ValueError(f"mode is {mode!r}; allowed: {', '.join(GATE_MODES)}")
    if connections not in (1, 3) or raw.dim() != 5 or raw.shape[2] != 4 * connections:
        raise ValueError(
            f"raw gates have shape {tuple(raw.shape)} with {connections} connections; allowed: "
            "(B, G, 12, H, W) with 3, (B, G, 4, H, W) with 1"
        )
    gates = raw.unflatten(2, (4, connections))  # (B, G, 4, K, H, W)
    if mode == "softmax":
        # Append the logit 0 of the input's weight, and drop that weight from the result.
        gates = F.pad(gates, (0, 0, 0, 0, 0, 1)).softmax(dim=3)[:, :, :, :-1]
    else:
        total = gates.abs().sum(dim=3, keepdim=True)
        smallest = 1.0 if mode == "clipped" else torch.finfo(gates.dtype).tiny
        gates = gates / total.clamp(min=smallest)
    return gates.flatten(2, 3)


def spatial_propagation(
    x: torch.Tensor, gates: torch.Tensor, merge: str = "max", backend: str = "auto"
) -> torch.Tensor:
    """Propagates maps over the image in four directions.

    Gates that point out of the image, and all gates of a direction's first column, are treated as
    0. Constants are therefore preserved exactly. If gates are positive and sum to at most 1,
    results stay within the range of the input.

    Args:
        x: (B, C, H, W) floating point. Half precision is computed in float32.
        gates: (B, C, 12, H, W) floating point, or (B, 1, 12, H, W) to share them between channels.
            The directions are left to right, right to left, top down and bottom up. Each has the
            gates to the previous neighbor (row or column i - 1), the same and the next one. With 4
            instead of 12, there are only the gates to the same neighbor. See
            :func:`normalize_gates`.
        merge: "max" takes the maximum over the directions at each pixel, as in the paper. "mean"
            averages them. "none" returns all four.
        backend: "torch" (any device), "cpp" (CPU, needs a C++ compiler), "triton" (CUDA) or
            "auto", the fastest available one.

    Returns:
        (B, C, H, W) like ``x``, or (4, B, C, H, W) in the order of the gates with "none". It may
        be saved for the backward pass, so it must not be changed in place if gradients are needed.

    Raises:
        ValueError: A shape does not fit, a value is not allowed, the backend is not available, or
            gates on the CPU are not finite. Gates on a GPU are not checked, because that would
            synchronize the host with the device; the results are then NaN.
    """
    if merge not in MERGES:
        raise ValueError(f"merge is {merge!r}; allowed: {', '.join(MERGES)}")
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; allowed: {', '.join(BACKENDS)}")
    _check(x, gates)
    if backend == "cpp" and x.device.type != "cpu":
        raise ValueError(f"backend is 'cpp' and x on {x.device}; allowed: on the CPU")
    if backend == "auto":
        backend = _fastest_backend(x)
    with torch.autocast(device_type=x.device.type, enabled=False):
        gates = gates.to(x.dtype)
        if backend == "cpp" and merge == "max":
            return _MaxPropagation.apply(x, gates)
        directions = _Propagation.apply(x, gates, backend)
    if merge == "none":
        return directions
    return directions.amax(dim=0) if merge == "max" else directions.mean(dim=0)


def _fastest_backend(x: torch.Tensor) -> str:
    if x.is_cuda and _triton_fits(x):
        return "triton"
    if x.device.type == "cpu" and propagation_cpp.available():
        return "cpp"
    return "torch"


def _triton_fits(x: torch.Tensor) -> bool:
    try:
        from . import propagation_triton
    except ImportError:  # torch builds without Triton
        return False
    return propagation_triton.fits(x)


class _Propagation(torch.autograd.Function):
    """Propagation in all four directions, (4, B, C, H, W)."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, gates: torch.Tensor, backend: str) -> torch.Tensor:
        x, gates = _contiguous(x, gates)
        result, saved = _implementation(backend).forward(x, gates)
        ctx.backend = backend
        ctx.save_for_backward(x, gates, *saved)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, None]:
        x, gates, *saved = ctx.saved_tensors
        grad_x, grad_gates = _implementation(ctx.backend).backward(
            gradient.contiguous(), x, gates, tuple(saved)
        )
        return grad_x, grad_gates.flatten(2, 3), None


class _MaxPropagation(torch.autograd.Function):
    """Maximum (B, C, H, W) over the directions in C++, merged while a channel is in the cache."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        x, gates = _contiguous(x, gates)
        merged, saved = _implementation("cpp").forward(x, gates, merge=True)
        ctx.save_for_backward(x, gates, *saved)
        return merged

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        x, gates, *saved = ctx.saved_tensors
        grad_x, grad_gates = propagation_cpp.backward(gradient.contiguous(), x, gates, tuple(saved))
        return grad_x, grad_gates.flatten(2, 3)


def _contiguous(x: torch.Tensor, gates: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Returns x as (B, C, H, W) and gates as (B, G, 4, K, H, W), both contiguous."""
    return x.contiguous(), gates.unflatten(2, (4, gates.shape[2] // 4)).contiguous()


def _implementation(backend: str):
    if backend == "torch":
        return propagation_torch
    if backend == "cpp":
        try:
            propagation_cpp.library()
        except ValueError as error:
            raise ValueError(f"backend is 'cpp': {error}; allowed: torch") from error
        return propagation_cpp
    try:
        from . import propagation_triton
    except ImportError as error:
        raise ValueError(f"backend is 'triton', which cannot be imported: {error}") from error
    return propagation_triton


def _check(x: torch.Tensor, gates: torch.Tensor) -> None:
    if x.dim() != 4 or not x.is_floating_point() or 0 in x.shape[2:]:
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}; "
            "allowed: floating point (B, C, H, W) of at least 1 x 1"
        )
    batch, channels, height, width = x.shape
    fits = (
        gates.dim() == 5
        and gates.is_floating_point()
        and gates.shape[0] == batch
        and gates.shape[1] in (1, channels)
        and gates.shape[2] in (4, 12)
        and gates.shape[3:] == x.shape[2:]
    )
    if not fits:
        raise ValueError(
            f"gates are {gates.dtype} of shape {tuple(gates.shape)}; allowed for x "
            f"{tuple(x.shape)}: floating point "
            f"({batch}, 1 or {channels}, 12 or 4, {height}, {width})"
        )
    if gates.device != x.device:
        raise ValueError(f"gates are on {gates.device}; allowed: where x is, {x.device}")
    if not gates.is_cuda and not torch.isfinite(gates.detach().sum()):
        # The sum of large finite gates may overflow.
        for name, test in (("NaN", torch.isnan), ("infinite values", torch.isinf)):
            if bool(test(gates.detach()).any()):
                raise ValueError(f"gates contain {name}; allowed: finite numbers")
