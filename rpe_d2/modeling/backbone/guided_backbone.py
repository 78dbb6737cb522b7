"""A backbone that also passes the picture on to the heads, and looks at it at several scales."""

from typing import Dict, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import nn
from torch.nn import functional as F

from ..layers import adopt_children

IMAGE = "image"
STEM = "stem"


class GuidedBackbone(Backbone):
    """Another backbone's outputs and "image", the normalised picture at stride 1; on request "stem" and a pyramid.

    In Detectron2 heads see nothing of the picture but what the backbone returns. Parameters keep the names that they
    have in the other backbone, so that checkpoints load both ways. In the pyramid the other backbone also runs on the
    picture at each of several scales; its outputs are then named "res4@0.5" and so on, with strides in pixels of the
    picture itself, which need not be integers.
    """

    def __init__(
        self,
        backbone: Backbone,
        image_channels: int,
        *,
        scales: Sequence[float] = (),
        stem: bool = False,
    ):
        """
        Args:
            backbone: the other backbone; its own parameters and buffers all lie in its submodules.
            image_channels: of the picture.
            scales: of the pyramid, beside 1.
            stem: add the output "stem", of a ResNet's first convolution, at stride 2.

        Raises:
            ValueError: the backbone has parameters or buffers outside its submodules, an output "image" or, with
                ``stem``, "stem", or no such first convolution.
        """
        super().__init__()
        for name in (IMAGE, *([STEM] if stem else [])):
            if name in backbone.output_shape():
                raise ValueError(f"{type(backbone).__name__} has an output {name!r} already")
        self._wrapped = adopt_children(self, backbone)
        self._first_conv = (_first_conv(backbone),) if stem else None
        self.image_channels = image_channels
        self.scales = tuple(scales)

    def forward(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        """
        Args:
            image: (B, C, H, W), normalised and padded.

        Returns:
            The wrapped backbone's maps and "image", then those of the pyramid, padded on the right and below, and its pictures.
        """
        maps = self._maps(image)
        for scale in self.scales:
            found = self._maps(self._scaled(image, scale))
            maps.update({_scaled_name(name, scale): value for name, value in found.items()})
        return maps

    def _maps(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        if self._first_conv is None:
            return {**self._wrapped[0](image), IMAGE: image}
        kept = []
        handle = self._first_conv[0].register_forward_hook(lambda *call: kept.append(call[2]))
        try:
            maps = self._wrapped[0](image)
        finally:
            handle.remove()
        return {**maps, STEM: F.relu(kept[0]), IMAGE: image}

    def _scaled(self, image: torch.Tensor, scale: float) -> torch.Tensor:
        # The given scale, not that of the rounded sizes: cells lie exactly their stride apart.
        scaled = F.interpolate(
            image,
            scale_factor=scale,
            mode="bilinear",
            align_corners=False,
            antialias=scale < 1,
            recompute_scale_factor=False,
        )
        multiple = max(self.size_divisibility, 1)
        height, width = (-side % multiple for side in scaled.shape[-2:])
        return F.pad(scaled, (0, width, 0, height))

    def train(self, mode: bool = True) -> "GuidedBackbone":
        self._wrapped[0].training = mode
        return super().train(mode)

    @property
    def size_divisibility(self) -> int:
        return self._wrapped[0].size_divisibility

    @property
    def padding_constraints(self) -> Dict[str, int]:
        return self._wrapped[0].padding_constraints

    def output_shape(self) -> Dict[str, ShapeSpec]:
        shapes = dict(self._wrapped[0].output_shape())
        if self._first_conv is not None:
            conv = self._first_conv[0]
            shapes[STEM] = ShapeSpec(channels=conv.out_channels, stride=conv.stride[0])
        shapes[IMAGE] = ShapeSpec(channels=self.image_channels, stride=1)
        pyramid = {
            _scaled_name(name, scale): ShapeSpec(
                channels=shape.channels, stride=_stride(shape.stride / scale)
            )
            for scale in self.scales
            for name, shape in shapes.items()
        }
        return {**shapes, **pyramid}


def _scaled_name(name: str, scale: float) -> str:
    return f"{name}@{scale:g}"


def _stride(stride: float) -> float:
    """An int wherever it is one, as Detectron2's own."""
    return int(stride) if stride == int(stride) else stride


def _first_conv(backbone: Backbone) -> nn.Module:
    stem = getattr(getattr(backbone, "bottom_up", backbone), "stem", None)
    conv = getattr(stem, "conv1", None)
    if conv is None:
        raise ValueError(
            f"MODEL.GUIDED_BACKBONE.STEM is True, and {type(backbone).__name__} has none; "
            "allowed: with ResNets, alone or under an FPN"
        )
    return conv


def freeze(module: nn.Module) -> nn.Module:
    """The module without anything that training changes: parameters, and statistics of batch normalisation."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return FrozenBatchNorm2d.convert_frozen_batchnorm(module)


@BACKBONE_REGISTRY.register()
def build_guided_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GuidedBackbone:
    """Wraps what the builder named in ``MODEL.GUIDED_BACKBONE.NAME`` builds."""
    guided = cfg.MODEL.GUIDED_BACKBONE
    if guided.NAME == "build_guided_backbone" or guided.NAME not in BACKBONE_REGISTRY:
        raise ValueError(
            f"MODEL.GUIDED_BACKBONE.NAME is {guided.NAME!r}; allowed: the name of another registered backbone, "
            "build_resnet_fpn_backbone"
        )
    names = [_scaled_name("", scale) for scale in (1, *guided.SCALES)]
    if len(set(names)) < len(names) or min(guided.SCALES, default=1) <= 0:
        raise ValueError(
            f"MODEL.GUIDED_BACKBONE.SCALES is {list(guided.SCALES)}; allowed: different factors above 0, beside 1"
        )
    backbone = BACKBONE_REGISTRY.get(guided.NAME)(cfg, input_shape)
    if guided.FREEZE:
        backbone = freeze(backbone)
    return GuidedBackbone(backbone, input_shape.channels, scales=guided.SCALES, stem=guided.STEM)
