"""Reports about the images and instances of a dataset in COCO's format, for the log of a run."""

import json
import os
from collections import Counter
from typing import Any, Dict, List, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from rpe_d2.utils.coco_annotations import registered_as_coco, usable_segmentation
from rpe_d2.utils.image_files import printable
from rpe_d2.utils.json_text import parse_json

__all__ = ["CocoReport", "coco_report"]

_MOST_DRAWN = 5000  # masks whose areas are counted, evenly spaced over the file
PERCENTILES = (1, 25, 50, 75, 99)


class CocoReport(NamedTuple):
    """A one-line summary of a dataset, and warnings about it.

    Attributes:
        summary: numbers of images, instances and crowds, by class, and sizes of masks.
        warnings: one line each.
        num_instances: number of annotations that are not crowds.
        most_in_one_image: largest number of them in an image.
        fullest_image: file name of this image, "" without instances.
        areas: (n,) areas of up to 5,000 masks in pixels, which are evenly spaced over the file.
        image_sizes: (n, 2) height and width of the image of each of these masks.
    """

    summary: str
    warnings: List[str]
    num_instances: int
    most_in_one_image: int
    fullest_image: str
    areas: np.ndarray
    image_sizes: np.ndarray

    def areas_at_scale(self, min_size: int, max_size: int) -> np.ndarray:
        """Returns the areas (n,) in images that are resized as Detectron2's loaders resize them.

        Args:
            min_size: length of the shorter side in pixels; 0 for no resizing.
            max_size: limit of the longer side in pixels.
        """
        if min_size == 0 or len(self.areas) == 0:
            return self.areas.astype(float)
        scale = min_size / self.image_sizes.min(axis=1)
        scale = np.minimum(scale, max_size / self.image_sizes.max(axis=1))
        return self.areas * scale**2


def coco_report(name: str) -> CocoReport:
    """Reports the content of a registered dataset, read from its file if it has one.

    Areas are the numbers of pixels of the masks that are used in training, not the values in the
    file.
    """
    path = MetadataCatalog.get(name).get("json_file")
    if path:
        with PathManager.open(path) as file:
            content = parse_json(file.read(), name)
    else:
        content = registered_as_coco(name)
    images = {image["id"]: image for image in content["images"]}
    annotations = content["annotations"]
    objects = [a for a in annotations if not a.get("iscrowd", 0)]
    classes = {category["id"]: category["name"] for category in content["categories"]}
    by_class = Counter(classes[a["category_id"]] for a in objects)
    by_image = Counter(a["image_id"] for a in objects)

    drawn = _spaced(objects)
    areas = np.array([_area(a, images[a["image_id"]]) for a in drawn])
    sizes = [(images[a["image_id"]]["height"], images[a["image_id"]]["width"]) for a in drawn]
    most, fullest = 0, ""
    parts = [
        f"{len(images)} images ({len(images) - len(by_image)} without instances)",
        f"{len(objects)} instances",
        f"{len(annotations) - len(objects)} crowds",
        f"by class {_listed(f'{key} {count}' for key, count in by_class.most_common())}",
    ]
    if objects:
        image_id, most = by_image.most_common(1)[0]
        fullest = printable(images[image_id]["file_name"])
        sides = np.percentile(np.sqrt(areas), PERCENTILES).round(1).tolist()
        parts += [
            f"most in one image {most} ({fullest})",
            f"square roots of areas {', '.join(map(str, sides))} px"
            f" (percentiles {', '.join(map(str, PERCENTILES))})",
        ]
    warnings = _warnings(content, objects, areas)
    missing = [label for label in classes.values() if label not in by_class]
    if objects and missing:
        warnings.append(f"{len(missing)} classes have no instance ({_listed(missing)})")
    return CocoReport(
        f"{name}: {'; '.join(parts)}",
        [f"{name}: {text}" for text in warnings],
        len(objects),
        most,
        fullest,
        areas,
        np.array(sizes, dtype=np.int64).reshape(-1, 2),
    )


def _warnings(
    content: Dict[str, Any], objects: List[Dict[str, Any]], areas: np.ndarray
) -> List[str]:
    warnings = []
    count = len(content["annotations"])
    if not count:
        warnings.append("there are no annotations")
    elif not objects:
        warnings.append(f"all {count} annotations are crowds (iscrowd 1), which are not learned")
    if objects and (fractions := sum(map(_has_fractions, objects))):
        warnings.append(
            f"{fractions} of {len(objects)} instances have coordinates from 0 to 1, which look like"
            " fractions of the image; COCO's format has pixels"
        )
    if len(areas) and (empty := int((areas == 0).sum())):
        warnings.append(f"{empty} of {len(areas)} masks that were drawn have no pixel")
    same = Counter(
        json.dumps([a["image_id"], a["category_id"], a["bbox"], a.get("segmentation")])
        for a in objects
    )
    if repeated := sum(same.values()) - len(same):
        warnings.append(f"{repeated} instances are duplicates of others, with the same mask")
    files = Counter(os.path.normpath(image["file_name"]) for image in content["images"])
    if several := [file for file, number in files.items() if number > 1]:
        warnings.append(
            f"{len(several)} files have several image ids ({_listed(map(printable, several))})"
        )
    return warnings


def _spaced(objects: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    return objects[:: max(1, -(-len(objects) // _MOST_DRAWN))]


def _area(annotation: Dict[str, Any], image: Dict[str, Any]) -> int:
    """Counts the pixels of a mask."""
    segmentation = usable_segmentation(annotation)
    if segmentation is None:
        return 0
    size = image["height"], image["width"]
    if isinstance(segmentation, list):
        return int(mask_util.area(mask_util.merge(mask_util.frPyObjects(segmentation, *size))))
    if isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, *size)
    return int(mask_util.area(segmentation))


def _has_fractions(annotation: Dict[str, Any]) -> bool:
    """Returns whether all coordinates of an object are in 0 to 1 and some are not integers."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return False
    values = [v for p in segmentation for v in p] if segmentation else annotation["bbox"]
    return bool(values) and 0 <= min(values) and max(values) <= 1 and any(v % 1 for v in values)


def _listed(values: Any, limit: int = 5) -> str:
    values = list(values)
    return ", ".join(values[:limit]) + (f", … ({len(values)})" if len(values) > limit else "")
