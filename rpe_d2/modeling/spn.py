"""Spatial propagation as a part of networks: gates from features, and units that share them (Liu et al., NIPS 2017)."""

import math
from typing import Dict, NamedTuple, Optional

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn
from torch.nn import functional as F

from rpe_d2.config import check_config
from rpe_d2.ops.propagation import GATE_MODES, normalize_gates, spatial_propagation

from .layers import chosen_features, enlarge_maps, normalized_conv

# Maps are propagated this many values at a time (float32, four directions: 256 MB).
_PROPAGATED_VALUES = 1 << 24
# Logits of gates with which maps hardly change: the input's, 0, then has 0.87 of the weight.
SMALL_GATES = -3.0
# A class's, so that its logarithm is finite.
_LEAST_PROBABILITY = 1e-6


class PropagationOptions(NamedTuple):
    """How maps are propagated; see :mod:`rpe_d2.ops.propagation`.

    Attributes:
        num_units: propagations one after the other, with the same gates; 0: maps stay as they are.
        gate_mode: "softmax", "abs_sum" or "clipped".
        connections: 3, or 1 (of the same row or column alone).
    """

    num_units: int
    gate_mode: str
    connections: int

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "PropagationOptions":
        check_config(cfg, "MODEL.SPN")
        spn = cfg.MODEL.SPN
        if spn.GATE_MODE not in GATE_MODES:
            raise ValueError(
                f"MODEL.SPN.GATE_MODE is {spn.GATE_MODE!r}; allowed: {', '.join(GATE_MODES)}"
            )
        if spn.CONNECTIONS not in (1, 3):
            raise ValueError(f"MODEL.SPN.CONNECTIONS is {spn.CONNECTIONS}; allowed: 1 or 3")
        return cls(spn.NUM_UNITS, spn.GATE_MODE, spn.CONNECTIONS)

    def check_softmax(self, where: str) -> None:
        """Raises ValueError where other gates would take values out of 0-1."""
        if self.gate_mode != "softmax":
            raise ValueError(
                f"MODEL.SPN.GATE_MODE is {self.gate_mode!r}; allowed {where}: softmax, with which values stay in 0-1"
            )

    def gates(self, raw: torch.Tensor) -> torch.Tensor:
        """(B, G, 4 x connections, H, W) for :func:`spatial_propagation` from (B, G x 4 x connections, H, W)."""
        return normalize_gates(
            raw.unflatten(1, (-1, 4 * self.connections)), self.gate_mode, self.connections
        )

    def propagate(self, maps: torch.Tensor, gates: torch.Tensor, merge: str) -> torch.Tensor:
        """(B, C, H, W) like ``maps``, after all units."""
        if self.num_units == 0:
            # What made the gates takes part all the same, as distributed training demands.
            return maps + (gates * 0.0).sum().to(maps.dtype)
        for _ in range(self.num_units):
            maps = spatial_propagation(maps, gates, merge)
        return maps


