"""FCN: class logits of feature maps of several strides, added from coarse to fine."""

from typing import Any, Dict, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from rpe_d2.modeling.argument_checks import check_range
from rpe_d2.modeling.layers import chosen_features, enlarge_maps
from rpe_d2.modeling.sem_seg.sem_seg_head import SemSegHead, SemSegMaps, pixel_predictor


@SEM_SEG_HEADS_REGISTRY.register()
class FCNHead(SemSegHead):
    """FCN-32s, FCN-16s and FCN-8s (Long, Shelhamer & Darrell, CVPR 2015, section 4.2).

    A 1x1 convolution scores each of ``MODEL.SEM_SEG_HEAD.IN_FEATURES``. The logits are enlarged
    bilinearly and added to the next finer ones, and finally enlarged to the size of the image. The
    feature maps determine the network: on VGG-16, fc7 alone makes it FCN-32s, adding pool4 makes it
    FCN-16s, and adding pool3 makes it FCN-8s. On a ResNet, use res5, res4 and res3 instead.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        num_classes: int,
        in_features: Sequence[str] = (),
        **kwargs: Any,
    ):
        """
        Args:
            input_shape: channels and stride of the feature maps.
            num_classes: number of classes.
            in_features: the feature maps to use, each with twice the stride of another one or with
                the smallest stride; all if empty.
            kwargs: see :class:`SemSegHead`.
        """
        check_range("num_classes", num_classes, 1)
        names = chosen_features("in_features", in_features, input_shape)
        shapes = {name: input_shape[name] for name in names}
        strides = _check_strides("in_features", names, input_shape)
        super().__init__(common_stride=strides[0], **kwargs)
        self.predictor = SkipPredictor(shapes, num_classes)
        # The finer logits are 0 at first.
        for name in self.predictor.names[1:]:
            nn.init.zeros_(self.predictor.score[_key(name)].weight)
        self.embedding = self.pair_loss and SkipPredictor(shapes, self.pair_loss.embedding_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        key = "MODEL.SEM_SEG_HEAD.IN_FEATURES"
        names = chosen_features(key, cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, input_shape)
        _check_strides(key, names, input_shape)
        return {"input_shape": input_shape, "in_features": names, **cls.shared_options(cfg)}

    def predict(self, features: Dict[str, torch.Tensor]) -> SemSegMaps:
        embeds = self.training and self.embedding is not None
        embeddings = self.embedding(features) if embeds else None
        return SemSegMaps(self.predictor(features), embeddings, self.common_stride)


class SkipPredictor(nn.Module):
    """1x1 convolutions of feature maps, whose outputs are added from coarse to fine."""

    def __init__(self, input_shape: Dict[str, ShapeSpec], out_channels: int):
        """
        Args:
            input_shape: channels and stride of the feature maps. From the coarsest on, each has
                half the stride of the one before.
            out_channels: channels of the output.
        """
        super().__init__()
        self.names = sorted(input_shape, key=lambda name: -input_shape[name].stride)
        self.score = nn.ModuleDict()
        for name in self.names:
            self.score[_key(name)] = pixel_predictor(input_shape[name].channels, out_channels)

    def forward(self, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        """Computes (B, out_channels, h, w) at the size of the finest feature map."""
        coarsest, *finer = self.names
        total = self.score[_key(coarsest)](features[coarsest])
        for name in finer:
            score = self.score[_key(name)](features[name])
            total = enlarge_maps(total, 2, score.shape[-2:]) + score
        return total


def _check_strides(
    option: str, names: Sequence[str], input_shape: Dict[str, ShapeSpec]
) -> Sequence[float]:
    """Returns the strides in increasing order, each twice the one before."""
    strides = sorted(input_shape[name].stride for name in names)
    if strides[0] % 1 or any(s != 2 * finer for finer, s in zip(strides, strides[1:])):
        raise ValueError(
            f"{option} has the strides {', '.join(f'{s:g}' for s in strides)}; "
            "allowed with FCNHead: integers, each twice the one before"
        )
    return strides


def _key(name: str) -> str:
    return name.replace(".", "_")  # names of modules have no dots, those of pyramid levels do
