"""Fully convolutional networks: class scores of maps of several strides, summed from coarse to fine."""

from typing import Dict, Optional

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from rpe_d2.modeling.embedding.pixel_losses import SemanticPairLoss
from rpe_d2.modeling.layers import chosen_features, enlarge_maps
from rpe_d2.modeling.sem_seg.sem_seg_head import SemSegHead, SemSegMaps, pixel_predictor


@SEM_SEG_HEADS_REGISTRY.register()
class FCNHead(SemSegHead):
    """FCN-32s, -16s and -8s (Long, Shelhamer & Darrell, CVPR 2015, section 4.2).

    A 1x1 convolution scores each of ``MODEL.SEM_SEG_HEAD.IN_FEATURES``; scores are enlarged bilinearly and added to
    the next finer ones, then enlarged to the picture. The features decide which network it is: on VGG-16 fc7 alone
    makes FCN-32s, with pool4 FCN-16s, with pool3 FCN-8s; on a ResNet res5, res4 and res3 take their places.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        num_classes: int,
        ignore_value: int,
        loss_weight: float,
        pair_loss: Optional[SemanticPairLoss],
    ):
        """
        Args:
            input_shape: channels and stride of the maps, each stride once.
            num_classes: K.
            ignore_value, loss_weight, pair_loss: of :class:`SemSegHead`.
        """
        finest = min(shape.stride for shape in input_shape.values())
        super().__init__(
            common_stride=finest,
            ignore_value=ignore_value,
            loss_weight=loss_weight,
            pair_loss=pair_loss,
        )
        self.predictor = SkipPredictor(input_shape, num_classes)
        # New finer scores change nothing at first.
        for name in self.predictor.names[1:]:
            nn.init.zeros_(self.predictor.score[_key(name)].weight)
        self.embedding = pair_loss and SkipPredictor(input_shape, pair_loss.embedding_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        key = "MODEL.SEM_SEG_HEAD.IN_FEATURES"
        names = chosen_features(key, cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, input_shape)
        strides = sorted(input_shape[name].stride for name in names)
        if strides[0] % 1 or any(s != 2 * finer for finer, s in zip(strides, strides[1:])):
            raise ValueError(
                f"{key} has the strides {', '.join(f'{s:g}' for s in strides)}; FCNHead allows whole pixels, each twice "
                "the one before"
            )
        return {
            "input_shape": {name: input_shape[name] for name in names},
            **cls.shared_options(cfg),
        }

    def predict(self, features: Dict[str, torch.Tensor]) -> SemSegMaps:
        embeds = self.training and self.embedding is not None
        embeddings = self.embedding(features) if embeds else None
        return SemSegMaps(self.predictor(features), embeddings, self.common_stride)


class SkipPredictor(nn.Module):
    """1x1 convolutions of maps, each result twice as large added to the next finer one."""

    def __init__(self, input_shape: Dict[str, ShapeSpec], out_channels: int):
        """
        Args:
            input_shape: channels and stride of the maps, each stride half of another or the coarsest.
            out_channels: of the result.
        """
        super().__init__()
        self.names = sorted(input_shape, key=lambda name: -input_shape[name].stride)
        self.score = nn.ModuleDict()
        for name in self.names:
            self.score[_key(name)] = pixel_predictor(input_shape[name].channels, out_channels)

    def forward(self, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, out_channels, h, w) at the finest map's size."""
        coarsest, *finer = self.names
        total = self.score[_key(coarsest)](features[coarsest])
        for name in finer:
            score = self.score[_key(name)](features[name])
            total = enlarge_maps(total, 2, score.shape[-2:]) + score
        return total


def _key(name: str) -> str:
    return name.replace(".", "_")  # modules' names have no dots, those of a pyramid's maps do
