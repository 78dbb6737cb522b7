"""The synthetic shapes dataset, and datasets that configuration keys name."""

from .bsds import register_bsds
from .coarse_dirs import register_coarse_dirs
from .coco_jsons import register_coco_jsons
from .coco_report import CocoReport, coco_report
from .digits import DIGITS_SPLITS, register_digits, register_digits_authors, render_digits
from .frame_pairs import register_frame_pairs
from .helen import HELEN_CLASSES, HELEN_PARTS, register_helen
from .label_dirs import read_label_dirs, register_label_dirs
from .mask_proposals import register_mask_proposals
from .sem_seg_dirs import register_sem_seg_dirs
from .shapes import (
    SHAPES_CLASSES,
    SHAPES_SEM_SEG_CLASSES,
    SHAPES_SPLITS,
    load_shapes,
    load_shapes_panoptic,
    load_shapes_sem_seg,
    render_shapes,
)
from .voc import (
    VOC_CLASSES,
    VOC_SEM_SEG_CLASSES,
    VOCSplit,
    check_voc_files,
    find_voc_splits,
    register_voc,
)

__all__ = [
    "CocoReport",
    "DIGITS_SPLITS",
    "HELEN_CLASSES",
    "HELEN_PARTS",
    "SHAPES_CLASSES",
    "SHAPES_SEM_SEG_CLASSES",
    "SHAPES_SPLITS",
    "VOCSplit",
    "VOC_CLASSES",
    "VOC_SEM_SEG_CLASSES",
    "check_voc_files",
    "coco_report",
    "find_voc_splits",
    "load_shapes",
    "load_shapes_panoptic",
    "load_shapes_sem_seg",
    "register_bsds",
    "register_coarse_dirs",
    "register_coco_jsons",
    "register_digits",
    "register_digits_authors",
    "register_frame_pairs",
    "register_helen",
    "read_label_dirs",
    "register_label_dirs",
    "register_mask_proposals",
    "register_sem_seg_dirs",
    "register_voc",
    "render_digits",
    "render_shapes",
]
