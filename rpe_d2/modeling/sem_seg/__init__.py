from .spn_sem_seg_head import SPNSemSegHead

__all__ = ["SPNSemSegHead"]
