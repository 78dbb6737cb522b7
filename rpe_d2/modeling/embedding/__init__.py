"""Pixel embeddings: the head, its losses, and grouping by mean shift."""

from .group_head import GroupHead
from .grouping import (
    ComponentGrouping,
    KMeansGrouping,
    MeanShiftGrouping,
    PixelGrouping,
    build_grouping,
)
from .hard_attention import HardAttention, HardAttentionOutput
from .head import EmbeddingHead, EmbeddingMaps, ImageMaps
from .loss import EmbeddingLoss
from .mean_shift_layer import MeanShiftLayer
from .pixel_groups import PixelGroups
from .quality_head import QualityHead

__all__ = [
    "ComponentGrouping",
    "EmbeddingHead",
    "EmbeddingLoss",
    "EmbeddingMaps",
    "HardAttention",
    "HardAttentionOutput",
    "ImageMaps",
    "KMeansGrouping",
    "MeanShiftGrouping",
    "MeanShiftLayer",
    "PixelGrouping",
    "PixelGroups",
    "GroupHead",
    "QualityHead",
    "build_grouping",
]
