"""Registered backbones."""

from .dilated_resnet import build_dilated_resnet_backbone
from .fpn import build_short_resnet_fpn_backbone
from .guided_backbone import IMAGE, GuidedBackbone, build_guided_backbone
from .image_backbone import ImageBackbone, build_image_backbone
from .spatial_transformer_backbone import (
    SpatialTransformerBackbone,
    build_spatial_transformer_backbone,
)
from .timm_backbone import TimmBackbone, build_timm_backbone, build_timm_fpn_backbone

__all__ = [
    "IMAGE",
    "GuidedBackbone",
    "ImageBackbone",
    "SpatialTransformerBackbone",
    "TimmBackbone",
    "build_dilated_resnet_backbone",
    "build_guided_backbone",
    "build_image_backbone",
    "build_short_resnet_fpn_backbone",
    "build_spatial_transformer_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
]
