"""A backbone without a network, for heads that see the image alone."""

from typing import Dict

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone

from .guided_backbone import IMAGE


class ImageBackbone(Backbone):
    """Has one output, "image": the normalized image at stride 1, as in ``build_guided_backbone``.

    It has no parameters.
    """

    def __init__(self, image_channels: int = 3):
        """
        Args:
            image_channels: channels of the image.
        """
        super().__init__()
        self.image_channels = image_channels

    def forward(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        """
        Args:
            image: (B, C, H, W), normalized and padded.
        """
        return {IMAGE: image}

    def output_shape(self) -> Dict[str, ShapeSpec]:
        return {IMAGE: ShapeSpec(channels=self.image_channels, stride=1)}


@BACKBONE_REGISTRY.register()
def build_image_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ImageBackbone:
    """Builds a backbone that passes the image on."""
    return ImageBackbone(input_shape.channels)
