"""A backbone that also passes the picture on to the heads."""

from typing import Dict

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone

from ..layers import adopt_children

IMAGE = "image"


class GuidedBackbone(Backbone):
    """Another backbone's outputs and "image": the normalised picture at stride 1.

    In Detectron2 heads see nothing of the picture but what the backbone returns. Parameters keep the names that they
    have in the other backbone, so that checkpoints load both ways.
    """

    def __init__(self, backbone: Backbone, image_channels: int):
        """
        Args:
            backbone: the other backbone; its own parameters and buffers all lie in its submodules.
            image_channels: of the picture.

        Raises:
            ValueError: the backbone has parameters or buffers outside its submodules, or an output "image".
        """
        super().__init__()
        if IMAGE in backbone.output_shape():
            raise ValueError(f"{type(backbone).__name__} has an output {IMAGE!r} already")
        self._wrapped = adopt_children(self, backbone)
        self.image_channels = image_channels

    def forward(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        """
        Args:
            image: (B, C, H, W), normalised and padded.

        Returns:
            The wrapped backbone's maps and "image".
        """
        return {**self._wrapped[0](image), IMAGE: image}

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
        image = ShapeSpec(channels=self.image_channels, stride=1)
        return {**self._wrapped[0].output_shape(), IMAGE: image}


@BACKBONE_REGISTRY.register()
def build_guided_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GuidedBackbone:
    """Wraps what the builder named in ``MODEL.GUIDED_BACKBONE.NAME`` builds."""
    name = cfg.MODEL.GUIDED_BACKBONE.NAME
    if name == "build_guided_backbone" or name not in BACKBONE_REGISTRY:
        raise ValueError(
            f"MODEL.GUIDED_BACKBONE.NAME is {name!r}; allowed: the name of another registered backbone, "
            "build_resnet_fpn_backbone"
        )
    return GuidedBackbone(BACKBONE_REGISTRY.get(name)(cfg, input_shape), input_shape.channels)
