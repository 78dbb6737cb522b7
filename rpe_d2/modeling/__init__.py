"""The registered components of this project, except the baselines, and their shared parts."""

from .backbone import GuidedBackbone
from .boundary_head import BoundaryHead, BoundaryMaps
from .boundary_loss import BoundaryLoss, BoundaryTarget
from .embedding import (
    ComponentGrouping,
    EmbeddingHead,
    EmbeddingLoss,
    EmbeddingMaps,
    GroupHead,
    ImageMaps,
    KMeansGrouping,
    MeanShiftGrouping,
    MeanShiftLayer,
    PixelGrouping,
    PixelGroups,
    QualityHead,
)
from .meta_arch import BoundaryEmbeddingNet, LabelPropagationNet, PixelEmbeddingNet, SPNRefiner
from .proposal_generator import MeanShiftProposalGenerator, PrecomputedMaskProposals
from .roi_heads import GuidedCascadeROIHeads, GuidedROIHeads, SPNMaskHead
from .sem_seg import EmbeddingSemSegHead, SPNSemSegHead

__all__ = [
    "BoundaryEmbeddingNet",
    "BoundaryHead",
    "BoundaryLoss",
    "BoundaryMaps",
    "BoundaryTarget",
    "ComponentGrouping",
    "EmbeddingHead",
    "EmbeddingLoss",
    "EmbeddingMaps",
    "EmbeddingSemSegHead",
    "GuidedBackbone",
    "GuidedCascadeROIHeads",
    "GuidedROIHeads",
    "ImageMaps",
    "KMeansGrouping",
    "LabelPropagationNet",
    "MeanShiftGrouping",
    "MeanShiftLayer",
    "MeanShiftProposalGenerator",
    "PixelEmbeddingNet",
    "PixelGrouping",
    "PixelGroups",
    "PrecomputedMaskProposals",
    "GroupHead",
    "QualityHead",
    "SPNMaskHead",
    "SPNRefiner",
    "SPNSemSegHead",
]
