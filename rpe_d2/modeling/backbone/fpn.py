"""Detectron2's FPN over backbones whose last output need not be "res5"."""

import math

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool


def build_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """Builds Detectron2's FPN with one more level than ``MODEL.FPN.IN_FEATURES``.

    As in Detectron2, the last level is the one before it, subsampled by 2.

    Args:
        cfg: the configuration.
        bottom_up: backbone with the outputs ``MODEL.FPN.IN_FEATURES``.
    """
    in_features = cfg.MODEL.FPN.IN_FEATURES
    top_block = LastLevelMaxPool()
    last = bottom_up.output_shape().get(in_features[-1]) if in_features else None
    if last is not None:  # otherwise Detectron2 names the missing output
        top_block.in_feature = f"p{round(math.log2(last.stride))}"
    return FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_short_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Builds a ResNet up to the last one of ``MODEL.RESNETS.OUT_FEATURES``, with FPN.

    Detectron2's ``build_resnet_fpn_backbone`` needs "res5", which has three quarters of the weights
    of a ResNet-18. For objects that are small in the input, "res4" sees enough.
    """
    return build_fpn(cfg, build_resnet_backbone(cfg, input_shape))
