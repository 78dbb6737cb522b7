"""Registered components and the parts they share."""

from .backbone import GuidedBackbone
from .boundary_head import BoundaryHead, BoundaryMaps
from .boundary_loss import BoundaryLoss, BoundaryTarget
from .embedding_head import EmbeddingHead, EmbeddingMaps
from .embedding_loss import EmbeddingLoss
from .mean_shift_layer import MeanShiftLayer
from .meta_arch import BoundaryEmbeddingNet, PixelEmbeddingNet, SPNRefiner
from .pixel_grouping import PixelGrouping, PixelGroups
from .proposal_generator import (
    MNCRPN,
    DeepMask,
    InstanceFCN,
    MeanShiftProposalGenerator,
    SharpMask,
)
from .quality_head import QualityHead
from .roi_heads import (
    FCISROIHeads,
    GuidedCascadeROIHeads,
    GuidedROIHeads,
    HypercolumnMaskHead,
    MNCROIHeads,
    SDSROIHeads,
    SPNMaskHead,
)
from .sem_seg import (
    DeconvNetHead,
    EmbeddingSemSegHead,
    FCNHead,
    MultiScaleSemSegHead,
    RecurrentConvSemSegHead,
    SPNSemSegHead,
)

__all__ = [
    "BoundaryEmbeddingNet",
    "BoundaryHead",
    "BoundaryLoss",
    "BoundaryMaps",
    "BoundaryTarget",
    "DeepMask",
    "DeconvNetHead",
    "EmbeddingHead",
    "EmbeddingLoss",
    "EmbeddingMaps",
    "EmbeddingSemSegHead",
    "FCISROIHeads",
    "FCNHead",
    "GuidedBackbone",
    "GuidedCascadeROIHeads",
    "GuidedROIHeads",
    "InstanceFCN",
    "HypercolumnMaskHead",
    "MNCROIHeads",
    "MNCRPN",
    "MeanShiftLayer",
    "MeanShiftProposalGenerator",
    "MultiScaleSemSegHead",
    "PixelEmbeddingNet",
    "PixelGrouping",
    "PixelGroups",
    "QualityHead",
    "SDSROIHeads",
    "RecurrentConvSemSegHead",
    "SPNMaskHead",
    "SPNRefiner",
    "SPNSemSegHead",
    "SharpMask",
]
