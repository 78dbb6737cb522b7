"""Datasets and mappers. Importing registers `shapes_train` and `shapes_val`."""

from .dataset_mapper import PixelLabelMapper
from .datasets import SHAPES_CLASSES, SHAPES_SPLITS, load_shapes, register_coco_jsons, render_shapes

__all__ = [
    "PixelLabelMapper",
    "SHAPES_CLASSES",
    "SHAPES_SPLITS",
    "load_shapes",
    "register_coco_jsons",
    "render_shapes",
]
