"""A backbone that also passes the picture on to the heads, and sees it at several sizes."""

import math
from typing import Dict, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch.nn import functional as F

from rpe_d2.ops.pyramid import gaussian_pyramid, laplacian_pyramid, normalize_contrast

from ..layers import adopt_children

IMAGE = "image"
PYRAMIDS = ("gaussian", "laplacian")


class GuidedBackbone(Backbone):
    """Another backbone's outputs and "image": the normalised picture at stride 1.

    In Detectron2 heads see nothing of the picture but what the backbone returns. Parameters keep the names that they
    have in the other backbone, so that checkpoints load both ways.

    The other backbone runs on the picture at several sizes, with the same weights. Its outputs keep their names at
    scale 1; at others "res4" becomes "res4@0.5" and so on, with a stride in pixels of the picture.
    """

    def __init__(
        self,
        backbone: Backbone,
        image_channels: int,
        scales: Sequence[float] = (1.0,),
        pyramid: str = "gaussian",
    ):
        """
        Args:
            backbone: the other backbone; its own parameters and buffers all lie in its submodules.
            image_channels: of the picture.
            scales: of the picture, above 0, each once.
            pyramid: what the other backbone sees at each: "gaussian", the resized picture; "laplacian", what it shows
                beyond the next smaller one, its contrast normalised (Farabet et al., PAMI 2013; scales fall).

        Raises:
            ValueError: the backbone has parameters or buffers outside its submodules, or an output "image"; the
                pyramid does not exist.
        """
        super().__init__()
        if IMAGE in backbone.output_shape():
            raise ValueError(f"{type(backbone).__name__} has an output {IMAGE!r} already")
        falling = list(scales) == sorted(set(scales), reverse=True)
        if not scales or min(scales) <= 0 or len(set(scales)) < len(scales):
            raise ValueError(
                f"MODEL.GUIDED_BACKBONE.SCALES is {list(scales)}; allowed: one or more different factors above 0"
            )
        if pyramid not in PYRAMIDS or (pyramid == "laplacian" and not falling):
            raise ValueError(
                f"MODEL.GUIDED_BACKBONE.PYRAMID is {pyramid!r} with the SCALES {list(scales)}; allowed: "
                f"{', '.join(PYRAMIDS)}, which needs SCALES that fall"
            )
        self._wrapped = adopt_children(self, backbone)
        self.image_channels = image_channels
        self.scales = tuple(scales)
        self.pyramid = pyramid

    def forward(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        """
        Args:
            image: (B, C, H, W), normalised and padded.

        Returns:
            The wrapped backbone's maps and "image".
        """
        found = {IMAGE: image}
        for scale, picture in zip(self.scales, self._pictures(image)):
            for name, maps in self._wrapped[0](picture).items():
                found[_name_at(name, scale)] = maps
        return found

    def _pictures(self, image: torch.Tensor) -> Sequence[torch.Tensor]:
        """What the wrapped backbone gets, padded as it needs."""
        if self.scales == (1.0,) and self.pyramid == "gaussian":
            return [image]
        if self.pyramid == "gaussian":
            pictures = gaussian_pyramid(image, self.scales)
        else:
            pictures = [normalize_contrast(band) for band in laplacian_pyramid(image, self.scales)]
        divisor = max(1, self._wrapped[0].size_divisibility)
        return [F.pad(p, (0, -p.shape[-1] % divisor, 0, -p.shape[-2] % divisor)) for p in pictures]

    def train(self, mode: bool = True) -> "GuidedBackbone":
        self._wrapped[0].training = mode
        return super().train(mode)

    @property
    def size_divisibility(self) -> int:
        # At a scale of 1 / n nothing is to be padded.
        ratio = math.lcm(*(int(1 / scale) for scale in self.scales if (1 / scale).is_integer()))
        own = self._wrapped[0].size_divisibility
        return max(1, own) * ratio if ratio > 1 else own

    @property
    def padding_constraints(self) -> Dict[str, int]:
        return self._wrapped[0].padding_constraints

    def output_shape(self) -> Dict[str, ShapeSpec]:
        shapes = {}
        for scale in self.scales:
            for name, shape in self._wrapped[0].output_shape().items():
                stride = shape.stride / scale
                stride = int(stride) if stride == int(stride) else stride
                shapes[_name_at(name, scale)] = ShapeSpec(channels=shape.channels, stride=stride)
        return {**shapes, IMAGE: ShapeSpec(channels=self.image_channels, stride=1)}


def _name_at(name: str, scale: float) -> str:
    return name if scale == 1 else f"{name}@{scale:g}"


@BACKBONE_REGISTRY.register()
def build_guided_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GuidedBackbone:
    """Wraps what the builder named in ``MODEL.GUIDED_BACKBONE.NAME`` builds."""
    guided = cfg.MODEL.GUIDED_BACKBONE
    name = guided.NAME
    if name == "build_guided_backbone" or name not in BACKBONE_REGISTRY:
        raise ValueError(
            f"MODEL.GUIDED_BACKBONE.NAME is {name!r}; allowed: the name of another registered backbone, "
            "build_resnet_fpn_backbone"
        )
    wrapped = BACKBONE_REGISTRY.get(name)(cfg, input_shape)
    return GuidedBackbone(wrapped, input_shape.channels, guided.SCALES, guided.PYRAMID)
