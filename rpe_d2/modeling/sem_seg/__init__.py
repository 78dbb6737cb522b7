"""Registered semantic heads, and their base class."""

from .embedding_sem_seg_head import EmbeddingSemSegHead
from .sem_seg_head import SemSegHead, SemSegMaps
from .spn_sem_seg_head import SPNSemSegHead

__all__ = ["EmbeddingSemSegHead", "SPNSemSegHead", "SemSegHead", "SemSegMaps"]
