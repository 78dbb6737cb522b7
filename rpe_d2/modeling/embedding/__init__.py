"""Pixel embeddings: the head, its losses, and grouping by mean shift."""

from .grouping import PixelGrouping, PixelGroups
from .head import EmbeddingHead, EmbeddingMaps
from .loss import EmbeddingLoss
from .mean_shift_layer import MeanShiftLayer
from .quality_head import QualityHead

__all__ = [
    "EmbeddingHead",
    "EmbeddingLoss",
    "EmbeddingMaps",
    "MeanShiftLayer",
    "PixelGrouping",
    "PixelGroups",
    "QualityHead",
]
