"""VGG-16 as a backbone: torchvision's layers, with convolutions for the fully connected ones."""

import logging
from typing import Dict, List, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import nn
from torch.nn import functional as F
from torchvision.models.vgg import make_layers

from rpe_d2.config import check_config
from rpe_d2.modeling.argument_checks import check_range
from rpe_d2.utils.safe_loading import load_tensors

logger = logging.getLogger(__name__)

VGG16_CONVOLUTIONS = (2, 2, 3, 3, 3)  # in each block
_CHANNELS = (64, 128, 256, 512, 512)
_NORMS = ("", "BN", "FrozenBN")


def vgg16_features(fc_dim: int, width: float = 1.0, holes: bool = False) -> Dict[str, ShapeSpec]:
    """Returns channels and stride of all outputs that VGG-16 can have.

    The outputs are ``conv1_1`` to ``conv5_3`` (after the ReLU), ``pool1`` to ``pool5``,
    ``pool1_indices`` to ``pool5_indices`` (int64 positions of the maxima in the map before the
    pooling, as ``max_unpool2d`` takes them), ``fc6`` and ``fc7``. With ``holes``, ``pool4`` and the
    convolutions of the fifth block have stride 8, and there is no ``pool4_indices`` and nothing
    after ``conv5_3``.
    """
    shapes = {}
    for block, (channels, count) in enumerate(zip(_channels(width), VGG16_CONVOLUTIONS), start=1):
        for number in range(1, count + 1):
            shapes[f"conv{block}_{number}"] = ShapeSpec(channels=channels, stride=2 ** (block - 1))
        for name in (f"pool{block}", f"pool{block}_indices"):
            shapes[name] = ShapeSpec(channels=channels, stride=2**block)
    for name in ("fc6", "fc7"):
        shapes[name] = ShapeSpec(channels=fc_dim, stride=32)
    if holes:
        for name in ("pool5", "pool4_indices", "pool5_indices", "fc6", "fc7"):
            shapes.pop(name)
        shapes = {
            name: ShapeSpec(channels=shape.channels, stride=min(shape.stride, 8))
            for name, shape in shapes.items()
        }
    return shapes


def _channels(width: float) -> List[int]:
    return [max(1, round(width * channels)) for channels in _CHANNELS]


