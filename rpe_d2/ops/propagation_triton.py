"""The recurrence of spatial propagation on CUDA: one kernel for all directions, images and channels.

A program holds the column of one direction, image and channel in registers, in float32, and walks over the image; only
what it reads and writes passes through memory. Directions differ in nothing but where they start and how far it is to
the next step and the next row, so nothing is flipped or copied.
"""

from typing import Tuple

import torch
import triton
import triton.language as tl

_LONGEST_COLUMN = 4096  # that fits into the registers of a program


def fits(x: torch.Tensor) -> bool:
    """Whether the kernels take x (B, C, H, W)."""
    return max(x.shape[2:]) <= _LONGEST_COLUMN and x.dtype != torch.float64


def forward(x: torch.Tensor, gates: torch.Tensor) -> Tuple[torch.Tensor, Tuple[torch.Tensor, ...]]:
    """(4, B, C, H, W) from x (B, C, H, W) and gates (B, G, 4, K, H, W), both contiguous; and that for backward."""
    _check(x)
    found = x.new_empty(4, *x.shape)
    grid, sizes, options = _launch(x, gates)
    if x.numel():
        _forward_kernel[grid](x, gates, found, *sizes, **options)
    return found, (found,)


def backward(
    gradient: torch.Tensor, x: torch.Tensor, gates: torch.Tensor, saved: Tuple[torch.Tensor, ...]
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Gradients like x and gates, from that of what was found (4, B, C, H, W)."""
    of_x = x.new_empty(4, *x.shape, dtype=torch.float32)
    (found,) = saved
    # Of shared gates every channel has its part; added here, in a fixed order, not by atomic operations.
    of_gates = x.new_empty(*x.shape[:2], *gates.shape[2:], dtype=torch.float32)
    grid, sizes, options = _launch(x, gates)
    if x.numel():
        _backward_kernel[grid](gradient, x, gates, found, of_x, of_gates, *sizes, **options)
    if gates.shape[1] == 1:
        of_gates = of_gates.sum(dim=1, keepdim=True)
    return of_x.sum(dim=0).to(x.dtype), of_gates.to(gates.dtype)


def _check(x: torch.Tensor) -> None:
    if not fits(x):
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}; allowed with the backend 'triton': float32, float16, bfloat16, "
            f"sides up to {_LONGEST_COLUMN}; elsewhere use 'torch'"
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
    """What this program works on.

    Returns:
        steps, places in a column; and in elements: to the next step, to the next place, of the first place; where its
        image and channel begin in x, in what is found, in the gates and in the gates of every channel.
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
    of_x = (image * channels + channel) * area
    of_found = ((direction * images + image) * channels + channel) * area
    gate_channel = channel % gate_channels
    of_gates = ((image * gate_channels + gate_channel) * 4 + direction) * CONNECTIONS * area
    of_all_gates = ((image * channels + channel) * 4 + direction) * CONNECTIONS * area
    return steps, length, step, place, first, of_x, of_found, of_gates, of_all_gates


@triton.jit
def _moved(column, places, by: tl.constexpr, length, BLOCK: tl.constexpr):
    """column[i + by], 0 outside."""
    source = places + by
    inside = (source >= 0) & (source < length)
    source = tl.minimum(tl.maximum(source, 0), BLOCK - 1)
    return tl.where(inside, tl.gather(column, source, 0), 0.0)


@triton.jit
def _gate(pointer, offset, present, places, length, by: tl.constexpr):
    """Gates of a column to the neighbours i + by; 0 where these are outside."""
    inside = present & (places + by >= 0) & (places + by < length)
    return tl.load(pointer + offset, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _forward_kernel(
    x, gates, found, channels, gate_channels, height, width,
    CONNECTIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    steps, length, step, place, first, of_image, of_direction, of_gate, of_every_gate = _program(
        channels, gate_channels, height, width, CONNECTIONS
    )
    area = height * width
    places = tl.arange(0, BLOCK)
    present = places < length
    offset = first + places * place
    x += of_image
    found += of_direction
    gates += of_gate

    h = tl.load(x + offset, mask=present, other=0.0).to(tl.float32)
    tl.store(found + offset, h, mask=present)
    for _ in range(1, steps):
        offset += step
        x_t = tl.load(x + offset, mask=present, other=0.0).to(tl.float32)
        # As a change of x: exactly none where x and all that comes in are equal.
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
        tl.store(found + offset, h, mask=present)


@triton.jit
def _backward_kernel(
    gradient, x, gates, found, of_x, of_gates, channels, gate_channels, height, width,
    CONNECTIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    steps, length, step, place, first, of_image, of_direction, of_gate, of_every_gate = _program(
        channels, gate_channels, height, width, CONNECTIONS
    )
    area = height * width
    places = tl.arange(0, BLOCK)
    present = places < length
    x += of_image
    gradient += of_direction
    found += of_direction
    of_x += of_direction
    gates += of_gate
    of_gates += of_every_gate

    offset = first + (steps - 1) * step + places * place
    from_next = tl.zeros([BLOCK], dtype=tl.float32)
    for _ in range(1, steps):  # from the last column to the second
        delta = tl.load(gradient + offset, mask=present, other=0.0).to(tl.float32) + from_next
        x_t = tl.load(x + offset, mask=present, other=0.0).to(tl.float32)
        before = tl.load(found + offset - step, mask=present, other=0.0).to(tl.float32)
        if CONNECTIONS == 3:
            a = _gate(gates, offset, present, places, length, -1)
            b = _gate(gates, offset + area, present, places, length, 0)
            c = _gate(gates, offset + 2 * area, present, places, length, 1)
            of_a = tl.where(
                places > 0, delta * (_moved(before, places, -1, length, BLOCK) - x_t), 0.0
            )
            of_c = tl.where(
                places < length - 1, delta * (_moved(before, places, 1, length, BLOCK) - x_t), 0.0
            )
            tl.store(of_gates + offset, of_a, mask=present)
            tl.store(of_gates + offset + area, delta * (before - x_t), mask=present)
            tl.store(of_gates + offset + 2 * area, of_c, mask=present)
            own = delta * (1.0 - a - b - c)
            from_next = b * delta
            from_next += _moved(a * delta, places, 1, length, BLOCK) + _moved(
                c * delta, places, -1, length, BLOCK
            )
        else:
            b = _gate(gates, offset, present, places, length, 0)
            tl.store(of_gates + offset, delta * (before - x_t), mask=present)
            own = delta * (1.0 - b)
            from_next = b * delta
        tl.store(of_x + offset, own, mask=present)
        offset -= step
    delta = tl.load(gradient + offset, mask=present, other=0.0).to(tl.float32) + from_next
    tl.store(of_x + offset, delta, mask=present)
    for connection in range(CONNECTIONS):
        tl.store(
            of_gates + offset + connection * area, tl.zeros([BLOCK], dtype=tl.float32), mask=present
        )
