"""Spatial propagation: linear recurrences over an image in four directions (Liu et al., NIPS 2017).

From left to right, with t the column and i the row, ``h_1 = x_1`` and

    h_t[i] = (1 - a - b - c) x_t[i] + a h_{t-1}[i-1] + b h_{t-1}[i] + c h_{t-1}[i+1],

where the gates a, b, c belong to the pixel (t, i). The other directions are the same on the flipped or transposed image.
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
    """Gates that keep the recurrence stable, from any numbers.

    Args:
        raw: (B, G, 4 x connections, H, W): for each of the four directions the connections to the previous, the same
            and the next neighbour (or to the same alone).
        mode: "softmax": positive, and so is the weight of the input, whose logit is 0; results then stay within the
            range of the input. "abs_sum": divided by the sum of their magnitudes, as the released networks. "clipped":
            the same, only where that sum exceeds 1.
        connections: 3 or 1.

    Returns:
        Like ``raw``. Magnitudes of a direction's gates sum to at most 1 (but for rounding).

    Raises:
        ValueError: shapes or values do not fit.
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
        # The input's logit, 0, is one more; it is not returned.
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

    Gates that point out of the image, and all of a direction's first column, count as 0. So constants are preserved
    exactly; where gates are positive and sum to at most 1, results stay within the range of the input.

    Args:
        x: (B, C, H, W) floating point. Half precision is computed in float32.
        gates: (B, C, 12, H, W), or (B, 1, 12, H, W) shared by all channels, floating point: for left to right, right
            to left, top down and down top in turn, the gates of the previous (row or column i - 1), the same and the
            next neighbour; with 4 instead of 12, of the same alone. See :func:`normalize_gates`.
        merge: of the directions: "max" at each pixel (the paper's), "mean", "none".
        backend: "torch" (any device), "cpp" (CPU, where there is a C++ compiler), "triton" (CUDA), "auto": of these the
            fastest that there is.

    Returns:
        (B, C, H, W) like ``x``; with "none" (4, B, C, H, W) in the order of the gates. Not to be changed in place where
        gradients are computed: it may be kept for them.

    Raises:
        ValueError: shapes or values do not fit, gates hold NaN, or the backend is not available. NaN is looked for on
            the CPU alone: a GPU's host would have to wait for the answer, and an assertion on the GPU would leave the
            process unable to use it. There the results of NaN are NaN.
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
        found = _Propagation.apply(x, gates, backend)
    if merge == "none":
        return found
    return found.amax(dim=0) if merge == "max" else found.mean(dim=0)


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
    """All four directions, (4, B, C, H, W)."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, gates: torch.Tensor, backend: str) -> torch.Tensor:
        x, gates = _contiguous(x, gates)
        found, saved = _implementation(backend).forward(x, gates)
        ctx.backend = backend
        ctx.save_for_backward(x, gates, *saved)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, None]:
        x, gates, *saved = ctx.saved_tensors
        of_x, of_gates = _implementation(ctx.backend).backward(
            gradient.contiguous(), x, gates, tuple(saved)
        )
        return of_x, of_gates.flatten(2, 3), None


class _MaxPropagation(torch.autograd.Function):
    """The directions' maximum (B, C, H, W), in C++: a channel's maps are merged while they are in the cache."""

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
        of_x, of_gates = propagation_cpp.backward(gradient.contiguous(), x, gates, tuple(saved))
        return of_x, of_gates.flatten(2, 3)


def _contiguous(x: torch.Tensor, gates: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """(B, C, H, W), and (B, G, 4, K, H, W)."""
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
            f"x is {x.dtype} of shape {tuple(x.shape)}; allowed: floating point (B, C, H, W) of at least 1 x 1"
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
            f"gates are {gates.dtype} of shape {tuple(gates.shape)}; allowed for x {tuple(x.shape)}: floating point "
            f"({batch}, 1 or {channels}, 12 or 4, {height}, {width})"
        )
    if gates.device != x.device:
        raise ValueError(f"gates are on {gates.device}; allowed: where x is, {x.device}")
    if not gates.is_cuda and torch.isnan(gates.detach().sum()):
        raise ValueError("gates hold NaN; allowed: finite numbers")