class GuidanceNetwork(nn.Module):
    """The way up of a U: maps from coarse to fine, each added to what comes from below (sum-skips).

    The way down is whatever made the maps: a backbone, which may pass on the picture itself.
    """

    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        out_channels: int,
        stride: int,
        conv_dim: int,
        norm: str,
        bias: float = 0.0,
    ):
        """
        Args:
            input_shape: channels and stride of the maps.
            out_channels: of the result.
            stride: of the result; finer maps are convolved down to it.
            conv_dim: channels of all convolutions.
            norm: any Detectron2 normalisation, "" for none.
            bias: that the result starts around.
        """
        super().__init__()
        self.stride = stride
        self.in_features = sorted(input_shape, key=lambda name: -input_shape[name].stride)
        self.finest_stride = min(shape.stride for shape in input_shape.values())
        self.skip = nn.ModuleDict()
        self.merge = nn.ModuleDict()
        self.ratios: Dict[str, int] = {}  # of what comes from below to a map
        below = max(shape.stride for shape in input_shape.values())
        for name in self.in_features:
            down = max(1, stride // input_shape[name].stride)
            here = max(stride, input_shape[name].stride)
            self.ratios[name], below = below // here, here
            # Of maps finer than the result a kernel sees all that a cell covers.
            kernel_size = 1 if down == 1 else 2 * down + 1
            self.skip[name] = normalized_conv(
                input_shape[name].channels, conv_dim, kernel_size, "", down
            )
            self.merge[name] = normalized_conv(conv_dim, conv_dim, 3, norm)
        self.last_ratio = below // stride
        self.predictor = nn.Conv2d(conv_dim, out_channels, 3, padding=1)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.constant_(self.predictor.bias, bias)

    def forward(self, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        """
        Args:
            features: (B, C_i, H / stride_i, W / stride_i).

        Returns:
            (B, out_channels, H / stride, W / stride).
        """
        finest = features[self.in_features[-1]]
        size = [-(-side * self.finest_stride // self.stride) for side in finest.shape[-2:]]
        found = None
        for name in self.in_features:
            skip = self.skip[name](features[name])
            if found is not None:
                skip = skip + enlarge_maps(found, self.ratios[name], skip.shape[-2:])
            found = self.merge[name](skip)
        return self.predictor(enlarge_maps(found, self.last_ratio, size))


class PropagationHead(nn.Module):
    """Embeds maps, propagates them and adds what comes of it to them; starts as the identity."""

    def __init__(self, num_maps: int, channels: int, options: PropagationOptions):
        """
        Args:
            num_maps: K.
            channels: C that are propagated, each with gates of its own.
            options: how.
        """
        super().__init__()
        self.options = options
        self.num_gates = channels * 4 * options.connections
        self.num_features = 2 * channels
        self.embed = nn.Conv2d(num_maps, channels, 3, padding=1)
        c2_msra_fill(self.embed)
        self.hidden = normalized_conv(channels, self.num_features, 3, "")
        self.project = nn.Conv2d(self.num_features, num_maps, 3, padding=1)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, maps: torch.Tensor, raw_gates: torch.Tensor) -> torch.Tensor:
        """
        Args:
            maps: (B, K, H, W), logits.
            raw_gates: (B, num_gates, H, W).

        Returns:
            (B, K, H, W).
        """
        return self.refined(maps, self.features(maps, raw_gates))

    def features(self, maps: torch.Tensor, raw_gates: torch.Tensor) -> torch.Tensor:
        """(B, num_features, H, W): what the refinement is projected from, after propagation."""
        x = self.options.propagate(self.embed(maps), self.options.gates(raw_gates), "max")
        return self.hidden(x)

    def refined(self, maps: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """(B, K, H, W) from the maps and what :meth:`features` made of them."""
        return maps + self.project(features)


class ProbabilityPropagation(nn.Module):
    """Propagates the probabilities of classes themselves, all with the same gates; starts close to the identity.

    Directions are averaged and gates are a softmax's, so that probabilities still sum to 1. The loss reaches the gates
    through nothing else, from the first step on: they learn faster than :class:`PropagationHead`'s, whose layers have to
    find out first what propagated maps are good for.
    """

    def __init__(self, num_maps: int, options: PropagationOptions):
        """
        Args:
            num_maps: K.
            options: how.

        Raises:
            ValueError: gates are not a softmax's.
        """
        super().__init__()
        options.check_softmax("with MODEL.SPN.CHANNELS 0")
        self.options = options
        self.num_gates = 4 * options.connections
        self.num_features = num_maps

    def features(self, maps: torch.Tensor, raw_gates: torch.Tensor) -> torch.Tensor:
        """
        Args:
            maps: (B, K, H, W), logits.
            raw_gates: (B, num_gates, H, W).

        Returns:
            (B, K, H, W) logarithms of the propagated probabilities, none of them below 1e-6.
        """
        gates = self.options.gates(raw_gates.float())
        found = self.options.propagate(maps.softmax(dim=1), gates, "mean")
        certain = 1 - _LEAST_PROBABILITY * maps.shape[1]
        return (found * certain + _LEAST_PROBABILITY).log()

    def refined(self, maps: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """``features``, which are scores already."""
        return features


class MaskPropagation(nn.Module):
    """Refines any number of soft masks of a picture by one set of gates.

    There is nothing between the masks and the propagation, so that it does not matter whose masks they are: the
    universal propagation network. Directions are averaged: masks that sum to 1 still do. With the gate mode "softmax"
    results stay in 0-1.
    """

    def __init__(self, guidance: GuidanceNetwork, options: PropagationOptions):
        """
        Args:
            guidance: with 4 x connections channels.
            options: how masks are propagated.
        """
        super().__init__()
        self.guidance = guidance
        self.options = options

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> "MaskPropagation":
        options = PropagationOptions.from_config(cfg)
        options.check_softmax("where masks are propagated (SPNRefiner, MODEL.RPE.REFINE spn)")
        out_channels = 4 * options.connections
        return cls(build_guidance(cfg, input_shape, out_channels, bias=SMALL_GATES), options)

    @property
    def stride(self) -> int:
        """Pixels per cell of the gates."""
        return self.guidance.stride

    def gates(self, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, 1, 4 x connections, H / stride, W / stride) from the backbone's maps."""
        return self.options.gates(self.guidance(features).float())

    def forward(self, masks: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """
        Args:
            masks: (K, h, w) in 0-1.
            gates: (1, 4 x connections, h', w') of their picture, h' and w' at least h and w: what lies beyond, padding,
                takes no part.

        Returns:
            (K, h, w).
        """
        if len(masks) == 0:
            return masks
        gates = gates[..., : masks.shape[-2], : masks.shape[-1]]
        at_once = max(1, _PROPAGATED_VALUES // masks[0].numel())
        parts = [
            self.options.propagate(part[None], gates[None], "mean")[0]
            for part in masks.split(at_once)
        ]
        return torch.cat(parts)


def build_guidance(
    cfg: CfgNode, input_shape: Dict[str, ShapeSpec], out_channels: int, bias: float = 0.0
) -> GuidanceNetwork:
    """The guidance network of ``MODEL.SPN`` on the backbone's maps."""
    spn = cfg.MODEL.SPN
    names = chosen_features("MODEL.SPN.IN_FEATURES", spn.IN_FEATURES, input_shape)
    _power_of_two("MODEL.SPN.STRIDE", spn.STRIDE)
    return GuidanceNetwork(
        {name: input_shape[name] for name in names},
        out_channels=out_channels,
        stride=spn.STRIDE,
        conv_dim=spn.CONV_DIM,
        norm=spn.NORM,
        bias=bias,
    )


def _power_of_two(key: str, value: int) -> None:
    if value < 1 or math.log2(value) % 1:
        raise ValueError(f"{key} is {value}; allowed: 1, 2, 4 …")


def propagation_loss(
    found: torch.Tensor, wanted: torch.Tensor, counted: Optional[torch.Tensor] = None
) -> torch.Tensor:
    """Cross-entropy of (K, h, w) masks in 0-1, summed over the cells, relative to the area of the wanted ones.

    Args:
        found, wanted: (K, h, w) in 0-1.
        counted: (h, w) bool, cells with a loss; None: all.
    """
    error = F.binary_cross_entropy(found.clamp(1e-6, 1 - 1e-6), wanted, reduction="none")
    if counted is not None:
        error = error * counted
    return error.sum() / wanted.sum().clamp(min=1)
