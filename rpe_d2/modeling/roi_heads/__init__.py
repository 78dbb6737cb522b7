from .guided_roi_heads import GuidedCascadeROIHeads, GuidedROIHeads
from .mnc_roi_heads import MNCROIHeads
from .spn_mask_head import SPNMaskHead

__all__ = ["GuidedCascadeROIHeads", "GuidedROIHeads", "MNCROIHeads", "SPNMaskHead"]
