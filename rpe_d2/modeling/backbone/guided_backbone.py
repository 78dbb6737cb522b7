"""A backbone that also passes the picture on to the heads, and sees it at several sizes."""

import math
from typing import Dict, List, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import nn
from torch.nn import functional as F

from rpe_d2.ops.pyramid import gaussian_pyramid, laplacian_pyramid, normalize_contrast

from ..layers import adopt_children

IMAGE = "image"
STEM = "stem"
PYRAMIDS = ("gaussian", "laplacian")


class GuidedBackbone(Backbone):
    """Another backbone's outputs and "image", the normalised picture at stride 1; on request "stem" and a pyramid.

    In Detectron2 heads see nothing of the picture but what the backbone returns. Parameters keep the names that they
    have in the other backbone, so that checkpoints load both ways.

    In the pyramid the other backbone runs on the picture at several sizes, with the same weights. Its outputs keep their
    names at scale 1; at others "res4" becomes "res4@0.5" and so on, with a stride in pixels of the picture itself, which
    need not be an integer.
    """

    def __init__(
        self,
        backbone: Backbone,
        image_channels: int,
        *,
        scales: Sequence[float] = (1.0,),
        pyramid: str = "gaussian",
        stem: bool = False,
        frozen: bool = False,
    ):
        """
        Args:
            backbone: the other backbone; its own parameters and buffers all lie in its submodules.
            image_channels: of the picture.
            scales: of the picture, above 0, each once.
            pyramid: what the other backbone sees at each: "gaussian", the resized picture; "laplacian", what it shows
                beyond the next smaller one, its contrast normalised (Farabet et al., PAMI 2013; scales fall).
            stem: add the output "stem", of a ResNet's first convolution, at stride 2.
            frozen: training changes nothing of the other backbone, which computes as at inference.

        Raises:
            ValueError: the backbone has parameters or buffers outside its submodules, an output "image" or, with
                ``stem``, "stem", or no such first convolution; the pyramid does not exist.
        """
        super().__init__()
        self.frozen = frozen
        if frozen:
            backbone = freeze(backbone)
        for name in (IMAGE, *([STEM] if stem else [])):
            if name in backbone.output_shape():
                raise ValueError(f"{type(backbone).__name__} has an output {name!r} already")
        falling = list(scales) == sorted(scales, reverse=True)
        if not scales or min(scales) <= 0 or len(set(map(_suffix, scales))) < len(scales):
            raise ValueError(
                f"MODEL.GUIDED_BACKBONE.SCALES is {list(scales)}; allowed: one or more different factors above 0"
            )
        if pyramid not in PYRAMIDS or (pyramid == "laplacian" and not falling):
            raise ValueError(
                f"MODEL.GUIDED_BACKBONE.PYRAMID is {pyramid!r} with the SCALES {list(scales)}; allowed: "
                f"{', '.join(PYRAMIDS)}, which needs SCALES that fall"
            )
        self._wrapped = adopt_children(self, backbone)
        self._first_conv = (_first_conv(backbone),) if stem else None
        self.image_channels = image_channels
        self.scales = tuple(scales)
        self.pyramid = pyramid

    def forward(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        """
        Args:
            image: (B, C, H, W), normalised and padded.

        Returns:
            The wrapped backbone's maps, "image" and, at other scales than 1 padded on the right and below, what that
            backbone sees there ("image@0.5").
        """
        found = {}
        for scale, picture in zip(self.scales, self._pictures(image)):
            for name, maps in {**self._maps(picture), IMAGE: picture}.items():
                found[name + _suffix(scale)] = maps
        return {**found, IMAGE: image}

    def _pictures(self, image: torch.Tensor) -> List[torch.Tensor]:
        """What the wrapped backbone gets, padded as it needs."""
        if self.pyramid == "gaussian":
            pictures = gaussian_pyramid(image, self.scales)
        else:
            pictures = [normalize_contrast(band) for band in laplacian_pyramid(image, self.scales)]
        divisor = max(1, self._wrapped[0].size_divisibility)
        return [F.pad(p, (0, -p.shape[-1] % divisor, 0, -p.shape[-2] % divisor)) for p in pictures]

    def _maps(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        if self._first_conv is None:
            return self._wrapped[0](image)
        kept = []
        handle = self._first_conv[0].register_forward_hook(lambda *call: kept.append(call[2]))
        try:
            maps = self._wrapped[0](image)
        finally:
            handle.remove()
        return {**maps, STEM: F.relu(kept[0])}

    def train(self, mode: bool = True) -> "GuidedBackbone":
        super().train(mode)
        self._wrapped[0].train(mode and not self.frozen)  # its children are this module's, too
        return self

    @property
    def size_divisibility(self) -> int:
        own = self._wrapped[0].size_divisibility
        if self.pyramid == "gaussian":
            return own
        # Bands fit exactly onto each other where nothing is rounded, at scales of 1 / n.
        ratio = math.lcm(*(int(1 / scale) for scale in self.scales if (1 / scale).is_integer()))
        return max(1, own) * ratio

    @property
    def padding_constraints(self) -> Dict[str, int]:
        return self._wrapped[0].padding_constraints

    def output_shape(self) -> Dict[str, ShapeSpec]:
        own = dict(self._wrapped[0].output_shape())
        if self._first_conv is not None:
            conv = self._first_conv[0]
            own[STEM] = ShapeSpec(channels=conv.out_channels, stride=conv.stride[0])
        own[IMAGE] = image = ShapeSpec(channels=self.image_channels, stride=1)
        shapes = {
            name + _suffix(scale): ShapeSpec(channels=s.channels, stride=_stride(s.stride / scale))
            for scale in self.scales
            for name, s in own.items()
        }
        return {**shapes, IMAGE: image}


def _suffix(scale: float) -> str:
    return "" if scale == 1 else f"@{scale:g}"


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
    """The module without anything that training changes: parameters, and statistics of batch normalisation.

    What is random in training, dropout, remains so until ``eval()``.
    """
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return FrozenBatchNorm2d.convert_frozen_batchnorm(module)


def is_frozen(cfg: CfgNode) -> bool:
    """Whether training leaves the whole backbone as it is."""
    return cfg.MODEL.BACKBONE.NAME == "build_guided_backbone" and cfg.MODEL.GUIDED_BACKBONE.FREEZE


@BACKBONE_REGISTRY.register()
def build_guided_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GuidedBackbone:
    """Wraps what the builder named in ``MODEL.GUIDED_BACKBONE.NAME`` builds."""
    guided = cfg.MODEL.GUIDED_BACKBONE
    if guided.NAME == "build_guided_backbone" or guided.NAME not in BACKBONE_REGISTRY:
        raise ValueError(
            f"MODEL.GUIDED_BACKBONE.NAME is {guided.NAME!r}; allowed: the name of another registered backbone, "
            "build_resnet_fpn_backbone"
        )
    return GuidedBackbone(
        BACKBONE_REGISTRY.get(guided.NAME)(cfg, input_shape),
        input_shape.channels,
        scales=guided.SCALES,
        pyramid=guided.PYRAMID,
        stem=guided.STEM,
        frozen=guided.FREEZE,
    )
