"""The convolutional network of Farabet et al. as a backbone: banks of filters, tanh and pooling."""

from typing import Dict, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch.nn import functional as F

from .patch_network import PatchLayer, PatchNetwork

BANK = "bank"
_POOLING = 2


class FilterBank(Backbone):
    """Three banks of filters (Farabet et al., PAMI 2013, sections 3.1 and 5).

    Each bank but the last one is followed by tanh and by max pooling of 2 x 2. The output "bank" is
    the last bank. Its cells, 4 pixels apart, see 46 x 46 pixels around their centers. Beyond the
    border, the image is zero. ``build_guided_backbone`` applies the network to the scales of a
    pyramid.

    Every filter sees all maps of the bank before. The authors connect each with a random half or
    fewer of them, and the first ones with either brightness or color.
    """

    def __init__(
        self,
        image_channels: int = 3,
        channels: Sequence[int] = (16, 64, 256),
        kernel_size: int = 7,
    ):
        """
        Args:
            image_channels: channels of the image.
            channels: number of filters of each bank.
            kernel_size: side of the filters.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__()
        layers = [
            PatchLayer(kernel_size, number, _POOLING if bank < len(channels) - 1 else 1)
            for bank, number in enumerate(channels)
        ]
        self.network = PatchNetwork(image_channels, layers)
        # A patch is larger than a cell by as much before its first pixel as behind its last one.
        margin = self.network.patch_size - self.network.stride
        self.margins = margin // 2, margin - margin // 2

    def forward(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        """
        Args:
            image: (B, C, H, W), normalized; H and W are multiples of the stride, 4.
        """
        before, after = self.margins
        return {BANK: self.network(F.pad(image, (before, after, before, after)))}

    @property
    def size_divisibility(self) -> int:
        return self.network.stride

    def output_shape(self) -> Dict[str, ShapeSpec]:
        shape = ShapeSpec(channels=self.network.out_channels, stride=self.network.stride)
        return {BANK: shape}


@BACKBONE_REGISTRY.register()
def build_filter_bank_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FilterBank:
    """Builds the network of Farabet et al. with 16, 64 and 256 filters of 7 x 7 pixels."""
    return FilterBank(input_shape.channels)
