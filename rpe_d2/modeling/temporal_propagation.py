"""The temporal propagation network: a property of one frame becomes that of another frame.

Source: Liu et al., "Switchable Temporal Propagation Network", ECCV 2018.
"""

from typing import Dict, NamedTuple, Optional, Tuple

import torch
from detectron2.layers import ShapeSpec
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn
from torch.nn import functional as F

from rpe_d2.ops.propagation import spatial_propagation

from .argument_checks import check_choice, check_range
from .layers import at_least_float32, normalized_conv
from .spn import GuidanceNetwork, PropagationUnits

TEMPORAL_MERGES = ("mean", "learned")
TEMPORAL_STRIDES = (1, 2)
# Channels of the encoder of both guidances, by stride.
_ENCODER = {1: 32, 2: 32, 4: 64, 8: 96, 16: 128}
_CONTEXT = 16
_HIDDEN = 32
# Added to a denominator, because colorless pictures have no energy.
_LEAST_ENERGY = 1e-6
# Initial gates: 0 is the identity for "clipped". With "softmax" the input has a weight of 0.87.
# "abs_sum" divides gates by their sum, which must not be 0.
_GATE_BIAS = {"clipped": 0.0, "softmax": -3.0, "abs_sum": 1.0}


class TemporalGuide(NamedTuple):
    """Gates, weights of directions and features from the guidances of B pairs of frames.

    Attributes:
        gates: (B, F, 12, H / stride, W / stride).
        weights: (4, B, 1, H / stride, W / stride) weights of the directions, which sum to 1; for
            their mean (4, B, 1, 1, 1).
        context: (B, C, H / stride, W / stride) features of the guidances, for the decoder.
    """

    gates: torch.Tensor
    weights: torch.Tensor
    context: torch.Tensor

    def of(self, pair: torch.Tensor) -> "TemporalGuide":
        """Repeats the guides of pairs (N,) int64."""
        return TemporalGuide(self.gates[pair], self.weights[:, pair], self.context[pair])


class TemporalMaps(NamedTuple):
    """Outputs of the network for N properties.

    Attributes:
        prediction: (N, C, H, W) property of the target frame.
        features: (N, F, H / stride, W / stride) features of the key frame's property.
        propagated: like ``features``, after propagation.
        gates: (B, F, 12, H / stride, W / stride) gates of the B pairs of frames.
        weights: (4, B, 1, H / stride, W / stride) weights of the directions, which sum to 1; for
            their mean (4, B, 1, 1, 1).
    """

    prediction: torch.Tensor
    features: torch.Tensor
    propagated: torch.Tensor
    gates: torch.Tensor
    weights: torch.Tensor


