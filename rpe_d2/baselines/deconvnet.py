"""DeconvNet: a mirrored VGG-16 from fc7 back to the image."""

from typing import Any, Dict, List, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn
from torch.nn import functional as F

from rpe_d2.modeling.argument_checks import check_range
from rpe_d2.modeling.layers import checked_norm, chosen_features
from rpe_d2.modeling.sem_seg.sem_seg_head import SemSegHead, SemSegMaps, pixel_predictor

from .vgg16 import VGG16_CONVOLUTIONS

_INDICES = "_indices"
_FIRST_KERNEL = 7


@SEM_SEG_HEADS_REGISTRY.register()
class DeconvNetHead(SemSegHead):
    """The decoder of DeconvNet (Noh, Hong & Han, ICCV 2015, section 3) for VGG-16.

    A 7x7 deconvolution mirrors fc6. Then each pooling of the backbone, from the last to the first,
    is mirrored by an unpooling, which moves every value to the position of the maximum, and by the
    same number of 3x3 deconvolutions as there are convolutions in the block. There is one
    prediction per pixel.

    The network is applied to whole images or crops of any size: fc6 and its mirror keep the size of
    the map, whereas the authors' crops become a single cell. ``INPUT.OBJECT_CROP`` is for the first
    of the two stages of training. :func:`rpe_d2.baselines.proposal_scores.scores_of_proposals`
    predicts a map from the crops of proposals, as the authors do.

    There is no ReLU between the last deconvolution and the logits. Narrow networks have few
    channels there, and a ReLU would cut off the values that distinguish rare classes, which would
    never be learned.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        num_classes: int,
        in_features: Sequence[str] = (),
        norm: str = "GN",
        **kwargs: Any,
    ):
        """
        Args:
            input_shape: channels and stride of the outputs of ``build_vgg16_backbone``.
            num_classes: number of classes.
            in_features: the map to start from, and the indices of all poolings before it, such as
                fc7 and pool1_indices to pool5_indices; all outputs if empty.
            norm: normalization after each deconvolution, any of Detectron2's ``get_norm``; "" for
                none.
            kwargs: see :class:`SemSegHead`.
        """
        check_range("num_classes", num_classes, 1)
        names = chosen_features("in_features", in_features, input_shape)
        in_feature, poolings = _split_features("in_features", names, input_shape)
        super().__init__(common_stride=1, **kwargs)
        self.in_feature = in_feature
        self.poolings = list(reversed(poolings))
        channels = [input_shape[name].channels for name in poolings]
        self.first = _deconvolution(
            input_shape[in_feature].channels, channels[-1], _FIRST_KERNEL, norm
        )
        self.blocks = nn.ModuleList()
        for block in reversed(range(len(poolings))):
            # The last deconvolution of a block has the channels of the block below.
            plan = [channels[block]] * VGG16_CONVOLUTIONS[block] + [channels[max(0, block - 1)]]
            rectified = [True] * (len(plan) - 2) + [block > 0]
            layers = [
                _deconvolution(inputs, outputs, 3, norm, relu)
                for inputs, outputs, relu in zip(plan, plan[1:], rectified)
            ]
            self.blocks.append(nn.Sequential(*layers))
        self.predictor = pixel_predictor(channels[0], num_classes)
        self.embedding = self.pair_loss and pixel_predictor(
            channels[0], self.pair_loss.embedding_dim
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        key = "MODEL.SEM_SEG_HEAD.IN_FEATURES"
        names = chosen_features(key, cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, input_shape)
        _split_features(key, names, input_shape)
        return {
            "input_shape": input_shape,
            "in_features": names,
            "norm": cfg.MODEL.SEM_SEG_HEAD.NORM,
            **cls.shared_options(cfg),
        }

    def predict(self, features: Dict[str, torch.Tensor]) -> SemSegMaps:
        x = self.pixel_features(features)
        embeds = self.training and self.embedding is not None
        embeddings = self.embedding(x) if embeds else None
        return SemSegMaps(self.predictor(x), embeddings, self.common_stride)

    def pixel_features(self, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        """Computes features (B, C, H, W) for each pixel."""
        x = self.first(features[self.in_feature])
        for name, block in zip(self.poolings, self.blocks):
            x = block(F.max_unpool2d(x, features[name], 2))
        return x


def _split_features(
    option: str, names: Sequence[str], input_shape: Dict[str, ShapeSpec]
) -> Tuple[str, List[str]]:
    """Returns the map to start from, and the indices of the poolings from the first to the last."""
    poolings = [name for name in names if name.endswith(_INDICES)]
    maps = [name for name in names if name not in poolings]
    expected = [f"pool{number}{_INDICES}" for number in range(1, len(poolings) + 1)]
    if not poolings or sorted(poolings) != expected or len(maps) != 1:
        raise ValueError(
            f"{option} is {', '.join(names)}; allowed with DeconvNetHead: one map of "
            "build_vgg16_backbone and the indices of all poolings before it, such as "
            "fc7, pool1_indices ... pool5_indices"
        )
    stride = input_shape[maps[0]].stride
    if stride != 2 ** len(poolings):
        raise ValueError(
            f"{option}: {maps[0]} has the stride {stride}, {expected[-1]} {2 ** len(poolings)}; "
            "allowed with DeconvNetHead: the same stride"
        )
    return maps[0], expected


def _deconvolution(
    in_channels: int, out_channels: int, kernel_size: int, norm: str, rectified: bool = True
) -> nn.Module:
    """Builds a transposed convolution of stride 1 with normalization and, if rectified, ReLU."""
    layer = nn.ConvTranspose2d(
        in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=not norm
    )
    # For a transposed convolution, torch calls the number of inputs of a value "fan_out".
    nonlinearity = "relu" if rectified else "linear"
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity=nonlinearity)
    parts = [layer]
    if norm:
        parts.append(checked_norm(norm, out_channels))
    else:
        nn.init.zeros_(layer.bias)
    if rectified:
        parts.append(nn.ReLU())
    return nn.Sequential(*parts)
