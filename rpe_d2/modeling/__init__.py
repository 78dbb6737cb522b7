"""This project's own registered components and the parts they share."""

from .backbone import GuidedBackbone
from .boundary_head import BoundaryHead, BoundaryMaps
from .boundary_loss import BoundaryLoss, BoundaryTarget
from .embedding import (
    EmbeddingHead,
    EmbeddingLoss,
    EmbeddingMaps,
    MeanShiftLayer,
    PixelGrouping,
    PixelGroups,
    QualityHead,
)
from .meta_arch import BoundaryEmbeddingNet, PixelEmbeddingNet, SPNRefiner
from .proposal_generator import MeanShiftProposalGenerator
from .roi_heads import GuidedCascadeROIHeads, GuidedROIHeads, SPNMaskHead
from .sem_seg import EmbeddingSemSegHead, SPNSemSegHead

__all__ = [
    "BoundaryEmbeddingNet",
    "BoundaryHead",
    "BoundaryLoss",
    "BoundaryMaps",
    "BoundaryTarget",
    "EmbeddingHead",
    "EmbeddingLoss",
    "EmbeddingMaps",
    "EmbeddingSemSegHead",
    "GuidedBackbone",
    "GuidedCascadeROIHeads",
    "GuidedROIHeads",
    "MeanShiftLayer",
    "MeanShiftProposalGenerator",
    "PixelEmbeddingNet",
    "PixelGrouping",
    "PixelGroups",
    "QualityHead",
    "SPNMaskHead",
    "SPNRefiner",
    "SPNSemSegHead",
]