class TemporalPropagation(nn.Module):
    """Propagates a property of a key frame by gates from the guidances of both frames.

    Features of the property are propagated by G, a linear map that depends on the guidances alone.
    They are the pixels of each cell, so that a stride of 2 loses nothing, and ``channels`` more
    that a linear convolution computes. The prediction is

        ``property + direct (G features - features)[pixels] + decoder(features, G features)``,

    where the decoder also sees the guidances, and starts at 0. An untrained network copies the
    property: its gates are 0, or, with normalizations that cannot be 0, the weights ``direct`` are.
    """

    def __init__(
        self,
        property_channels: int = 2,
        guidance_channels: int = 1,
        *,
        stride: int = 2,
        channels: int = 8,
        num_units: int = 2,
        gate_mode: str = "clipped",
        merge: str = "learned",
        conv_dim: int = 64,
        norm: str = "GN",
    ):
        """
        Args:
            property_channels: number C of channels of a property.
            guidance_channels: number of channels of the guidance of a frame.
            stride: pixels per cell of the propagated maps, 1 or 2. At 4, the colors of a video of
                176 x 144 cannot be represented as well as optical flow predicts them.
            channels: number of channels that the encoder adds to the pixels of a cell.
            num_units, gate_mode: see :class:`PropagationUnits`. "clipped" has gates of both signs
                and contains the identity.
            merge: "mean" of the four directions, or "learned", weights of the directions for each
                cell, which are predicted like the gates. The maximum is not linear, and biases
                channels whose mean is 0.
            conv_dim, norm: see :class:`GuidanceNetwork`.
        """
        super().__init__()
        check_range("property_channels", property_channels, 1)
        check_range("guidance_channels", guidance_channels, 1)
        check_choice("stride", stride, TEMPORAL_STRIDES)
        check_range("channels", channels, 1)
        check_range("num_units", num_units, 1)
        if merge == "max":
            raise ValueError(
                "merge is 'max', which biases channels whose mean is 0; allowed: mean, learned"
            )
        check_choice("merge", merge, TEMPORAL_MERGES)
        self.units = PropagationUnits(num_units, gate_mode)
        self.property_channels, self.guidance_channels = property_channels, guidance_channels
        self.stride, self.merge = stride, merge
        self.num_pixels = property_channels * stride**2
        self.num_features = self.num_pixels + channels
        # What the guidance network predicts: gates, weights of the directions, and context.
        self.num_gates = self.num_features * self.units.gates_per_channel
        self.num_weights = 4 if merge == "learned" else 0

        self.embed = nn.Conv2d(
            property_channels, channels, 2 * stride + 1, stride, padding=stride, bias=False
        )
        nn.init.kaiming_normal_(self.embed.weight, nonlinearity="linear")
        self.encoder, shapes = _pair_encoder(2 * guidance_channels, stride, norm)
        self.guidance = GuidanceNetwork(
            shapes,
            out_channels=self.num_gates + self.num_weights + _CONTEXT,
            stride=stride,
            conv_dim=conv_dim,
            norm=norm,
        )
        predictor = self.guidance.predictor
        starts_closed = gate_mode == "clipped"
        with torch.no_grad():
            predictor.bias[: self.num_gates] = _GATE_BIAS[gate_mode]
            first = 0 if starts_closed else self.num_gates
            predictor.weight[first : self.num_gates + self.num_weights] = 0
        self.direct = nn.Parameter(torch.full((1, self.num_pixels, 1, 1), float(starts_closed)))
        inputs = 2 * self.num_features + 2 * guidance_channels * stride**2 + _CONTEXT
        self.decoder = nn.Sequential(
            nn.Conv2d(inputs, _HIDDEN, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(_HIDDEN, _HIDDEN, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(_HIDDEN, self.num_pixels, 3, padding=1),
        )
        for layer in (self.decoder[0], self.decoder[2]):
            c2_msra_fill(layer)
        for parameter in self.decoder[4].parameters():
            nn.init.zeros_(parameter)

    @property
    def size_divisibility(self) -> int:
        """Height and width of the frames are multiples of this."""
        return max(_ENCODER)

    def forward(
        self,
        key_property: torch.Tensor,
        key_guidance: torch.Tensor,
        target_guidance: torch.Tensor,
        pair: Optional[torch.Tensor] = None,
    ) -> TemporalMaps:
        """
        Args:
            key_property: (N, C, H, W) properties of key frames.
            key_guidance, target_guidance: (B, guidance_channels, H, W) in 0-1. H and W are
                multiples of ``size_divisibility``.
            pair: (N,) int64, the pair of frames that each property belongs to. None: N is B.
        """
        guide = self.guide(key_guidance, target_guidance)
        own = guide if pair is None else guide.of(pair)
        return self.carry(key_property, own)._replace(gates=guide.gates, weights=guide.weights)

    def guide(self, key_guidance: torch.Tensor, target_guidance: torch.Tensor) -> TemporalGuide:
        """Computes what is the same for all properties of a pair of frames; see :meth:`forward`."""
        guidances = torch.cat([key_guidance, target_guidance], dim=1) - 0.5
        levels: Dict[str, torch.Tensor] = {}
        maps = guidances
        for name, level in self.encoder.items():
            maps = levels[name] = level(maps)
        raw, logits, context = self.guidance(levels).split(
            [self.num_gates, self.num_weights, _CONTEXT], dim=1
        )
        gates = self.units.normalize(at_least_float32(raw))
        if self.merge == "learned":
            weights = at_least_float32(logits).softmax(dim=1).transpose(0, 1)[:, :, None]
        else:
            weights = gates.new_full((4, len(gates), 1, 1, 1), 0.25)
        context = torch.cat([context, F.pixel_unshuffle(guidances, self.stride)], dim=1)
        return TemporalGuide(gates, weights, context)

    def carry(self, key_property: torch.Tensor, guide: TemporalGuide) -> TemporalMaps:
        """Propagates properties (N, C, H, W), each by its own guide."""
        pixels = F.pixel_unshuffle(key_property, self.stride)
        features = torch.cat([pixels, self.embed(key_property)], dim=1)
        propagated = features
        for _ in range(self.units.num_units):
            directions = spatial_propagation(propagated, guide.gates, "none")
            propagated = (guide.weights * directions).sum(dim=0)
        moved = (propagated - features)[:, : self.num_pixels]
        change = self.decoder(torch.cat([propagated, features, guide.context], dim=1))
        change = F.pixel_shuffle(self.direct * moved + change, self.stride)
        prediction = key_property + change
        return TemporalMaps(prediction, features, propagated, guide.gates, guide.weights)


def _pair_encoder(
    in_channels: int, stride: int, norm: str
) -> Tuple[nn.ModuleDict, Dict[str, ShapeSpec]]:
    """Builds convolutions that see both guidances, and returns the shapes of their outputs."""
    levels, shapes = nn.ModuleDict(), {}
    reached = 1  # stride of the input of the next level
    for level_stride, channels in _ENCODER.items():
        if level_stride < stride:
            continue
        step = level_stride // reached
        kernel_size = 3 if step == 1 else 2 * step + 1
        levels[f"stride{level_stride}"] = nn.Sequential(
            normalized_conv(in_channels, channels, kernel_size, norm, step),
            normalized_conv(channels, channels, 3, norm),
        )
        shapes[f"stride{level_stride}"] = ShapeSpec(channels=channels, stride=level_stride)
        in_channels, reached = channels, level_stride
    return levels, shapes


def style_energy(propagated: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Computes how far propagation changes the Gram matrix of features, their style.

    The matrix has the mean products of channels over the pixels of a map. A propagation that is
    orthogonal, and the same for all channels, keeps it.

    Args:
        propagated, features: (N, F, H, W) after and before propagation.

    Returns:
        (N,) squared distance of the two matrices (Frobenius), relative to that of the second one
        from 0.
    """
    new, old = (_gram_matrix(maps) for maps in (propagated, features))
    distance = (new - old).square().sum(dim=(1, 2))
    return distance / (old.square().sum(dim=(1, 2)) + _LEAST_ENERGY)


def _gram_matrix(maps: torch.Tensor) -> torch.Tensor:
    flat = maps.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def charbonnier(difference: torch.Tensor, width: float = 0.002) -> torch.Tensor:
    """Computes a smooth absolute value, sqrt(x^2 + width^2) - width, of every element.

    The default width is a quarter of a level of 8 bits for colors, so that a network also learns
    to leave alone what does not move.
    """
    return (difference.square() + width**2).sqrt() - width
