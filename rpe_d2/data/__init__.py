"""Datasets and mappers. Importing registers `shapes_train` and `shapes_val`."""

from .augmentation import additional_augmentations
from .dataset_mapper import CountInstances, PixelLabelMapper
from .datasets import SHAPES_CLASSES, SHAPES_SPLITS, load_shapes, register_coco_jsons, render_shapes
from .readable import NameUnreadable, UnreadableImage

__all__ = [
    "CountInstances",
    "NameUnreadable",
    "PixelLabelMapper",
    "SHAPES_CLASSES",
    "SHAPES_SPLITS",
    "UnreadableImage",
    "additional_augmentations",
    "load_shapes",
    "register_coco_jsons",
    "render_shapes",
]
