"""Datasets: synthetic shapes and COCO-format files named in the config."""

from .coco_jsons import register_coco_jsons
from .shapes import (
    SHAPES_CLASSES,
    SHAPES_SEM_SEG_CLASSES,
    SHAPES_SPLITS,
    load_shapes,
    load_shapes_sem_seg,
    render_shapes,
)

__all__ = [
    "SHAPES_CLASSES",
    "SHAPES_SEM_SEG_CLASSES",
    "SHAPES_SPLITS",
    "load_shapes",
    "load_shapes_sem_seg",
    "register_coco_jsons",
    "render_shapes",
]
