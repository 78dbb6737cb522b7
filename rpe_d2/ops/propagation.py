"""Spatial propagation: linear recurrences over an image in four directions.

Liu et al., "Learning Affinity via Spatial Propagation Networks", NIPS 2017. From left to right,
with the column t and the row i, ``h_1 = x_1`` and

    h_t[i] = (1 - a - b - c) x_t[i] + a h_{t-1}[i-1] + b h_{t-1}[i] + c h_{t-1}[i+1],

where a, b and c are the gates of the pixel (t, i). The other directions are the same recurrence on
the flipped or transposed image.
"""

from typing import Optional, Tuple

import torch
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
    gates = gates.to(x.dtype).unflatten(2, (4, gates.shape[2] // 4))  # (B, G, 4, K, H, W)
    if merge == "max" and (backend == "cpp" or (backend == "auto" and _cpp_is_fastest(x))):
        return _maximum(x, gates)[0].to(x.dtype)
    directions = _propagate(x, gates, backend).to(x.dtype)
    if merge == "none":
        return directions
    return directions.amax(dim=0) if merge == "max" else directions.mean(dim=0)


def _cpp_is_fastest(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and _cpp_is_available()


@torch.compiler.assume_constant_result
def _cpp_is_available() -> bool:
    return propagation_cpp.available()


# ---- Operators of torch. Their gradients, and their shapes for torch.compile and torch.export, are
# registered below. Gates are (B, G, 4, K, H, W).


@torch.library.custom_op("rpe_d2::spatial_propagation", mutates_args=())
def _propagate(x: torch.Tensor, gates: torch.Tensor, backend: str) -> torch.Tensor:
    """Propagates in all four directions, (4, B, C, H, W) of the type of :func:`_saved_type`."""
    with torch.autocast(device_type=x.device.type, enabled=False):
        _check_finite(gates)
        result = _implementation(backend, x).forward(x.contiguous(), gates.contiguous())
        return result.to(_saved_type(x))


@_propagate.register_fake
def _(x: torch.Tensor, gates: torch.Tensor, backend: str) -> torch.Tensor:
    return x.new_empty(4, *x.shape, dtype=_saved_type(x))


@torch.library.custom_op("rpe_d2::spatial_propagation_backward", mutates_args=())
def _propagate_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    gates: torch.Tensor,
    directions: torch.Tensor,
    backend: str,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Computes the gradients of x and gates from that of the result of :func:`_propagate`."""
    with torch.autocast(device_type=x.device.type, enabled=False):
        grad_x, grad_gates = _implementation(backend, x).backward(
            gradient.contiguous(), x.contiguous(), gates.contiguous(), directions
        )
        return grad_x.contiguous(), grad_gates.contiguous()


@_propagate_backward.register_fake
def _(gradient, x, gates, directions, backend):
    return x.new_empty(x.shape), gates.new_empty(gates.shape)


def _save(ctx, inputs: Tuple, output: torch.Tensor) -> None:
    x, gates, ctx.backend = inputs
    ctx.save_for_backward(x, gates, output)


def _backward(ctx, gradient: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, None]:
    return *_propagate_backward(gradient, *ctx.saved_tensors, ctx.backend), None


_propagate.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("rpe_d2::spatial_propagation_maximum", mutates_args=())
def _maximum(x: torch.Tensor, gates: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Propagates in C++ and merges the directions while a channel is in the cache.

    Returns:
        The maximum (B, C, H, W) over the directions, and the directions (4, B, C, H, W), which the
        backward pass needs.
    """
    _check_finite(gates)
    return _implementation("cpp", x).forward_maximum(x.contiguous(), gates.contiguous())


@_maximum.register_fake
def _(x: torch.Tensor, gates: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    dtype = _saved_type(x)
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(4, *x.shape, dtype=dtype)


@torch.library.custom_op("rpe_d2::spatial_propagation_maximum_backward", mutates_args=())
def _maximum_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    gates: torch.Tensor,
    merged: torch.Tensor,
    directions: torch.Tensor,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Computes the gradients of x and gates from that of the maximum."""
    return propagation_cpp.backward(
        gradient.contiguous(), x.contiguous(), gates.contiguous(), directions, merged
    )


@_maximum_backward.register_fake
def _(gradient, x, gates, merged, directions):
    return x.new_empty(x.shape), gates.new_empty(gates.shape)


def _save_maximum(ctx, inputs: Tuple, output: Tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.set_materialize_grads(False)  # nothing uses the directions but the backward pass
    ctx.save_for_backward(*inputs, *output)


def _backward_of_maximum(
    ctx, gradient: Optional[torch.Tensor], unused: Optional[torch.Tensor]
) -> Tuple[Optional[torch.Tensor], Optional[torch.Tensor]]:
    if gradient is None:
        return None, None
    return _maximum_backward(gradient, *ctx.saved_tensors)


_maximum.register_autograd(_backward_of_maximum, setup_context=_save_maximum)


@_propagate.register_vmap
def _(info, in_dims, x, gates, backend):
    x, gates = _batched(info, in_dims, x, gates)
    result = _propagate(x.flatten(0, 1), gates.flatten(0, 1), backend)
    return result.unflatten(1, x.shape[:2]), 1


@_maximum.register_vmap
def _(info, in_dims, x, gates):
    x, gates = _batched(info, in_dims, x, gates)
    merged, directions = _maximum(x.flatten(0, 1), gates.flatten(0, 1))
    return (merged.unflatten(0, x.shape[:2]), directions.unflatten(1, x.shape[:2])), (0, 1)


def _batched(
    info, in_dims: Tuple, x: torch.Tensor, gates: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Moves the dimension of vmap to the front, or adds one."""
    return tuple(
        tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in ((x, in_dims[0]), (gates, in_dims[1]))
    )


def _saved_type(x: torch.Tensor) -> torch.dtype:
    """Returns the type of the directions: on the CPU, half precision is computed in float32."""
    if x.device.type != "cpu" or x.dtype == torch.float64:
        return x.dtype
    return torch.float32


def _implementation(backend: str, x: torch.Tensor):
    """Returns the module of a backend."""
    if backend == "auto":
        if x.is_cuda and _triton_fits(x):
            backend = "triton"
        else:
            backend = "cpp" if _cpp_is_fastest(x) else "torch"
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


def _triton_fits(x: torch.Tensor) -> bool:
    try:
        from . import propagation_triton
    except ImportError:  # torch builds without Triton
        return False
    return propagation_triton.fits(x)


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


def _check_finite(gates: torch.Tensor) -> None:
    if not gates.is_cuda and not torch.isfinite(gates.sum()):
        # The sum of large finite gates may overflow.
        for name, test in (("NaN", torch.isnan), ("infinite values", torch.isinf)):
            if bool(test(gates).any()):
                raise ValueError(f"gates contain {name}; allowed: finite numbers")
