"""BSDS500 for contour detection (Arbelaez et al., PAMI 2011), named in ``DATASETS.BSDS``."""

import os
from typing import Any, Dict, List

from detectron2.data import DatasetCatalog, MetadataCatalog

from rpe_d2.utils.image_files import image_size

__all__ = ["register_bsds"]

_SPLITS = ("train", "val", "test")
# Where the data may lie below the given folder, depending on how the archive was unpacked.
_INNER_FOLDERS = ("", "BSR/BSDS500/data", "BSDS500/data", "data")
_KEY = "DATASETS.BSDS"
# Largest number of names in an error message.
_MOST_NAMES = 3


def register_bsds(root: str) -> None:
    """Registers those of ``bsds_train``, ``bsds_val`` and ``bsds_test`` whose images are present.

    Each dataset dict has ``file_name``, ``height``, ``width``, ``image_id`` and
    ``boundary_file_name``, the path of the annotators' contours, which
    :func:`rpe_d2.utils.mat_files.read_boundary_annotations` reads.

    Args:
        root: folder with ``images/SPLIT/NAME.jpg`` and ``groundTruth/SPLIT/NAME.mat``, or the
            folder where the archive was unpacked, with ``BSR/BSDS500/data``. If empty, nothing is
            registered.

    Raises:
        ValueError: One of the names is taken by another dataset.
        FileNotFoundError: There is no split, or an image has no ground truth.
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
    images = os.path.join(folder, "images", split)
    annotations = os.path.join(folder, "groundTruth", split)
    # The archive has a Thumbs.db beside the images.
    names = sorted(name[: -len(".jpg")] for name in os.listdir(images) if name.endswith(".jpg"))
    if not names:
        raise FileNotFoundError(f"{_KEY} is {root}; {images} has no .jpg")
    missing = [n for n in names if not os.path.isfile(os.path.join(annotations, f"{n}.mat"))]
    if missing:
        listed = ", ".join(f"{name}.mat" for name in missing[:_MOST_NAMES])
        more = f", … ({len(missing)})" if len(missing) > _MOST_NAMES else ""
        raise FileNotFoundError(f"{_KEY} is {root}; {annotations} has no {listed}{more}")
    records = []
    for name in names:
        file_name = os.path.join(images, f"{name}.jpg")
        width, height = image_size(file_name)
        records.append(
            {
                "file_name": file_name,
                "boundary_file_name": os.path.join(annotations, f"{name}.mat"),
                "image_id": name,
                "height": height,
                "width": width,
            }
        )
    return records
