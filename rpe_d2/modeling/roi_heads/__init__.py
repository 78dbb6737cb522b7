from .fcis_roi_heads import FCISROIHeads
from .guided_roi_heads import GuidedCascadeROIHeads, GuidedROIHeads
from .mnc_roi_heads import MNCROIHeads
from .spn_mask_head import SPNMaskHead

__all__ = ["FCISROIHeads", "GuidedCascadeROIHeads", "GuidedROIHeads", "MNCROIHeads", "SPNMaskHead"]
