"""RoI heads and mask heads."""

from .guided_roi_heads import GuidedCascadeROIHeads, GuidedROIHeads
from .spn_mask_head import SPNMaskHead

__all__ = ["GuidedCascadeROIHeads", "GuidedROIHeads", "SPNMaskHead"]
