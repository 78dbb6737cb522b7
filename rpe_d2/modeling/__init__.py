"""Registered components and the parts they share."""

from .backbone import GuidedBackbone
from .embedding_head import EmbeddingHead, EmbeddingMaps
from .embedding_loss import EmbeddingLoss
from .mean_shift_layer import MeanShiftLayer
from .meta_arch import PixelEmbeddingNet
from .pixel_grouping import PixelGrouping, PixelGroups
from .proposal_generator import MeanShiftProposalGenerator
from .quality_head import QualityHead

__all__ = [
    "EmbeddingHead",
    "EmbeddingLoss",
    "EmbeddingMaps",
    "GuidedBackbone",
    "MeanShiftLayer",
    "MeanShiftProposalGenerator",
    "PixelEmbeddingNet",
    "PixelGrouping",
    "PixelGroups",
    "QualityHead",
]
