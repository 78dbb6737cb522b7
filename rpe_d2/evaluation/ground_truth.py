"""Ground truth as COCOeval needs it."""

from pycocotools.coco import COCO


def fill_missing_masks(truth: COCO) -> None:
    """Gives annotations without a mask their filled box, as the mapper does in training; COCOeval fails on them."""
    for annotation in truth.anns.values():
        if not annotation.get("segmentation"):
            x, y, width, height = annotation["bbox"]
            right, bottom = x + width, y + height
            annotation["segmentation"] = [[x, y, right, y, right, bottom, x, bottom]]
