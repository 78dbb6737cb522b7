"""Deconvolution network: VGG-16 mirrored, from fc7 back to the picture."""

from typing import Dict, List, Optional

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn
from torch.nn import functional as F

from rpe_d2.modeling.embedding.pixel_losses import SemanticPairLoss
from rpe_d2.modeling.layers import chosen_features
from rpe_d2.modeling.sem_seg.sem_seg_head import SemSegHead, SemSegMaps, pixel_predictor

from .vgg16 import VGG16_CONVOLUTIONS

_INDICES = "_indices"
_FIRST_KERNEL = 7


@SEM_SEG_HEADS_REGISTRY.register()
class DeconvNetHead(SemSegHead):
    """The decoder of DeconvNet (Noh, Hong & Han, ICCV 2015, section 3), on ``build_vgg16_backbone``.

    A 7x7 deconvolution (fc6's mirror image), then for each pooling of the backbone, from the last to the first,
    unpooling, which puts every value where the largest one was, and as many 3x3 deconvolutions as the block has
    convolutions. Scores are one to a pixel.

    The network sees whole pictures: fc6 and its mirror image keep the map's size, where the authors' crops become a
    single cell, and there is no second stage on object proposals. And no ReLU stands between the last deconvolution and
    the scores: with few channels, as narrow networks have there, what it cuts off is what tells rare classes apart, and
    they are never learned.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        in_feature: str,
        poolings: List[str],
        norm: str,
        num_classes: int,
        ignore_value: int,
        loss_weight: float,
        pair_loss: Optional[SemanticPairLoss],
    ):
        """
        Args:
            input_shape: channels of the backbone's outputs.
            in_feature: the map to start from, of the last pooling's stride.
            poolings: the maps with stored indices, from the first, at stride 2, to the last.
            norm: after each deconvolution, any of Detectron2's, "" for none.
            num_classes: K.
            ignore_value, loss_weight, pair_loss: of :class:`SemSegHead`.
        """
        super().__init__(
            common_stride=1,
            ignore_value=ignore_value,
            loss_weight=loss_weight,
            pair_loss=pair_loss,
        )
        self.in_feature = in_feature
        self.poolings = list(reversed(poolings))
        channels = [input_shape[name].channels for name in poolings]
        self.first = _deconvolution(
            input_shape[in_feature].channels, channels[-1], _FIRST_KERNEL, norm
        )
        self.blocks = nn.ModuleList()
        for block in reversed(range(len(poolings))):
            # The last one of a block has the channels of the block below.
            plan = [channels[block]] * VGG16_CONVOLUTIONS[block] + [channels[max(0, block - 1)]]
            rectified = [True] * (len(plan) - 2) + [block > 0]
            layers = [
                _deconvolution(inputs, outputs, 3, norm, relu)
                for inputs, outputs, relu in zip(plan, plan[1:], rectified)
            ]
            self.blocks.append(nn.Sequential(*layers))
        self.predictor = pixel_predictor(channels[0], num_classes)
        self.embedding = pair_loss and pixel_predictor(channels[0], pair_loss.embedding_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        key = "MODEL.SEM_SEG_HEAD.IN_FEATURES"
        names = chosen_features(key, cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, input_shape)
        poolings = [name for name in names if name.endswith(_INDICES)]
        maps = [name for name in names if name not in poolings]
        wanted = [f"pool{number}{_INDICES}" for number in range(1, len(poolings) + 1)]
        if not poolings or sorted(poolings) != wanted or len(maps) != 1:
            raise ValueError(
                f"{key} is {', '.join(names)}; DeconvNetHead allows one map of build_vgg16_backbone and the indices "
                "of all poolings before it: fc7, pool1_indices ... pool5_indices"
            )
        if input_shape[maps[0]].stride != 2 ** len(poolings):
            raise ValueError(
                f"{key}: {maps[0]} has the stride {input_shape[maps[0]].stride}, {wanted[-1]} {2 ** len(poolings)}; "
                "DeconvNetHead allows the same"
            )
        return {
            "input_shape": input_shape,
            "in_feature": maps[0],
            "poolings": wanted,
            "norm": cfg.MODEL.SEM_SEG_HEAD.NORM,
            **cls.shared_options(cfg),
        }

    def predict(self, features: Dict[str, torch.Tensor]) -> SemSegMaps:
        x = self.pixel_features(features)
        embeds = self.training and self.embedding is not None
        embeddings = self.embedding(x) if embeds else None
        return SemSegMaps(self.predictor(x), embeddings, self.common_stride)

    def pixel_features(self, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, C, H, W)."""
        x = self.first(features[self.in_feature])
        for name, block in zip(self.poolings, self.blocks):
            x = block(F.max_unpool2d(x, features[name], 2))
        return x


def _deconvolution(
    in_channels: int, out_channels: int, kernel_size: int, norm: str, rectified: bool = True
) -> nn.Module:
    """Transposed convolution of stride 1, normalisation and, where results are rectified, ReLU."""
    layer = nn.ConvTranspose2d(
        in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=not norm
    )
    # Of a transposed convolution torch calls "fan_out" what goes into a value.
    nonlinearity = "relu" if rectified else "linear"
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity=nonlinearity)
    parts = [layer]
    if norm:
        parts.append(get_norm(norm, out_channels))
    else:
        nn.init.zeros_(layer.bias)
    if rectified:
        parts.append(nn.ReLU())
    return nn.Sequential(*parts)
