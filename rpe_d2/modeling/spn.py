"""Spatial propagation networks: gates predicted from features, and units that apply them.

Source: Liu et al., "Learning Affinity via Spatial Propagation Networks", NIPS 2017.
"""

from dataclasses import dataclass
from typing import Any, Dict, Optional

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn
from torch.nn import functional as F

from rpe_d2.config import check_config
from rpe_d2.ops.propagation import GATE_MODES, normalize_gates, spatial_propagation

from .argument_checks import check_choice, check_power_of_two, check_range
from .layers import chosen_features, enlarge_maps, normalized_conv, resize_maps, zero_loss

# Masks are propagated in chunks of this many values (float32, four directions: 256 MB).
_VALUES_PER_CHUNK = 1 << 24
# Initial gate logits for a propagation close to the identity: with softmax gates the logit of the
# input is 0, which gives the input a weight of 0.87.
_CLOSED_GATE_LOGIT = -3.0
# Lower bound of the propagated class probabilities, for finite logarithms.
_MIN_PROBABILITY = 1e-6


@dataclass(frozen=True)
class PropagationUnits:
    """A sequence of propagation units that share their gates; see :mod:`rpe_d2.ops.propagation`.

    Attributes:
        num_units: number of propagations in sequence; 0 leaves the maps unchanged.
        gate_mode: normalization of the gates, "softmax", "abs_sum" or "clipped".
        connections: gates per pixel and direction, 3 (the paper's three-way connection) or 1.
    """

    num_units: int = 2
    gate_mode: str = "softmax"
    connections: int = 3

    def __post_init__(self) -> None:
        check_range("num_units", self.num_units, 0)
        check_choice("gate_mode", self.gate_mode, GATE_MODES)
        check_choice("connections", self.connections, (1, 3))

    @property
    def gates_per_channel(self) -> int:
        """Number of gates for one pixel of one channel, in all four directions."""
        return 4 * self.connections

    def normalize(self, raw: torch.Tensor) -> torch.Tensor:
        """Normalizes raw gates for :meth:`propagate`.

        Args:
            raw: (B, G x gates_per_channel, H, W) predicted gates of G channels.

        Returns:
            (B, G, gates_per_channel, H, W).
        """
        raw = raw.unflatten(1, (-1, self.gates_per_channel))
        return normalize_gates(raw, self.gate_mode, self.connections)

    def propagate(self, maps: torch.Tensor, gates: torch.Tensor, merge: str) -> torch.Tensor:
        """Applies all units.

        Args:
            maps: (B, C, H, W).
            gates: (B, C or 1, gates_per_channel, H, W) normalized gates.
            merge: how the four directions are merged, "max" or "mean".

        Returns:
            (B, C, H, W).
        """
        if self.num_units == 0:
            return maps + zero_loss(gates).to(maps.dtype)
        for _ in range(self.num_units):
            maps = spatial_propagation(maps, gates, merge)
        return maps


