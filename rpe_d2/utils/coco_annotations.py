"""Masks of annotations in COCO's format that do not have everything a mask needs."""

from typing import Any, Dict, List, Optional, Sequence, Union


def is_polygon(coordinates: Sequence[float]) -> bool:
    """Whether x, y, x, y … are the corners of a polygon, at least 3; Detectron2 leaves out what is none."""
    return len(coordinates) >= 6 and len(coordinates) % 2 == 0


def usable_segmentation(
    annotation: Dict[str, Any],
) -> Optional[Union[Dict[str, Any], List[List[float]]]]:
    """What an annotation's mask is made of, the same in training and evaluation.

    Args:
        annotation: in COCO's format, ``bbox`` in XYWH.

    Returns:
        RLE as it is; polygons without those that are none; the filled box of an annotation without ``segmentation``.
        None where no polygon is left: Detectron2 leaves out such an annotation when it loads the data.
    """
    segmentation = annotation.get("segmentation")
    if not segmentation:
        x, y, width, height = annotation["bbox"]
        right, bottom = x + width, y + height
        return [[x, y, right, y, right, bottom, x, bottom]]
    if isinstance(segmentation, dict):
        return segmentation
    return [polygon for polygon in segmentation if is_polygon(polygon)] or None
