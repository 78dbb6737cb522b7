"""The recurrence of spatial propagation on CUDA: one kernel for all directions, images, channels.

A program keeps the column of one direction, image and channel in registers, in float32, and steps
over the image. Only its inputs and outputs pass through memory. Directions differ only in where
they start and in the strides between steps and between rows, so nothing is flipped or copied.
"""

from typing import Tuple

import torch
import triton
import triton.language as tl

_LONGEST_COLUMN = 4096  # the longest column that fits into the registers of a program


def fits(x: torch.Tensor) -> bool:
    """Returns whether the kernels support the size and dtype of x (B, C, H, W)."""
    return max(x.shape[2:]) <= _LONGEST_COLUMN and x.dtype != torch.float64


def forward(x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """Propagates x (B, C, H, W) by gates (B, G, 4, K, H, W), both contiguous.

    Returns:
        The result (4, B, C, H, W) like x.
    """
    _check(x)
    result = x.new_empty(4, *x.shape)
    grid, sizes, options = _launch(x, gates)
    if x.numel():
        _forward_kernel[grid](x, gates, result, *sizes, **options)
    return result


def backward(
    gradient: torch.Tensor, x: torch.Tensor, gates: torch.Tensor, result: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Computes the gradients of x and gates from that of the result of :func:`forward`."""
    grad_x = x.new_empty(4, *x.shape, dtype=torch.float32)
    # Gradients of shared gates are stored per channel and summed here in a fixed order, because
    # atomic additions would not be deterministic.
    grad_gates = x.new_empty(*x.shape[:2], *gates.shape[2:], dtype=torch.float32)
    grid, sizes, options = _launch(x, gates)
    if x.numel():
        _backward_kernel[grid](gradient, x, gates, result, grad_x, grad_gates, *sizes, **options)
    if gates.shape[1] == 1:
        grad_gates = grad_gates.sum(dim=1, keepdim=True)
    return grad_x.sum(dim=0).to(x.dtype), grad_gates.to(gates.dtype)


def _check(x: torch.Tensor) -> None:
    if not fits(x):
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}; allowed with the backend 'triton': "
            f"float32, float16, bfloat16, sides up to {_LONGEST_COLUMN}; elsewhere use 'torch'"
        )


def _launch(x: torch.Tensor, gates: torch.Tensor):
    batch, channels, height, width = x.shape
    block = triton.next_power_of_2(max(height, width))
    warps = min(16, max(1, block // 64))
    sizes = (channels, gates.shape[1], height, width)
    options = {"CONNECTIONS": gates.shape[3], "BLOCK": block, "num_warps": warps}
    return (4 * batch * channels,), sizes, options


@triton.jit
def _program(channels, gate_channels, height, width, CONNECTIONS: tl.constexpr):
    """Locates the column of this program.

    Returns:
        The number of steps, the length of a column, and in elements: the stride between steps, the
        stride within a column, the offset of the first column, and the offsets of this program's
        data in x, in the result, in the gates and in the gradients of the gates per channel.
    """
    program = tl.program_id(0).to(tl.int64)
    direction = program % 4
    channel = (program // 4) % channels
    image = program // (4 * channels)
    images = tl.num_programs(0) // (4 * channels)
    across = direction < 2
    backwards = direction % 2
    steps = tl.where(across, width, height)
    length = tl.where(across, height, width)
    step = tl.where(across, 1, width)
    place = tl.where(across, width, 1)
    first = backwards * (steps - 1) * step
    step = tl.where(backwards == 1, -step, step)
    area = height * width
    x_offset = (image * channels + channel) * area
    result_offset = ((direction * images + image) * channels + channel) * area
    gate_channel = channel % gate_channels
    gates_offset = ((image * gate_channels + gate_channel) * 4 + direction) * CONNECTIONS * area
    grad_gates_offset = ((image * channels + channel) * 4 + direction) * CONNECTIONS * area
    return (
        steps,
        length,
        step,
        place,
        first,
        x_offset,
        result_offset,
        gates_offset,
        grad_gates_offset,
    )


@triton.jit
def _moved(column, places, by: tl.constexpr, length, BLOCK: tl.constexpr):
    """Returns column[i + by], and 0 outside."""
    source = places + by
    inside = (source >= 0) & (source < length)
    source = tl.minimum(tl.maximum(source, 0), BLOCK - 1)
    return tl.where(inside, tl.gather(column, source, 0), 0.0)


@triton.jit
def _gate(pointer, offset, present, places, length, by: tl.constexpr):
    """Loads the gates of a column to the neighbors i + by, 0 where these are outside."""
    inside = present & (places + by >= 0) & (places + by < length)
    return tl.load(pointer + offset, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _forward_kernel(
    x, gates, result, channels, gate_channels, height, width,
    CONNECTIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    steps, length, step, place, first, x_offset, result_offset, gates_offset, grad_gates_offset = (
        _program(channels, gate_channels, height, width, CONNECTIONS)
    )
    area = height * width
    places = tl.arange(0, BLOCK)
    present = places < length
    offset = first + places * place
    x += x_offset
    result += result_offset
    gates += gates_offset

    h = tl.load(x + offset, mask=present, other=0.0).to(tl.float32)
    tl.store(result + offset, h, mask=present)
    for _ in range(1, steps):
        offset += step
        x_t = tl.load(x + offset, mask=present, other=0.0).to(tl.float32)
        # Computed as a change of x, which is exactly 0 where x and its neighbors' h are equal.
        if CONNECTIONS == 3:
            a = _gate(gates, offset, present, places, length, -1)
            b = _gate(gates, offset + area, present, places, length, 0)
            c = _gate(gates, offset + 2 * area, present, places, length, 1)
            change = a * (_moved(h, places, -1, length, BLOCK) - x_t)
            change += b * (h - x_t) + c * (_moved(h, places, 1, length, BLOCK) - x_t)
        else:
            b = _gate(gates, offset, present, places, length, 0)
            change = b * (h - x_t)
        h = x_t + change
        tl.store(result + offset, h, mask=present)


@triton.jit
def _backward_kernel(
    gradient, x, gates, result, grad_x, grad_gates, channels, gate_channels, height, width,
    CONNECTIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    steps, length, step, place, first, x_offset, result_offset, gates_offset, grad_gates_offset = (
        _program(channels, gate_channels, height, width, CONNECTIONS)
    )
    area = height * width
    places = tl.arange(0, BLOCK)
    present = places < length
    x += x_offset
    gradient += result_offset
    result += result_offset
    grad_x += result_offset
    gates += gates_offset
    grad_gates += grad_gates_offset

    offset = first + (steps - 1) * step + places * place
    from_next = tl.zeros([BLOCK], dtype=tl.float32)
    for _ in range(1, steps):  # from the last column to the second
        delta = tl.load(gradient + offset, mask=present, other=0.0).to(tl.float32) + from_next
        x_t = tl.load(x + offset, mask=present, other=0.0).to(tl.float32)
        before = tl.load(result + offset - step, mask=present, other=0.0).to(tl.float32)
        if CONNECTIONS == 3:
            a = _gate(gates, offset, present, places, length, -1)
            b = _gate(gates, offset + area, present, places, length, 0)
            c = _gate(gates, offset + 2 * area, present, places, length, 1)
            grad_a = tl.where(
                places > 0, delta * (_moved(before, places, -1, length, BLOCK) - x_t), 0.0
            )
            grad_c = tl.where(
                places < length - 1, delta * (_moved(before, places, 1, length, BLOCK) - x_t), 0.0
            )
            tl.store(grad_gates + offset, grad_a, mask=present)
            tl.store(grad_gates + offset + area, delta * (before - x_t), mask=present)
            tl.store(grad_gates + offset + 2 * area, grad_c, mask=present)
            own = delta * (1.0 - a - b - c)
            from_next = b * delta
            from_next += _moved(a * delta, places, 1, length, BLOCK) + _moved(
                c * delta, places, -1, length, BLOCK
            )
        else:
            b = _gate(gates, offset, present, places, length, 0)
            tl.store(grad_gates + offset, delta * (before - x_t), mask=present)
            own = delta * (1.0 - b)
            from_next = b * delta
        tl.store(grad_x + offset, own, mask=present)
        offset -= step
    delta = tl.load(gradient + offset, mask=present, other=0.0).to(tl.float32) + from_next
    tl.store(grad_x + offset, delta, mask=present)
    for connection in range(CONNECTIONS):
        tl.store(
            grad_gates + offset + connection * area,
            tl.zeros([BLOCK], dtype=tl.float32),
            mask=present,
        )
