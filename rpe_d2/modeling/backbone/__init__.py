"""Backbones."""

from .guided_backbone import GuidedBackbone, build_guided_backbone

__all__ = ["GuidedBackbone", "build_guided_backbone"]
