"""What the meta-architectures do to a batch before the backbone."""

from typing import Dict, Iterable, List, Sequence

import torch
from detectron2.modeling.backbone import Backbone
from detectron2.structures import ImageList
from torch import nn


class PaddedInput(nn.Module):
    """A network whose input is Detectron2's list of dicts: normalises the images and pads them to whole cells."""

    def __init__(
        self,
        backbone: Backbone,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        strides: Iterable[int],
    ):
        """
        Args:
            backbone: of the network.
            pixel_mean, pixel_std: per channel.
            strides: of the network's own maps.
        """
        super().__init__()
        self.backbone = backbone
        self.register_buffer(
            "pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False
        )
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        # Whole cells everywhere: maps of all strides then cover the same padded picture.
        of_backbone = [shape.stride for shape in backbone.output_shape().values()]
        self.size_divisibility = max(backbone.size_divisibility, *of_backbone, *strides)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def normalized(self, item: Dict) -> torch.Tensor:
        """The image (C, H, W) of one dict."""
        return (item["image"].to(self.device) - self.pixel_mean) / self.pixel_std

    def padded(self, images: List[torch.Tensor]) -> ImageList:
        """Normalised images in one batch."""
        return ImageList.from_tensors(
            images, self.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )
