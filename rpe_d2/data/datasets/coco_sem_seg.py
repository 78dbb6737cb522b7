"""Semantic label maps of datasets in COCO's format, drawn from instance masks on access."""

import contextlib
import functools
import io
import os
from typing import Any, Dict, List
from urllib.parse import quote

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools.coco import COCO

from rpe_d2.utils.coco_annotations import usable_segmentation

from .generated import encoded, serve_pictures

__all__ = ["register_coco_sem_seg"]

_PREFIX = "coco_sem_seg://"
_IGNORED = 255  # largest value of an 8-bit label map


def register_coco_sem_seg(where: str, name: str, classes: List[str]) -> None:
    """Registers ``NAME_sem_seg`` for a registered dataset, with the background as class 0.

    With more than 254 classes nothing is registered. Where masks overlap, the smaller one is in
    front. Crowd regions are ignored. If an annotation has no mask, its mask is the filled box. An
    annotation is left out if all its polygons have fewer than three corners.

    Args:
        where: prefix of error messages.
        name: a dataset in COCO's format with ``json_file`` and ``image_root`` in its metadata.
        classes: names of the instance classes.

    Raises:
        ValueError: Another dataset has the name.
    """
    if len(classes) >= _IGNORED:
        return
    metadata = MetadataCatalog.get(name)
    if f"{name}_sem_seg" in DatasetCatalog.list():
        raise ValueError(
            f"{where}: {name}_sem_seg, the name of its semantic maps, is taken by another dataset;"
            " choose another name"
        )
    source = metadata.json_file, metadata.image_root
    DatasetCatalog.register(f"{name}_sem_seg", functools.partial(_load, *source))
    MetadataCatalog.get(f"{name}_sem_seg").set(
        stuff_classes=["background", *classes],
        ignore_label=_IGNORED,
        evaluator_type="sem_seg",
        image_root=metadata.image_root,
    )


@functools.lru_cache(maxsize=4)
def _content(json_file: str) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(json_file)


def _load(json_file: str, image_root: str) -> List[Dict[str, Any]]:
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "sem_seg_file_name": f"{_PREFIX}{json_file}#{_quoted(image['id'])}",
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
        }
        for _, image in sorted(_content(json_file).imgs.items())
    ]


def _quoted(image_id: Any) -> str:
    """Quotes an id, which may be any text, so that it can be the end of a path."""
    return quote(str(image_id), safe="")


def _label_map(path: str) -> bytes:
    """Encodes the label map of ``FILE.json#IMAGE_ID``."""
    json_file, _, image_id = path.rpartition("#")
    content = _content(json_file)
    known = {_quoted(known): known for known in content.imgs}
    if image_id not in known:
        raise FileNotFoundError(f"{_PREFIX}{path}: there is no such image")
    return encoded(_paint(content, known[image_id]))


def _paint(content: COCO, image_id: Any) -> np.ndarray:
    """Draws the label map (H, W) uint8 of an image."""
    image = content.imgs[image_id]
    labels = np.zeros((image["height"], image["width"]), np.uint8)
    label_of = {category: 1 + place for place, category in enumerate(sorted(content.cats))}
    masks = []
    for annotation in content.imgToAnns[image_id]:
        segmentation = usable_segmentation(annotation)
        if segmentation is None:
            continue
        annotation = {**annotation, "segmentation": segmentation}
        masks.append((annotation, content.annToMask(annotation).astype(bool)))
    # Crowds are drawn first: where one overlaps an instance, the label of the instance is used.
    masks.sort(key=lambda pair: (not pair[0].get("iscrowd", 0), -pair[1].sum()))
    for annotation, mask in masks:
        crowd = annotation.get("iscrowd", 0)
        labels[mask] = _IGNORED if crowd else label_of[annotation["category_id"]]
    return labels


serve_pictures(_PREFIX, _label_map)
