"""Preprocessing that the meta-architectures share: normalization and padding of a batch."""

from typing import Dict, Iterable, List, Sequence

import torch
from detectron2.modeling.backbone import Backbone
from detectron2.structures import ImageList
from torch import nn

# Detectron2's defaults of MODEL.PIXEL_MEAN and MODEL.PIXEL_STD, for images in BGR order.
PIXEL_MEAN = (103.530, 116.280, 123.675)
PIXEL_STD = (1.0, 1.0, 1.0)


class PaddedInput(nn.Module):
    """Base class of networks that take Detectron2's list of dicts.

    It normalizes the images and pads them so that the feature maps of all strides cover the same
    padded image.
    """

    def __init__(
        self,
        backbone: Backbone,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        strides: Iterable[int],
    ):
        """
        Args:
            backbone: the backbone of the network.
            pixel_mean, pixel_std: mean and standard deviation of each channel.
            strides: strides of the network's own feature maps.
        """
        super().__init__()
        self.backbone = backbone
        self.register_buffer(
            "pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False
        )
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        backbone_strides = [shape.stride for shape in backbone.output_shape().values()]
        self.size_divisibility = max(backbone.size_divisibility, *backbone_strides, *strides)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def normalized(self, item: Dict) -> torch.Tensor:
        """Returns the normalized image (C, H, W) of a dict."""
        return (item["image"].to(self.device) - self.pixel_mean) / self.pixel_std

    def padded(self, images: List[torch.Tensor]) -> ImageList:
        """Pads normalized images and stacks them."""
        return ImageList.from_tensors(
            images, self.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )
