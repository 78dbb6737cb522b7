from .fcis_roi_heads import FCISROIHeads
from .guided_roi_heads import GuidedCascadeROIHeads, GuidedROIHeads
from .hypercolumn_mask_head import HypercolumnMaskHead
from .mnc_roi_heads import MNCROIHeads
from .sds_roi_heads import SDSROIHeads
from .spn_mask_head import SPNMaskHead

__all__ = [
    "FCISROIHeads",
    "GuidedCascadeROIHeads",
    "GuidedROIHeads",
    "HypercolumnMaskHead",
    "MNCROIHeads",
    "SDSROIHeads",
    "SPNMaskHead",
]