class GuidanceNetwork(nn.Module):
    """The decoder of a U-shaped network that predicts gates from feature maps.

    Feature maps are merged from coarse to fine with sum skip connections. The encoder is the
    backbone, whose outputs can include the image itself.
    """

    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        out_channels: int,
        stride: int = 2,
        conv_dim: int = 64,
        norm: str = "GN",
        bias: float = 0.0,
    ):
        """
        Args:
            input_shape: channels and stride of the feature maps.
            out_channels: number of output channels.
            stride: output stride in pixels, a power of two. Finer feature maps are downsampled to
                it by a strided convolution.
            conv_dim: channels of the hidden convolutions.
            norm: any normalization of Detectron2's ``get_norm``; "" for none.
            bias: initial bias of the output.
        """
        super().__init__()
        check_power_of_two("stride", stride)
        check_range("out_channels", out_channels, 1)
        check_range("conv_dim", conv_dim, 1)
        self.stride = stride
        self.in_features = sorted(input_shape, key=lambda name: -input_shape[name].stride)
        self.finest_stride = min(shape.stride for shape in input_shape.values())
        self.skip = nn.ModuleDict()
        self.merge = nn.ModuleDict()
        # Factor by which the next coarser level is enlarged to match each feature map.
        self.ratios: Dict[str, int] = {}
        coarser_stride = max(shape.stride for shape in input_shape.values())
        for name in self.in_features:
            downsampling = max(1, stride // input_shape[name].stride)
            level_stride = max(stride, input_shape[name].stride)
            self.ratios[name] = coarser_stride // level_stride
            coarser_stride = level_stride
            # The kernel of a strided convolution covers its whole output cell.
            kernel_size = 1 if downsampling == 1 else 2 * downsampling + 1
            self.skip[name] = normalized_conv(
                input_shape[name].channels, conv_dim, kernel_size, "", downsampling
            )
            self.merge[name] = normalized_conv(conv_dim, conv_dim, 3, norm)
        self.last_ratio = coarser_stride // stride
        self.predictor = nn.Conv2d(conv_dim, out_channels, 3, padding=1)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.constant_(self.predictor.bias, bias)

    def forward(self, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        """
        Args:
            features: feature maps (B, C_i, H / stride_i, W / stride_i).

        Returns:
            (B, out_channels, H / stride, W / stride).
        """
        finest = features[self.in_features[-1]]
        size = [-(-side * self.finest_stride // self.stride) for side in finest.shape[-2:]]
        merged = None
        for name in self.in_features:
            skip = self.skip[name](features[name])
            if merged is not None:
                skip = skip + enlarge_maps(merged, self.ratios[name], skip.shape[-2:])
            merged = self.merge[name](skip)
        return self.predictor(enlarge_maps(merged, self.last_ratio, size))


class PropagationHead(nn.Module):
    """Propagates an embedding of logits and adds a projection of the result to the logits.

    The projection starts at zero, so an untrained head is the identity.
    """

    initial_gate_logit = 0.0  # for the bias of the network that predicts the gates

    def __init__(
        self,
        num_maps: int,
        channels: int = 8,
        *,
        num_units: int = 2,
        gate_mode: str = "softmax",
        connections: int = 3,
    ):
        """
        Args:
            num_maps: number K of logit maps.
            channels: number C of propagated channels, each with its own gates.
            num_units, gate_mode, connections: see :class:`PropagationUnits`.
        """
        super().__init__()
        check_range("channels", channels, 1)
        self.units = PropagationUnits(num_units, gate_mode, connections)
        self.num_gates = channels * self.units.gates_per_channel
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
            maps: (B, K, H, W) logits.
            raw_gates: (B, num_gates, H, W) gates before normalization.

        Returns:
            (B, K, H, W) refined logits.
        """
        return self.refine(maps, self.propagate(maps, raw_gates))

    def propagate(self, maps: torch.Tensor, raw_gates: torch.Tensor) -> torch.Tensor:
        """Returns the features (B, num_features, H, W) of the logits after propagation."""
        x = self.units.propagate(self.embed(maps), self.units.normalize(raw_gates), "max")
        return self.hidden(x)

    def refine(self, maps: torch.Tensor, propagated: torch.Tensor) -> torch.Tensor:
        """Refines logits by their propagated features.

        Args:
            maps: (B, K, H, W) logits.
            propagated: (B, num_features, H, W) result of :meth:`propagate`.

        Returns:
            (B, K, H, W) refined logits.
        """
        return maps + self.project(propagated)


def log_probabilities(maps: torch.Tensor) -> torch.Tensor:
    """Returns the logarithms of class probabilities (B, K, H, W), which become at least 1e-6."""
    return (maps * (1 - _MIN_PROBABILITY * maps.shape[1]) + _MIN_PROBABILITY).log()


class ProbabilityPropagation(nn.Module):
    """Propagates class probabilities directly, with the same gates for all classes.

    The directions are averaged and the gates are normalized by a softmax, so the probabilities
    still sum to 1. The gates start nearly closed, so an untrained module is close to the identity.
    There are no layers between the loss and the gates, which therefore learn faster than those of
    :class:`PropagationHead`.
    """

    initial_gate_logit = _CLOSED_GATE_LOGIT

    def __init__(self, num_maps: int, *, num_units: int = 2, connections: int = 3):
        """
        Args:
            num_maps: number K of classes.
            num_units, connections: see :class:`PropagationUnits`.
        """
        super().__init__()
        self.units = PropagationUnits(num_units, "softmax", connections)
        self.num_gates = self.units.gates_per_channel
        self.num_features = num_maps

    def propagate(self, maps: torch.Tensor, raw_gates: torch.Tensor) -> torch.Tensor:
        """Propagates the softmax of logits.

        Args:
            maps: (B, K, H, W) logits.
            raw_gates: (B, num_gates, H, W) gates before normalization.

        Returns:
            (B, K, H, W) logarithms of the propagated probabilities, which are at least 1e-6.
        """
        gates = self.units.normalize(raw_gates.float())
        return log_probabilities(self.units.propagate(maps.softmax(dim=1), gates, "mean"))

    def refine(self, maps: torch.Tensor, propagated: torch.Tensor) -> torch.Tensor:
        """Returns ``propagated``, which already are the refined logits."""
        return propagated


class MaskPropagation(nn.Module):
    """Refines any number of soft masks of an image with one set of gates.

    This is the universal propagation network (Liu et al., NIPS 2017, section 4). Masks are
    propagated directly, without layers in between, so the same gates fit the masks of any model.
    The directions are averaged and the gates are normalized by a softmax: values stay in 0-1, and
    masks that sum to 1 still do.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        num_units: int = 2,
        connections: int = 3,
        stride: int = 2,
        conv_dim: int = 64,
        norm: str = "GN",
    ):
        """
        Args:
            input_shape: channels and stride of the feature maps that guide the propagation.
            num_units, connections: see :class:`PropagationUnits`.
            stride, conv_dim, norm: see :class:`GuidanceNetwork`.
        """
        super().__init__()
        self.units = PropagationUnits(num_units, "softmax", connections)
        self.guidance = GuidanceNetwork(
            input_shape,
            out_channels=self.units.gates_per_channel,
            stride=stride,
            conv_dim=conv_dim,
            norm=norm,
            bias=_CLOSED_GATE_LOGIT,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> Dict[str, Any]:
        arguments = unit_arguments(cfg)
        check_softmax_gates(
            arguments.pop("gate_mode"), "where masks are propagated (SPNRefiner, RPE.REFINE spn)"
        )
        return {**arguments, **guidance_arguments(cfg, input_shape)}

    @property
    def stride(self) -> int:
        """Pixels per cell of the gates."""
        return self.guidance.stride

    def gates(self, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        """Predicts gates (B, 1, 4 x connections, H / stride, W / stride) from feature maps."""
        return self.units.normalize(self.guidance(features).float())

    def forward(self, masks: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """
        Args:
            masks: (K, h, w) in 0-1.
            gates: (1, 4 x connections, h', w') of one image, h' >= h and w' >= w. Gates outside
                the masks, which belong to the padding of the image, are not used.

        Returns:
            (K, h, w) in 0-1.
        """
        if len(masks) == 0:
            return masks
        gates = gates[..., : masks.shape[-2], : masks.shape[-1]]
        masks_per_chunk = max(1, _VALUES_PER_CHUNK // masks[0].numel())
        chunks = [
            self.units.propagate(chunk[None], gates[None], "mean")[0]
            for chunk in masks.split(masks_per_chunk)
        ]
        return torch.cat(chunks)

    def class_logits(
        self, probabilities: torch.Tensor, features: Dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Refines the class maps of a batch.

        Args:
            probabilities: (B, K, H, W) that sum to 1. H and W are multiples of the stride.
            features: feature maps (B, C_i, H / stride_i, W / stride_i) of the images.

        Returns:
            (B, K, H, W) logarithms of the propagated probabilities.
        """
        maps = F.avg_pool2d(probabilities, self.stride)
        propagated = self.units.propagate(maps, self.gates(features), "mean")
        return log_probabilities(resize_maps(propagated, probabilities.shape[-2:]))


def unit_arguments(cfg: CfgNode) -> Dict[str, Any]:
    """Reads the arguments of :class:`PropagationUnits` from ``MODEL.SPN``."""
    check_config(cfg, "MODEL.SPN")
    spn = cfg.MODEL.SPN
    return {
        "num_units": spn.NUM_UNITS,
        "gate_mode": spn.GATE_MODE,
        "connections": spn.CONNECTIONS,
    }


def guidance_arguments(cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> Dict[str, Any]:
    """Reads the arguments of a :class:`GuidanceNetwork` on the backbone from ``MODEL.SPN``."""
    spn = cfg.MODEL.SPN
    names = chosen_features("MODEL.SPN.IN_FEATURES", spn.IN_FEATURES, input_shape)
    return {
        "input_shape": {name: input_shape[name] for name in names},
        "stride": spn.STRIDE,
        "conv_dim": spn.CONV_DIM,
        "norm": spn.NORM,
    }


def check_softmax_gates(gate_mode: str, where: str) -> None:
    """Raises a ValueError for gate modes with which values can leave the range 0-1."""
    if gate_mode != "softmax":
        raise ValueError(
            f"MODEL.SPN.GATE_MODE is {gate_mode!r}; allowed {where}: softmax, which keeps values "
            "in 0-1"
        )


def suppress_absent_classes(scores: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Lowers the logits of classes that have the highest coarse score at no pixel.

    Args:
        scores: (B, K, H, W) logits after the refinement.
        coarse: (B, K, h, w) logits or probabilities before it.

    Returns:
        (B, K, H, W) logits, in which these classes are below all others.
    """
    best = coarse.argmax(dim=1).flatten(1)  # (B, h * w)
    present = torch.zeros(coarse.shape[:2], dtype=torch.bool, device=coarse.device)
    present.scatter_(1, best, True)
    lowest = scores.amin(dim=(1, 2, 3), keepdim=True) - 1
    return torch.where(present[:, :, None, None], scores, lowest)


def propagation_loss(
    pred: torch.Tensor, target: torch.Tensor, counted: Optional[torch.Tensor] = None
) -> torch.Tensor:
    """Computes the binary cross-entropy of soft masks, relative to the area of the targets.

    Args:
        pred, target: (K, h, w) in 0-1.
        counted: (h, w) bool, the cells that enter the loss; None for all.

    Returns:
        Scalar: the sum over all cells, divided by the sum of ``target`` (at least 1).
    """
    error = F.binary_cross_entropy(pred.clamp(1e-6, 1 - 1e-6), target, reduction="none")
    if counted is not None:
        error = error * counted
    return error.sum() / target.sum().clamp(min=1)
