"""Boundary detection: BSDS500 as Berkeley released it (Arbelaez et al., PAMI 2011), named in the config: `DATASETS.BSDS`."""

import os
from typing import Any, Dict, List

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

__all__ = ["register_bsds"]

_SPLITS = ("train", "val", "test")
# Below the named folder, as the archive unpacks.
_INNER_FOLDERS = ("", "BSR/BSDS500/data", "BSDS500/data", "data")
_KEY = "DATASETS.BSDS"
# Names in an error message.
_MOST_NAMES = 3


def register_bsds(root: str) -> None:
    """Registers `bsds_train`, `bsds_val` and `bsds_test`, those of them whose pictures are there.

    Each dict has `file_name`, `height`, `width`, `image_id` and `boundary_file_name`, the path of what all annotators
    drew (:func:`rpe_d2.utils.mat_files.read_boundary_annotations`).

    Args:
        root: folder with `images/SPLIT/NAME.jpg` and `groundTruth/SPLIT/NAME.mat`, or the one in which the archive was
            unpacked, with `BSR/BSDS500/data`. "": nothing is registered.

    Raises:
        ValueError: other data have one of these names already.
        FileNotFoundError: there is no split, or a picture has no ground truth.
    """
    if not root:
        return
    registered = False
    for folder in (os.path.join(root, inner) if inner else root for inner in _INNER_FOLDERS):
        for split in _SPLITS:
            if os.path.isdir(os.path.join(folder, "images", split)):
                _register(root, folder, split)
                registered = True
        if registered:
            return
    raise FileNotFoundError(f"{_KEY} is {root}; it has no images/{', images/'.join(_SPLITS)}")


def _register(root: str, folder: str, split: str) -> None:
    dataset = f"bsds_{split}"
    if dataset in DatasetCatalog.list():
        known = MetadataCatalog.get(dataset).root
        if known != root:
            raise ValueError(f"{_KEY} is {root}; {dataset} is registered from {known}")
        return
    records = _records(root, folder, split)
    DatasetCatalog.register(dataset, lambda: [dict(record) for record in records])
    MetadataCatalog.get(dataset).set(root=root, evaluator_type="boundaries")


def _records(root: str, folder: str, split: str) -> List[Dict[str, Any]]:
    pictures = os.path.join(folder, "images", split)
    truths = os.path.join(folder, "groundTruth", split)
    # Beside the pictures the archive has a Thumbs.db.
    names = sorted(name[: -len(".jpg")] for name in os.listdir(pictures) if name.endswith(".jpg"))
    if not names:
        raise FileNotFoundError(f"{_KEY} is {root}; {pictures} has no .jpg")
    missing = [n for n in names if not os.path.isfile(os.path.join(truths, f"{n}.mat"))]
    if missing:
        listed = ", ".join(f"{name}.mat" for name in missing[:_MOST_NAMES])
        more = f", … ({len(missing)})" if len(missing) > _MOST_NAMES else ""
        raise FileNotFoundError(f"{_KEY} is {root}; {truths} has no {listed}{more}")
    records = []
    for name in names:
        picture = os.path.join(pictures, f"{name}.jpg")
        with Image.open(picture) as image:
            width, height = image.size
        records.append(
            {
                "file_name": picture,
                "boundary_file_name": os.path.join(truths, f"{name}.mat"),
                "image_id": name,
                "height": height,
                "width": width,
            }
        )
    return records
