"""A backbone that also returns the image to the heads and can run on an image pyramid."""

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
    """Adds the output "image", the normalized image at stride 1, to the outputs of a backbone.

    In Detectron2, heads have access to the image only through the backbone. The parameters keep the
    names that they have in the wrapped backbone, so checkpoints of either load into the other.

    Optionally there is an output "stem", and the wrapped backbone runs with shared weights on the
    image at several scales. Its outputs keep their names at scale 1; at other scales "res4" becomes
    "res4@0.5" and so on. Strides refer to pixels of the original image and need not be integers.
    """

    def __init__(
        self,
        backbone: Backbone,
        image_channels: int = 3,
        *,
        scales: Sequence[float] = (1.0,),
        pyramid: str = "gaussian",
        stem: bool = False,
        frozen: bool = False,
    ):
        """
        Args:
            backbone: the wrapped backbone. All its parameters and buffers are in its submodules.
            image_channels: channels of the image.
            scales: scale factors of the image, above 0 and all different.
            pyramid: input of the wrapped backbone at each scale. "gaussian" is the resized image.
                "laplacian" is the band between this scale and the next smaller one, with
                normalized contrast (Farabet et al., PAMI 2013); the scales have to decrease.
            stem: add the output "stem", the first convolution of a ResNet at stride 2.
            frozen: freeze the wrapped backbone, which is then always in evaluation mode.

        Raises:
            ValueError: The backbone has parameters or buffers outside its submodules, or an output
                "image" or, with ``stem``, "stem"; ``stem`` is True and the backbone is not a
                ResNet; or ``scales`` or ``pyramid`` is not allowed.
        """
        super().__init__()
        self.frozen = frozen
        if frozen:
            backbone = freeze(backbone)
        for name in (IMAGE, *([STEM] if stem else [])):
            if name in backbone.output_shape():
                raise ValueError(f"{type(backbone).__name__} already has an output {name!r}")
        decreasing = list(scales) == sorted(scales, reverse=True)
        if not scales or min(scales) <= 0 or len(set(map(_suffix, scales))) < len(scales):
            raise ValueError(
                f"MODEL.GUIDED_BACKBONE.SCALES is {list(scales)}; allowed: one or more different "
                "factors above 0"
            )
        if pyramid not in PYRAMIDS or (pyramid == "laplacian" and not decreasing):
            raise ValueError(
                f"MODEL.GUIDED_BACKBONE.PYRAMID is {pyramid!r} with the SCALES {list(scales)}; "
                f"allowed: {', '.join(PYRAMIDS)}, which needs decreasing SCALES"
            )
        self._wrapped = adopt_children(self, backbone)
        self._first_conv = (_first_conv(backbone),) if stem else None
        self.image_channels = image_channels
        self.scales = tuple(scales)
        self.pyramid = pyramid

    def forward(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        """
        Args:
            image: (B, C, H, W), normalized and padded.

        Returns:
            The feature maps of the wrapped backbone and "image". At scales other than 1 "image@0.5"
            is the input of the wrapped backbone there, padded on the right and at the bottom.
        """
        outputs = {}
        for scale, scaled_image in zip(self.scales, self._scaled_images(image)):
            for name, maps in {**self._features(scaled_image), IMAGE: scaled_image}.items():
                outputs[name + _suffix(scale)] = maps
        return {**outputs, IMAGE: image}

    def _scaled_images(self, image: torch.Tensor) -> List[torch.Tensor]:
        """Returns the padded input of the wrapped backbone at every scale."""
        if self.pyramid == "gaussian":
            images = gaussian_pyramid(image, self.scales)
        else:
            images = [normalize_contrast(band) for band in laplacian_pyramid(image, self.scales)]
        divisor = max(1, self._wrapped[0].size_divisibility)
        return [F.pad(x, (0, -x.shape[-1] % divisor, 0, -x.shape[-2] % divisor)) for x in images]

    def _features(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        if self._first_conv is None:
            return self._wrapped[0](image)
        conv_outputs = []
        handle = self._first_conv[0].register_forward_hook(
            lambda module, args, output: conv_outputs.append(output)
        )
        try:
            features = self._wrapped[0](image)
        finally:
            handle.remove()
        return {**features, STEM: F.relu(conv_outputs[0])}

    def train(self, mode: bool = True) -> "GuidedBackbone":
        super().train(mode)
        # The children of the wrapped backbone are also children of this module.
        self._wrapped[0].train(mode and not self.frozen)
        return self

    @property
    def size_divisibility(self) -> int:
        divisibility = self._wrapped[0].size_divisibility
        if self.pyramid == "gaussian":
            return divisibility
        # The bands align exactly if no size is rounded, which is possible at scales of 1 / n.
        ratio = math.lcm(*(int(1 / scale) for scale in self.scales if (1 / scale).is_integer()))
        return max(1, divisibility) * ratio

    @property
    def padding_constraints(self) -> Dict[str, int]:
        return self._wrapped[0].padding_constraints

    def output_shape(self) -> Dict[str, ShapeSpec]:
        shapes_at_scale_1 = dict(self._wrapped[0].output_shape())
        if self._first_conv is not None:
            conv = self._first_conv[0]
            shapes_at_scale_1[STEM] = ShapeSpec(channels=conv.out_channels, stride=conv.stride[0])
        image_shape = ShapeSpec(channels=self.image_channels, stride=1)
        shapes_at_scale_1[IMAGE] = image_shape
        shapes = {
            name + _suffix(scale): ShapeSpec(channels=s.channels, stride=_stride(s.stride / scale))
            for scale in self.scales
            for name, s in shapes_at_scale_1.items()
        }
        return {**shapes, IMAGE: image_shape}


def _suffix(scale: float) -> str:
    return "" if scale == 1 else f"@{scale:g}"


def _stride(stride: float) -> float:
    """Converts integral strides to int, the type that Detectron2 uses."""
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
    """Freezes the parameters and the batch normalization statistics of a module.

    Dropout is not affected; it stays active until ``eval()`` is called.

    Returns:
        The module with FrozenBatchNorm2d in place of batch normalization.
    """
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return FrozenBatchNorm2d.convert_frozen_batchnorm(module)


def is_frozen(cfg: CfgNode) -> bool:
    """Tells whether the configuration freezes the whole backbone."""
    return cfg.MODEL.BACKBONE.NAME == "build_guided_backbone" and cfg.MODEL.GUIDED_BACKBONE.FREEZE


@BACKBONE_REGISTRY.register()
def build_guided_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GuidedBackbone:
    """Builds the backbone named in ``MODEL.GUIDED_BACKBONE.NAME`` and wraps it."""
    guided = cfg.MODEL.GUIDED_BACKBONE
    if guided.NAME == "build_guided_backbone" or guided.NAME not in BACKBONE_REGISTRY:
        raise ValueError(
            f"MODEL.GUIDED_BACKBONE.NAME is {guided.NAME!r}; allowed: the name of another "
            "registered backbone, such as build_resnet_fpn_backbone"
        )
    return GuidedBackbone(
        BACKBONE_REGISTRY.get(guided.NAME)(cfg, input_shape),
        input_shape.channels,
        scales=guided.SCALES,
        pyramid=guided.PYRAMID,
        stem=guided.STEM,
        frozen=guided.FREEZE,
    )
