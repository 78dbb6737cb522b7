"""VGG-16 (Simonyan & Zisserman, ICLR 2015) as a backbone: torchvision's layers, the fully connected ones as convolutions."""

import logging
import os
from typing import Dict, List

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import nn
from torch.nn import functional as F
from torchvision.models.vgg import make_layers

from rpe_d2.config import check_config

logger = logging.getLogger(__name__)

VGG16_CONVOLUTIONS = (2, 2, 3, 3, 3)  # of each block
_CHANNELS = (64, 128, 256, 512, 512)
_NORMS = ("", "BN", "FrozenBN")


def vgg16_features(fc_dim: int, width: float = 1.0) -> Dict[str, ShapeSpec]:
    """Every output there is, with channels and stride.

    ``conv1_1`` … ``conv5_3`` (after the ReLU), ``pool1`` … ``pool5``, ``pool1_indices`` … (int64, where in the map below the
    largest values were, as ``max_unpool2d`` takes them), ``fc6`` and ``fc7``.
    """
    shapes = {}
    for block, (channels, count) in enumerate(zip(_channels(width), VGG16_CONVOLUTIONS), start=1):
        for number in range(1, count + 1):
            shapes[f"conv{block}_{number}"] = ShapeSpec(channels=channels, stride=2 ** (block - 1))
        for name in (f"pool{block}", f"pool{block}_indices"):
            shapes[name] = ShapeSpec(channels=channels, stride=2**block)
    for name in ("fc6", "fc7"):
        shapes[name] = ShapeSpec(channels=fc_dim, stride=32)
    return shapes


def _channels(width: float) -> List[int]:
    return [max(1, round(width * channels)) for channels in _CHANNELS]


