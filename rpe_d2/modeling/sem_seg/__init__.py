"""Semantic heads."""

from .deconvnet_head import DeconvNetHead
from .embedding_sem_seg_head import EmbeddingSemSegHead
from .fcn_head import FCNHead
from .multi_scale_sem_seg_head import MultiScaleSemSegHead
from .recurrent_conv_sem_seg_head import RecurrentConvSemSegHead
from .sem_seg_head import SemSegHead, SemSegMaps
from .spn_sem_seg_head import SPNSemSegHead

__all__ = [
    "DeconvNetHead",
    "EmbeddingSemSegHead",
    "FCNHead",
    "MultiScaleSemSegHead",
    "RecurrentConvSemSegHead",
    "SPNSemSegHead",
    "SemSegHead",
    "SemSegMaps",
]
