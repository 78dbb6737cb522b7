"""Datasets and dataset mappers.

Importing the package registers ``shapes_train``, ``shapes_val`` and their variants.
"""

from rpe_d2.utils.readable import NameUnreadable, UnreadableImage

from .augmentation import additional_augmentations, resizing_of_tests
from .boundary_mapper import BoundaryMapper, transform_boundaries
from .build import DATASET_MAPPER_REGISTRY, build_train_mapper, most_instances
from .class_counts import count_class_pixels
from .dataset_mapper import CoarseInstances, CountInstances, PixelLabelMapper
from .datasets import (
    DIGITS_SPLITS,
    HELEN_CLASSES,
    HELEN_PARTS,
    SHAPES_CLASSES,
    SHAPES_SEM_SEG_CLASSES,
    SHAPES_SPLITS,
    VOC_CLASSES,
    VOC_SEM_SEG_CLASSES,
    CocoReport,
    VOCSplit,
    check_voc_files,
    coco_report,
    find_voc_splits,
    load_shapes,
    load_shapes_panoptic,
    load_shapes_sem_seg,
    read_label_dirs,
    register_bsds,
    register_coarse_dirs,
    register_coco_jsons,
    register_digits,
    register_digits_authors,
    register_frame_pairs,
    register_helen,
    register_label_dirs,
    register_mask_proposals,
    register_sem_seg_dirs,
    register_voc,
    render_digits,
    render_shapes,
)
from .frame_pair_mapper import FramePairMapper
from .frame_pairs import make_frame_pair
from .image_mapper import ImageMapper
from .patch_mapper import PatchMapper
from .sparse_pixel_mapper import SparsePixelMapper
from .train_loader import DeadWorker, ResumableLoader, build_resumable_train_loader, seed_all
from .window_crop_mapper import WindowCropMapper

__all__ = [
    "BoundaryMapper",
    "CoarseInstances",
    "CocoReport",
    "CountInstances",
    "DATASET_MAPPER_REGISTRY",
    "DIGITS_SPLITS",
    "DeadWorker",
    "FramePairMapper",
    "HELEN_CLASSES",
    "HELEN_PARTS",
    "ImageMapper",
    "NameUnreadable",
    "PatchMapper",
    "PixelLabelMapper",
    "ResumableLoader",
    "SHAPES_CLASSES",
    "SHAPES_SEM_SEG_CLASSES",
    "SHAPES_SPLITS",
    "SparsePixelMapper",
    "UnreadableImage",
    "VOCSplit",
    "VOC_CLASSES",
    "VOC_SEM_SEG_CLASSES",
    "WindowCropMapper",
    "additional_augmentations",
    "build_resumable_train_loader",
    "build_train_mapper",
    "check_voc_files",
    "coco_report",
    "count_class_pixels",
    "find_voc_splits",
    "load_shapes",
    "load_shapes_panoptic",
    "load_shapes_sem_seg",
    "make_frame_pair",
    "most_instances",
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
    "resizing_of_tests",
    "seed_all",
    "transform_boundaries",
]
