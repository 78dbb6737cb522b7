"""Masks of annotations in COCO's format that lack a mask or have invalid polygons."""

from typing import Any, Dict, List, Optional, Sequence, Union


def is_polygon(coordinates: Sequence[float]) -> bool:
    """Whether coordinates x, y, x, y … describe a polygon of at least 3 corners.

    Detectron2 drops the others when it loads annotations.
    """
    return len(coordinates) >= 6 and len(coordinates) % 2 == 0


def usable_segmentation(
    annotation: Dict[str, Any],
) -> Optional[Union[Dict[str, Any], List[List[float]]]]:
    """Returns the segmentation of an annotation, the same in training and evaluation.

    Args:
        annotation: in COCO's format, with ``bbox`` in XYWH.

    Returns:
        RLE unchanged; polygons without the invalid ones; the filled box of an annotation that has
        no ``segmentation``. None where no polygon is valid: Detectron2 drops such an annotation
        when it loads the data.
    """
    segmentation = annotation.get("segmentation")
    if not segmentation:
        x, y, width, height = annotation["bbox"]
        right, bottom = x + width, y + height
        return [[x, y, right, y, right, bottom, x, bottom]]
    if isinstance(segmentation, dict):
        return segmentation
    return [polygon for polygon in segmentation if is_polygon(polygon)] or None
