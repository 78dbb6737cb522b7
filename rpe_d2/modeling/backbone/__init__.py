"""Backbones."""

from .guided_backbone import IMAGE, GuidedBackbone, build_guided_backbone
from .vgg16_backbone import VGG16, build_vgg16_backbone

__all__ = ["IMAGE", "GuidedBackbone", "VGG16", "build_guided_backbone", "build_vgg16_backbone"]
