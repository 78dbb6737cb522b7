"""The Helen face parsing dataset of Smith et al. (CVPR 2013), named in ``DATASETS.HELEN``."""

import os
from typing import Any, Dict, List

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from rpe_d2.utils.image_files import image_size
from rpe_d2.utils.images import ImageReader
from rpe_d2.utils.json_text import read_text

from .generated import encoded, serve_pictures

__all__ = ["HELEN_CLASSES", "HELEN_PARTS", "register_helen"]

HELEN_CLASSES = (
    "background", "face skin", "left eyebrow", "right eyebrow", "left eye", "right eye", "nose",
    "upper lip", "inner mouth", "lower lip", "hair",
)  # fmt: skip
# Groups of classes whose F-scores the literature reports. "overall" has all inner parts.
HELEN_PARTS = {
    "eyes": (4, 5),
    "brows": (2, 3),
    "nose": (6,),
    "inner mouth": (8,),
    "upper lip": (7,),
    "lower lip": (9,),
    "mouth": (7, 8, 9),
    "face skin": (1,),
    "overall": (2, 3, 4, 5, 6, 7, 8, 9),
}
_LISTS = {"train": "exemplars.txt", "val": "tuning.txt", "test": "testing.txt"}
_PREFIX = "helen://"
_KEY = "DATASETS.HELEN"


def register_helen(root: str) -> None:
    """Registers ``helen_train``, ``helen_val`` and ``helen_test``.

    They are the images of the lists of exemplars, of tuning and of testing.

    Args:
        root: folder with ``images/NAME.jpg``, ``labels/NAME/NAME_lbl00.png`` … ``_lbl10.png`` (the
            likelihood of each class per pixel, 0 to 255) and the lists, whose lines have a number,
            a comma and a name. If empty, nothing is registered.

    Raises:
        ValueError: One of the names is taken by another dataset.
        FileNotFoundError: A list or an image that it names is missing.
    """
    if not root:
        return
    for split, name in _LISTS.items():
        dataset = f"helen_{split}"
        if dataset in DatasetCatalog.list():
            if MetadataCatalog.get(dataset).root == root:
                continue
            raise ValueError(
                f"{_KEY} is {root}; "
                f"{dataset} is registered from {MetadataCatalog.get(dataset).root}"
            )
        records = _records(root, os.path.join(root, name))
        DatasetCatalog.register(dataset, lambda records=records: [dict(r) for r in records])
        MetadataCatalog.get(dataset).set(
            root=root,
            stuff_classes=list(HELEN_CLASSES),
            part_classes=HELEN_PARTS,
            ignore_label=255,
            evaluator_type="sem_seg",
        )


def _records(root: str, list_file: str) -> List[Dict[str, Any]]:
    if not os.path.isfile(list_file):
        raise FileNotFoundError(f"{_KEY} is {root}; it has no {os.path.basename(list_file)}")
    lines = read_text(list_file, _KEY).splitlines()
    names = [line.rpartition(",")[2].strip() for line in lines if line.strip()]
    records = []
    for name in names:
        file_name = os.path.join(root, "images", f"{name}.jpg")
        if not os.path.isfile(file_name):
            raise FileNotFoundError(f"{list_file} names {name}; there is no {file_name}")
        width, height = image_size(file_name)
        records.append(
            {
                "file_name": file_name,
                "sem_seg_file_name": _PREFIX + os.path.join(root, "labels", name, name),
                "image_id": name,
                "height": height,
                "width": width,
            }
        )
    return records


def _label_map(stem: str) -> bytes:
    """Encodes the map of the likeliest class, from ``STEM_lbl00.png`` … ``STEM_lbl10.png``."""
    read = ImageReader("L")
    files = [f"{stem}_lbl{label:02d}.png" for label in range(len(HELEN_CLASSES))]
    likelihoods = np.concatenate([read(file) for file in files], axis=2)
    return encoded(likelihoods.argmax(axis=2).astype(np.uint8))


serve_pictures(_PREFIX, _label_map)
