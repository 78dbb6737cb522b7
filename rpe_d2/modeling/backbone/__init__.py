"""Registered backbones."""

from .dilated_resnet import build_dilated_resnet_backbone
from .guided_backbone import IMAGE, GuidedBackbone, build_guided_backbone

__all__ = ["IMAGE", "GuidedBackbone", "build_dilated_resnet_backbone", "build_guided_backbone"]
