"""Layers and helpers that several components share."""

from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
from detectron2.layers import ShapeSpec, get_norm
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn
from torch.nn import functional as F

from rpe_d2.config.key import GN_GROUPS, NORMS

from .argument_checks import check_choice
from .large_maps import BandedConv2d, InPlaceGroupNorm


def chosen_features(key: str, names: Sequence[str], input_shape: Dict[str, ShapeSpec]) -> List[str]:
    """Returns the backbone outputs that a configuration key selects.

    Args:
        key: the key, for the error message.
        names: the value of the key; an empty sequence selects all outputs.
        input_shape: channels and stride of each backbone output.

    Raises:
        ValueError: The backbone has no output of one of these names.
    """
    missing = [name for name in names if name not in input_shape]
    if missing:
        raise ValueError(
            f"{key} names {', '.join(missing)}; the backbone has {', '.join(input_shape)}"
        )
    return list(names) or list(input_shape)


def checked_norm(norm: str, channels: int) -> Optional[nn.Module]:
    """Builds a normalization layer of Detectron2's ``get_norm``; None for "".

    Raises:
        ValueError: Detectron2 does not know the name, or the channels do not form the groups of GN.
    """
    if isinstance(norm, str):
        check_choice("norm", norm, NORMS)
    if norm == "GN" and channels % GN_GROUPS:
        raise ValueError(
            f"the number of channels is {channels}; allowed with the normalization GN: multiples "
            f"of {GN_GROUPS}"
        )
    return get_norm(norm, channels)


def normalized_conv(
    in_channels: int, out_channels: int, kernel_size: int, norm: str, stride: int = 1
) -> nn.Module:
    """Builds a convolution with normalization and ReLU; its output size is the input size / stride.

    Args:
        norm: any normalization of Detectron2's ``get_norm``; "" for none.

    Raises:
        ValueError: The channels do not form the groups of GN.
    """
    layer = checked_norm(norm, out_channels)
    if isinstance(layer, nn.GroupNorm):  # the output of the convolution is not used elsewhere
        layer = InPlaceGroupNorm(layer.num_groups, out_channels)
    conv = BandedConv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=not norm,
        norm=layer,
        activation=F.relu_,
    )
    c2_msra_fill(conv)
    return conv


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Returns a tensor in float32, or unchanged if it is in float64."""
    return x if x.dtype == torch.float64 else x.float()


def resize_maps(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resizes feature maps by bilinear interpolation, or by average pooling to a smaller size.

    Args:
        maps: (B, C, h, w).
        size: (H, W) of the result.

    Returns:
        (B, C, H, W).
    """
    if list(maps.shape[-2:]) == list(size):
        return maps
    if maps.numel() == 0:
        return maps.new_zeros(*maps.shape[:2], *size)
    if maps.shape[-2:] == (1, 1):  # interpolation would introduce rounding errors
        return maps.expand(*maps.shape[:2], *size)
    if maps.shape[-1] > size[-1]:
        return F.adaptive_avg_pool2d(maps, list(size))
    return F.interpolate(maps, size=list(size), mode="bilinear", align_corners=False)


def enlarge_maps(maps: torch.Tensor, ratio: int, size: Sequence[int]) -> torch.Tensor:
    """Enlarges feature maps by an integer factor and crops or pads them to a size.

    Every cell keeps its position in the image. The enlarged map can be larger than ``size`` if the
    image size is not a multiple of the coarse stride; the excess is cropped. It can be smaller if
    the map comes from a downscaled image whose size was rounded down; the last cells are repeated.

    Args:
        maps: (B, C, h, w).
        ratio: enlargement factor.
        size: (H, W) of the result.

    Returns:
        (B, C, H, W).
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
    """Registers the children of a wrapped module in its owner under the same names.

    The owner then has the parameter names of the wrapped module, so checkpoints of either load into
    the other.

    Returns:
        A tuple that contains the wrapped module. If it is stored as an attribute, the module is not
        registered a second time, and ``owner.train`` has to call the module's ``train``.

    Raises:
        ValueError: The wrapped module has parameters or buffers outside its children, or a child
            whose name the owner already uses.
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
            raise ValueError(
                f"{kind} has a submodule {name!r}; {owner_kind} has one too and cannot wrap it"
            )
        owner.add_module(name, child)
    return (wrapped,)


def zero_loss(*sources: Union[nn.Module, torch.Tensor]) -> torch.Tensor:
    """Returns a scalar zero that depends on every parameter of the modules and on the tensors.

    Distributed training requires that all parameters take part in every step. Add this to a loss
    for batches in which some parameters have nothing to learn from.
    """
    tensors = [
        tensor
        for source in sources
        for tensor in (source.parameters() if isinstance(source, nn.Module) else [source])
    ]
    return sum(tensor.sum() for tensor in tensors) * 0.0
