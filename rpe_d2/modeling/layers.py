"""Layers that several components share."""

from typing import Dict, List, Sequence, Tuple, Union

import torch
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn
from torch.nn import functional as F


def chosen_features(key: str, names: Sequence[str], input_shape: Dict[str, ShapeSpec]) -> List[str]:
    """Names of the backbone's outputs that a key chooses; all of them where it is empty.

    Raises:
        ValueError: the backbone has no such output.
    """
    missing = [name for name in names if name not in input_shape]
    if missing:
        raise ValueError(
            f"{key} names {', '.join(missing)}; the backbone has {', '.join(input_shape)}"
        )
    return list(names) or list(input_shape)


def normalized_conv(
    in_channels: int, out_channels: int, kernel_size: int, norm: str, stride: int = 1
) -> nn.Module:
    """Convolution, normalisation (any of Detectron2's, "" for none) and ReLU; the result's size is size / stride."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    c2_msra_fill(conv)
    return conv


def resize_maps(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(B, C, h, w) to a size: linearly interpolated, or averaged where it is smaller."""
    if list(maps.shape[-2:]) == list(size):
        return maps
    if maps.numel() == 0:
        return maps.new_zeros(*maps.shape[:2], *size)
    if maps.shape[-2:] == (1, 1):  # interpolation would round
        return maps.expand(*maps.shape[:2], *size)
    if maps.shape[-1] > size[-1]:
        return F.adaptive_avg_pool2d(maps, list(size))
    return F.interpolate(maps, size=list(size), mode="bilinear", align_corners=False)


def enlarge_maps(maps: torch.Tensor, ratio: int, size: Sequence[int]) -> torch.Tensor:
    """Maps ``ratio`` times as large, cut to a size: cells stay where they are in the picture.

    A coarse map may end beyond finer ones, where the picture is no multiple of its stride; or before them, one of a
    smaller picture that was rounded down: its last cells are then repeated.
    """
    if ratio > 1:
        maps = F.interpolate(maps, scale_factor=ratio, mode="bilinear", align_corners=False)
    maps = maps[..., : size[0], : size[1]]
    if list(maps.shape[-2:]) == list(size):
        return maps
    rows, columns = (
        torch.arange(side, device=maps.device).clamp(max=own - 1)
        for side, own in zip(size, maps.shape[-2:])
    )
    return maps[..., rows[:, None], columns]


def adopt_children(owner: nn.Module, wrapped: nn.Module) -> Tuple[nn.Module]:
    """Registers a module's children in another one under their names, so that checkpoints load both ways.

    Returns:
        The wrapped module in a tuple, as an attribute no submodule; ``owner.train`` has to set its ``training``.

    Raises:
        ValueError: it has parameters outside its children, or a child whose name is taken.
    """
    kind, owner_kind = type(wrapped).__name__, type(owner).__name__
    if next(wrapped.parameters(recurse=False), None) is not None or (
        next(wrapped.buffers(recurse=False), None) is not None
    ):
        raise ValueError(
            f"{kind} has parameters outside its submodules; {owner_kind} cannot wrap it"
        )
    for name, child in wrapped.named_children():
        if hasattr(owner, name):
            raise ValueError(f"{kind} has a part {name!r}, as {owner_kind} has; it cannot wrap it")
        owner.add_module(name, child)
    return (wrapped,)


def zero_loss(*sources: Union[nn.Module, torch.Tensor]) -> torch.Tensor:
    """Returns a scalar zero that depends on every parameter of the modules and on the tensors.

    Distributed training demands that all parameters take part in every step. Adding this to a loss
    makes them do so where a batch gives them nothing to learn from.
    """
    tensors = [
        tensor
        for source in sources
        for tensor in (source.parameters() if isinstance(source, nn.Module) else [source])
    ]
    return sum(tensor.sum() for tensor in tensors) * 0.0
