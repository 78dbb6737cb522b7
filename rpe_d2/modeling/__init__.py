"""The registered components of this project, except the baselines, and their shared parts."""

from .backbone import GuidedBackbone, SpatialTransformerBackbone
from .boundary_head import BoundaryHead, BoundaryMaps
from .boundary_loss import BoundaryLoss, BoundaryTarget
from .embedding import (
    ComponentGrouping,
    EmbeddingHead,
    EmbeddingLoss,
    EmbeddingMaps,
    GroupHead,
    HardAttention,
    ImageMaps,
    KMeansGrouping,
    MeanShiftGrouping,
    MeanShiftLayer,
    PixelGrouping,
    PixelGroups,
    QualityHead,
)
from .meta_arch import (
    BoundaryEmbeddingNet,
    LabelPropagationNet,
    PixelEmbeddingNet,
    SPNRefiner,
    TemporalPropagationNet,
)
from .proposal_generator import MeanShiftProposalGenerator, PrecomputedMaskProposals
from .roi_heads import GuidedCascadeROIHeads, GuidedROIHeads, SPNMaskHead
from .sem_seg import EmbeddingSemSegHead, SPNSemSegHead
from .spatial_transformer import SpatialTransformer

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
    "HardAttention",
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
    "SpatialTransformer",
    "SpatialTransformerBackbone",
    "TemporalPropagationNet",
]