class VGG16(Backbone):
    """torchvision's convolutions and, where they are asked for, fc6 (7 x 7) and fc7 as in FCN."""

    def __init__(
        self, out_features: List[str], norm: str, fc_dim: int, dropout: float, width: float = 1.0
    ):
        """
        Args:
            out_features: names of :func:`vgg16_features`.
            norm: "" or, after every convolution of the five blocks, "BN" or "FrozenBN".
            fc_dim: channels of fc6 and fc7.
            dropout: after these, in training.
            width: factor of the blocks' channels.

        Raises:
            ValueError: a name or the normalisation does not exist, or the width is not positive.
        """
        super().__init__()
        if not width > 0:
            raise ValueError(f"MODEL.VGG.WIDTH is {width}; allowed: above 0")
        shapes = vgg16_features(fc_dim, width)
        unknown = [name for name in out_features if name not in shapes]
        if unknown or not out_features:
            raise ValueError(
                f"MODEL.VGG.OUT_FEATURES is {list(out_features)}; allowed: one or more of {', '.join(shapes)}"
            )
        if norm not in _NORMS:
            raise ValueError(f"MODEL.VGG.NORM is {norm!r}; allowed: {', '.join(map(repr, _NORMS))}")
        self._out_features = list(out_features)
        self._out_feature_channels = {name: shapes[name].channels for name in out_features}
        self._out_feature_strides = {name: shapes[name].stride for name in out_features}
        channels = _channels(width)
        plan = [x for c, count in zip(channels, VGG16_CONVOLUTIONS) for x in [*[c] * count, "M"]]
        self.features = make_layers(plan, batch_norm=bool(norm))
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):  # as torchvision's vgg16 starts
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        if norm == "FrozenBN":
            self.features = FrozenBatchNorm2d.convert_frozen_batchnorm(self.features)
        self.fc6 = self.fc7 = None
        if {"fc6", "fc7"} & set(out_features):
            self.fc6 = nn.Conv2d(channels[-1], fc_dim, 7, padding=3)
            self.fc7 = nn.Conv2d(fc_dim, fc_dim, 1) if "fc7" in out_features else None
        self.dropout = nn.Dropout2d(dropout)
        for name in ("fc6", "fc7"):
            layer = getattr(self, name)
            if layer is not None:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        """
        Args:
            image: (B, 3, H, W), normalised, H and W multiples of 32.
        """
        found = {}
        x, block, number = image, 1, 0
        for layer in self.features:
            if not isinstance(layer, nn.MaxPool2d):
                x = layer(x)
                if isinstance(layer, nn.ReLU):
                    number += 1
                    found[f"conv{block}_{number}"] = x
                continue
            if f"pool{block}_indices" in self._out_features:
                x, indices = F.max_pool2d(x, 2, return_indices=True)
                found[f"pool{block}_indices"] = indices
            else:
                x = layer(x)
            found[f"pool{block}"] = x
            block, number = block + 1, 0
        for name in ("fc6", "fc7"):
            layer = getattr(self, name)
            if layer is not None:
                x = self.dropout(F.relu(layer(x)))
                found[name] = x
        return {name: found[name] for name in self._out_features}

    @property
    def size_divisibility(self) -> int:
        return 32

    def freeze(self, num_blocks: int) -> "VGG16":
        """Fixes the convolutions, and the statistics of the normalisation, of the first blocks."""
        block = 1
        for index, layer in enumerate(self.features):
            if block > num_blocks:
                break
            if isinstance(layer, nn.MaxPool2d):
                block += 1
            for parameter in layer.parameters():
                parameter.requires_grad = False
            self.features[index] = FrozenBatchNorm2d.convert_frozen_batchnorm(layer)
        return self

    def load_torchvision(self, path: str) -> None:
        """Loads a state dict of torchvision's vgg16 (vgg16_bn with normalisation), its classifier included.

        Raises:
            ValueError: the file is not there, or holds something else.
        """
        if not os.path.isfile(path):
            raise ValueError(f"MODEL.VGG.WEIGHTS is {path}; there is no such file")
        state = torch.load(path, map_location="cpu", weights_only=True)
        wanted = self.state_dict()
        for name, number in (("fc6", 0), ("fc7", 3)):
            for kind in ("weight", "bias"):
                key = f"{name}.{kind}"
                if key in wanted and f"classifier.{number}.{kind}" in state:
                    value = state[f"classifier.{number}.{kind}"]
                    if value.numel() == wanted[key].numel():
                        state[key] = value.reshape(wanted[key].shape)
        wrong = [
            name
            for name, value in wanted.items()
            if name not in state or state[name].shape != value.shape
            if not name.endswith("num_batches_tracked")
        ]
        if wrong:
            raise ValueError(
                f"MODEL.VGG.WEIGHTS is {path}, which has no {wrong[0]} of the right size; allowed: a state dict of "
                "torchvision's vgg16, with MODEL.VGG.NORM of vgg16_bn"
            )
        self.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False)


@BACKBONE_REGISTRY.register()
def build_vgg16_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> VGG16:
    """VGG-16 as ``MODEL.VGG`` says, the first ``MODEL.BACKBONE.FREEZE_AT`` blocks fixed."""
    check_config(cfg, "MODEL.VGG")
    vgg = cfg.MODEL.VGG
    if input_shape.channels != 3:
        raise ValueError(
            f"VGG-16 takes pictures of 3 channels; MODEL.PIXEL_MEAN has {input_shape.channels}"
        )
    backbone = VGG16(list(vgg.OUT_FEATURES), vgg.NORM, vgg.FC_DIM, vgg.DROPOUT, vgg.WIDTH)
    num_fixed = cfg.MODEL.BACKBONE.FREEZE_AT
    if vgg.WEIGHTS:
        backbone.load_torchvision(vgg.WEIGHTS)
    elif num_fixed > 0 and not cfg.MODEL.WEIGHTS:
        logger.warning(
            "MODEL.BACKBONE.FREEZE_AT is %d, and the blocks of VGG-16 that it fixes are random: set MODEL.VGG.WEIGHTS, or "
            "MODEL.WEIGHTS, or FREEZE_AT 0",
            num_fixed,
        )
    return backbone.freeze(num_fixed)
