"""Registered backbones."""

from .guided_backbone import IMAGE, GuidedBackbone, build_guided_backbone

__all__ = ["IMAGE", "GuidedBackbone", "build_guided_backbone"]