class VGG16(Backbone):
    """VGG-16 (Simonyan & Zisserman, ICLR 2015) with torchvision's convolutions.

    If they are requested, fc6 (7 x 7) and fc7 are convolutions as in FCN.

    With ``holes``, as in InstanceFCN, pool4 has stride 1 and the convolutions after it are dilated
    by 2. They compute at every cell of stride 8 what they would otherwise compute at every second
    one.
    """

    def __init__(
        self,
        out_features: Sequence[str] = ("pool3", "pool4", "conv5_3"),
        norm: str = "",
        fc_dim: int = 4096,
        dropout: float = 0.5,
        width: float = 1.0,
        holes: bool = False,
    ):
        """
        Args:
            out_features: names of outputs; see :func:`vgg16_features`.
            norm: normalization after each convolution of the five blocks, "BN" or "FrozenBN"; ""
                for none.
            fc_dim: channels of fc6 and fc7.
            dropout: dropout probability of fc6 and fc7.
            width: factor of the channels of the blocks, above 0.
            holes: whether the fifth block has stride 8 instead of 16.
        """
        super().__init__()
        if not width > 0:
            raise ValueError(f"width is {width}; allowed: above 0")
        if norm not in _NORMS:
            raise ValueError(f"norm is {norm!r}; allowed: {', '.join(map(repr, _NORMS))}")
        check_range("fc_dim", fc_dim, 1)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; allowed: 0 to below 1")
        shapes = vgg16_features(fc_dim, width, holes)
        if not out_features or not set(out_features) <= set(shapes):
            raise ValueError(
                f"out_features is {list(out_features)}; allowed: one or more of {', '.join(shapes)}"
            )
        self._out_features = list(out_features)
        self._out_feature_channels = {name: shapes[name].channels for name in out_features}
        self._out_feature_strides = {name: shapes[name].stride for name in out_features}
        channels = _channels(width)
        plan = [x for c, count in zip(channels, VGG16_CONVOLUTIONS) for x in [*[c] * count, "M"]]
        self.features = make_layers(plan, batch_norm=bool(norm))
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):  # the initialization of torchvision's vgg16
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self.holes = holes
        if holes:
            convolutions = [layer for layer in self.features if isinstance(layer, nn.Conv2d)]
            for layer in convolutions[-VGG16_CONVOLUTIONS[-1] :]:
                layer.dilation = layer.padding = (2, 2)
        if norm == "FrozenBN":
            self.features = FrozenBatchNorm2d.convert_frozen_batchnorm(self.features)
        self.fc6 = self.fc7 = None
        if {"fc6", "fc7"} & set(out_features):
            self.fc6 = nn.Conv2d(channels[-1], fc_dim, 7, padding=3)
            self.fc7 = nn.Conv2d(fc_dim, fc_dim, 1) if "fc7" in out_features else None
        self.dropout = nn.Dropout2d(dropout)
        for layer in (self.fc6, self.fc7):
            if layer is not None:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        """
        Args:
            image: (B, 3, H, W), normalized; H and W are multiples of 32.
        """
        outputs = {}
        x, block, number = image, 1, 0
        for layer in self.features:
            if not isinstance(layer, nn.MaxPool2d):
                x = layer(x)
                if isinstance(layer, nn.ReLU):
                    number += 1
                    outputs[f"conv{block}_{number}"] = x
                continue
            if f"pool{block}_indices" in self._out_features:
                x, indices = F.max_pool2d(x, 2, return_indices=True)
                outputs[f"pool{block}_indices"] = indices
            elif self.holes and block == 4:
                # The maximum of a cell and its neighbors to the right and below.
                x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 2, stride=1)
            elif self.holes and block == 5:
                break
            else:
                x = layer(x)
            outputs[f"pool{block}"] = x
            block, number = block + 1, 0
        for name, layer in (("fc6", self.fc6), ("fc7", self.fc7)):
            if layer is not None:
                x = self.dropout(F.relu(layer(x)))
                outputs[name] = x
        return {name: outputs[name] for name in self._out_features}

    @property
    def size_divisibility(self) -> int:
        return 32

    def freeze(self, num_blocks: int) -> "VGG16":
        """Freezes the convolutions and the batch statistics of the first blocks."""
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
        """Loads a state dict of torchvision's vgg16 or vgg16_bn, with its classifier.

        Raises:
            ValueError: The file does not exist, or its content does not match.
        """
        state = load_tensors("MODEL.VGG.WEIGHTS", path)
        if not isinstance(state, dict):
            raise ValueError(
                f"MODEL.VGG.WEIGHTS is {path}, which holds a {type(state).__name__}; "
                "allowed: a state dict of torchvision's vgg16"
            )
        # Anything that is not a tensor is reported as missing.
        state = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        own = self.state_dict()
        for name, number in (("fc6", 0), ("fc7", 3)):
            for kind in ("weight", "bias"):
                key, source = f"{name}.{kind}", f"classifier.{number}.{kind}"
                if key in own and source in state and state[source].numel() == own[key].numel():
                    state[key] = state[source].reshape(own[key].shape)
        mismatched = [
            name
            for name, value in own.items()
            if name not in state or state[name].shape != value.shape
            if not name.endswith("num_batches_tracked")
        ]
        if mismatched:
            raise ValueError(
                f"MODEL.VGG.WEIGHTS is {path}, which has no {mismatched[0]} of the right size; "
                "allowed: a state dict of torchvision's vgg16, or of vgg16_bn with MODEL.VGG.NORM"
            )
        self.load_state_dict({name: state[name] for name in own if name in state}, strict=False)


@BACKBONE_REGISTRY.register()
def build_vgg16_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> VGG16:
    """Builds VGG-16 from ``MODEL.VGG`` and freezes ``MODEL.BACKBONE.FREEZE_AT`` blocks."""
    check_config(cfg, "MODEL.VGG")
    vgg = cfg.MODEL.VGG
    if input_shape.channels != 3:
        raise ValueError(
            f"MODEL.PIXEL_MEAN has {input_shape.channels} channels; allowed with VGG-16: 3"
        )
    backbone = VGG16(vgg.OUT_FEATURES, vgg.NORM, vgg.FC_DIM, vgg.DROPOUT, vgg.WIDTH, vgg.HOLES)
    num_frozen = cfg.MODEL.BACKBONE.FREEZE_AT
    if vgg.WEIGHTS:
        backbone.load_torchvision(vgg.WEIGHTS)
    elif num_frozen > 0 and not cfg.MODEL.WEIGHTS:
        logger.warning(
            "MODEL.BACKBONE.FREEZE_AT is %d, but the blocks of VGG-16 that it freezes are random: "
            "set MODEL.VGG.WEIGHTS or MODEL.WEIGHTS, or FREEZE_AT 0",
            num_frozen,
        )
    return backbone.freeze(num_frozen)
