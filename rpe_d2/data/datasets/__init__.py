"""Datasets: synthetic shapes and COCO-format files named in the config."""

from .coco_jsons import register_coco_jsons
from .shapes import SHAPES_CLASSES, SHAPES_SPLITS, load_shapes, render_shapes

__all__ = [
    "SHAPES_CLASSES",
    "SHAPES_SPLITS",
    "load_shapes",
    "register_coco_jsons",
    "render_shapes",
]
