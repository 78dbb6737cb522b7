"""The spatial propagation network for class maps, as its authors draw it."""

from typing import Any, Dict

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn
from torch.nn import functional as F

from rpe_d2.ops.propagation import spatial_propagation

from .argument_checks import check_choice, check_range
from .layers import zero_loss
from .spn import GuidanceNetwork, PropagationUnits, guidance_arguments, unit_arguments

CLASS_MERGES = ("max", "mean", "learned")
CLASS_INPUTS = ("probabilities", "logits")
_STRIDE = 2


class ClassPropagation(nn.Module):
    """Refines the class maps of another network (Liu et al., NIPS 2017, slides 20 to 22 and 33).

    A convolution of stride 2 turns the maps into channels, each of which has its own gates from the
    guidance network. After two propagations, the result is enlarged, and two convolutions predict
    the logits of the classes. There is no residual connection.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        num_classes: int,
        channels: int = 32,
        num_units: int = 2,
        gate_mode: str = "abs_sum",
        connections: int = 3,
        merge: str = "max",
        inputs: str = "probabilities",
        conv_dim: int = 64,
        norm: str = "GN",
    ):
        """
        Args:
            input_shape: channels and stride of the feature maps of the guidance network's encoder.
            num_classes: number K of classes.
            channels: number of propagated channels, 32 in the release and 16 on slide 20.
            num_units, gate_mode, connections: see :class:`PropagationUnits`. A single connection
                cannot have "abs_sum", which would divide each gate by its own magnitude.
            merge: "max", "mean", or "learned", a weight for each direction and channel.
            inputs: "probabilities", or their logarithms, "logits".
            conv_dim, norm: see :class:`GuidanceNetwork`.
        """
        super().__init__()
        check_range("num_classes", num_classes, 1)
        check_range("channels", channels, 1)
        check_choice("merge", merge, CLASS_MERGES)
        check_choice("inputs", inputs, CLASS_INPUTS)
        if connections == 1 and gate_mode == "abs_sum":
            raise ValueError(
                "MODEL.SPN.GATE_MODE is 'abs_sum', with which gates of MODEL.SPN.CONNECTIONS 1 are "
                "1 or -1 and learn nothing; allowed: 'softmax', 'clipped'"
            )
        self.units = PropagationUnits(num_units, gate_mode, connections)
        self.merge, self.inputs = merge, inputs
        self.guidance = GuidanceNetwork(
            input_shape,
            out_channels=channels * self.units.gates_per_channel,
            stride=_STRIDE,
            conv_dim=conv_dim,
            norm=norm,
        )
        self.embed = nn.Conv2d(num_classes, channels, 4, stride=_STRIDE, padding=1)
        self.hidden = nn.Conv2d(channels, 64, 3, padding=1)
        self.predictor = nn.Conv2d(64, num_classes, 3, padding=1)
        for layer in (self.embed, self.hidden, self.predictor):
            c2_msra_fill(layer)
        if merge == "learned":
            self.blend = nn.Parameter(torch.zeros(4, 1, channels, 1, 1))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> Dict[str, Any]:
        arguments = {**unit_arguments(cfg), **guidance_arguments(cfg, input_shape)}
        del arguments["stride"]
        spn = cfg.MODEL.SPN
        return {
            **arguments,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "channels": spn.CHANNELS,
            "merge": spn.MERGE,
            "inputs": spn.INPUTS,
        }

    @property
    def stride(self) -> int:
        """Pixels per cell of the propagated maps."""
        return _STRIDE

    def forward(
        self, probabilities: torch.Tensor, features: Dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """
        Args:
            probabilities: (B, K, H, W) that sum to 1. H and W are even.
            features: feature maps (B, C_i, H / stride_i, W / stride_i) of the images.

        Returns:
            (B, K, H, W) logits.
        """
        maps = probabilities
        if self.inputs == "logits":
            maps = maps.clamp(min=1e-4).log()
        maps = self.embed(maps)
        gates = self.units.normalize(self.guidance(features).float())
        maps = self._propagate(maps, gates)
        maps = F.interpolate(maps, scale_factor=float(_STRIDE), mode="bilinear")
        return self.predictor(F.relu(self.hidden(maps)))

    def _propagate(self, maps: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        if self.merge != "learned" or self.units.num_units == 0:
            unused = zero_loss(self.blend) if self.merge == "learned" else 0.0
            return self.units.propagate(maps, gates, self._fixed_merge) + unused
        weights = self.blend.softmax(dim=0)
        for _ in range(self.units.num_units):
            maps = (weights * spatial_propagation(maps, gates, "none")).sum(dim=0)
        return maps

    @property
    def _fixed_merge(self) -> str:
        return "mean" if self.merge == "learned" else self.merge
