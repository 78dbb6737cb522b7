"""Datasets in COCO's format, named in ``DATASETS.COCO_JSONS``."""

import functools
import json
import logging
import os
import reprlib
from operator import mul
from typing import Any, Dict, List, Sequence, Tuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils.file_io import PathManager

from rpe_d2.utils.coco_annotations import (
    MOST_PIXELS,
    are_numbers,
    box_problem,
    is_polygon,
    mask_problem,
    raise_problems,
    replacement_box,
    rle_runs,
)
from rpe_d2.utils.image_files import file_exists, folder_exists, image_exists, printable

from .coco_sem_seg import register_coco_sem_seg

__all__ = ["read_coco_json", "register_coco_jsons"]

logger = logging.getLogger(__name__)

_KEY = "DATASETS.COCO_JSONS"
_NUM_CHECKED_IMAGES = 10
_REQUIRED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
_OPTIONAL = {"annotations": ("iscrowd", "area")}


_ID = (lambda value: isinstance(value, str) or are_numbers([value]), "a number or text")
_SIDE = (lambda value: type(value) is int and value > 0, "a whole number of pixels above 0")
_TEXT = (lambda value: isinstance(value, str), "text")
# Names of classes are written to logs and files. A lone surrogate is half a character.
_NAME = (lambda value: isinstance(value, str) and printable(value) == value, "text in Unicode")
# Predicate that the value of a key must satisfy, and its description in error messages.
_ALLOWED = {
    "id": _ID,
    "image_id": _ID,
    "category_id": _ID,
    "file_name": _TEXT,
    "name": _NAME,
    "height": _SIDE,
    "width": _SIDE,
    "bbox": (
        lambda value: are_numbers(value) and len(value) == 4,
        "4 numbers, x, y, width, height",
    ),
    "iscrowd": (lambda value: value in (0, 1), "0 or 1"),
    "area": (lambda value: are_numbers([value]) and value >= 0, "a number of pixels, 0 or more"),
}


def register_coco_jsons(entries: Sequence[str]) -> None:
    """Checks and registers datasets in COCO's format.

    A file may have polygons, compressed or uncompressed RLE, crowds, images without objects, gaps
    in the category ids, and annotations without a mask, ``iscrowd`` or ``area``. The metadata has
    ``thing_classes`` immediately. Each dataset is also registered as ``NAME_sem_seg``, with
    semantic label maps instead of instances. The file is parsed here for the checks, and again by
    Detectron2 when the data are first used. Entries that this process has already registered are
    skipped.

    Args:
        entries: ``"name=path.json:image_root"``, or ``"name=path.json"`` if the images are in the
            folder of the file.

    Raises:
        ValueError: An entry or the content of a file is wrong, or another dataset has the name.
        FileNotFoundError: The file, the image root or one of the first images does not exist.
    """
    for entry in entries:
        name, json_file, image_root = _parse_entry(entry)
        if name in DatasetCatalog.list():
            metadata = MetadataCatalog.get(name)
            registered = metadata.get("json_file"), metadata.get("image_root")
            if registered == (json_file, image_root):
                continue
            raise ValueError(
                f"{_KEY}: {entry!r}: the name {name!r} is taken by another dataset"
                f" ({registered[0] or 'no JSON file'}); choose one that is not registered yet"
            )
        where = f"{_KEY}: {entry!r}"
        content = read_coco_json(where, json_file)
        _check_files(where, image_root, content["images"])
        _warn_about_masks(where, content)

        categories = sorted(content["categories"], key=lambda category: category["id"])
        DatasetCatalog.register(name, functools.partial(_load, json_file, image_root, name))
        MetadataCatalog.get(name).set(
            json_file=json_file,
            image_root=image_root,
            evaluator_type="coco",
            has_report=True,  # :func:`coco_report` can read the file
            thing_classes=[category["name"] for category in categories],
            thing_dataset_id_to_contiguous_id={
                category["id"]: i for i, category in enumerate(categories)
            },
        )
        register_coco_sem_seg(where, name, [category["name"] for category in categories])


def _load(json_file: str, image_root: str, name: str) -> List[Dict[str, Any]]:
    """Loads a dataset as Detectron2 does, and replaces wrong boxes by the boxes of the masks."""
    records = load_coco_json(json_file, image_root, name)
    for record in records:
        for annotation in record["annotations"]:
            box = replacement_box(annotation, record["height"], record["width"])
            if box:
                annotation["bbox"] = list(box)
    return records


def _parse_entry(entry: str) -> Tuple[str, str, str]:
    """Splits an entry into name, JSON file and image root."""
    # URLs and drive letters also contain colons, so the entry is split after ".json".
    name, equals, rest = entry.partition("=") if isinstance(entry, str) else ("", "", "")
    stem, suffix, image_root = rest.partition(".json:")
    if not suffix and rest.endswith(".json"):
        stem = rest[: -len(".json")]
        image_root = os.path.dirname(rest) or "."
    if not (name.strip() and equals and os.path.basename(stem) and image_root):
        raise ValueError(
            f"{_KEY}: malformed entry {entry!r};"
            " allowed: 'name=path.json:image_root' or 'name=path.json'"
        )
    return name.strip(), os.path.expanduser(f"{stem}.json"), os.path.expanduser(image_root)


def read_coco_json(where: str, json_file: str) -> Dict[str, Any]:
    """Reads a file and checks that it has everything that COCO's format requires.

    Args:
        where: prefix of error messages.
        json_file: path of the file.

    Raises:
        ValueError: The content of the file is wrong.
        FileNotFoundError: The file does not exist.
    """
    if not file_exists(json_file):
        raise FileNotFoundError(f"{where}: no such file {json_file}; allowed: a COCO-format JSON")
    try:
        with PathManager.open(json_file) as f:
            content = json.load(f)
    except (ValueError, RecursionError) as e:  # also a number of thousands of digits
        raise ValueError(f"{where}: {json_file} is not JSON ({e})") from e
    _check_content(where, content)
    _check_masks(where, content)
    return content


def _check_content(where: str, content: Any) -> None:
    """Checks the lists and keys that COCO's format requires, and the references between them."""
    ids = {}
    for part, keys in _REQUIRED.items():
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            present = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise ValueError(
                f"{where}: the file has no list {part!r} (it has {present});"
                f" COCO's format requires {', '.join(_REQUIRED)}"
            )
        for i, item in enumerate(content[part]):
            missing = [k for k in keys if not isinstance(item, dict) or item.get(k) in (None, [])]
            if missing:
                raise ValueError(
                    f"{where}: {part}[{i}] has no {', '.join(missing)}; required: {', '.join(keys)}"
                )
            for key in (*keys, *_OPTIONAL.get(part, ())):
                is_allowed, allowed = _ALLOWED[key]
                if key in item and not is_allowed(item[key]):
                    raise ValueError(
                        f"{where}: {part}[{i}] has the {key} {reprlib.repr(item[key])};"
                        f" allowed: {allowed}"
                    )
        if part != "annotations" and not content[part]:
            raise ValueError(f"{where}: the list {part!r} is empty; at least one is required")
        ids[part] = {item["id"] for item in content[part]}
        if len(ids[part]) < len(content[part]):
            raise ValueError(
                f"{where}: the ids of {part!r} are not unique"
                f" ({len(content[part])} entries, {len(ids[part])} ids)"
            )
        if len({isinstance(one, str) for one in ids[part]}) > 1:
            raise ValueError(
                f"{where}: some ids of {part!r} are numbers and some are text;"
                " allowed: one of the two"
            )

    for key, part in (("image_id", "images"), ("category_id", "categories")):
        wrong = [a for a in content["annotations"] if a[key] not in ids[part]]
        if wrong:
            raise ValueError(
                f"{where}: {len(wrong)} of {len(content['annotations'])} annotations have a {key}"
                f" that is not in {part!r} ({_first(repr(a[key]) for a in wrong)});"
                f" {part!r} has {_first(map(repr, sorted(ids[part])))}"
            )


def _check_files(where: str, image_root: str, images: List[Dict[str, Any]]) -> None:
    """Checks that the first images exist. Checking all takes minutes on a network drive."""
    if not folder_exists(image_root):
        raise FileNotFoundError(f"{where}: no such folder {image_root} (image_root)")
    paths = [os.path.join(image_root, i["file_name"]) for i in images[:_NUM_CHECKED_IMAGES]]
    missing = [path for path in paths if not image_exists(path)]
    if missing:
        raise FileNotFoundError(
            f"{where}: {len(missing)} of the {len(paths)} images checked are missing, first"
            f" {missing[0]}; 'file_name' must be relative to image_root {image_root}"
        )


def _check_masks(where: str, content: Dict[str, Any]) -> None:
    """Raises an error for masks and boxes that cannot be decoded, before any are decoded."""
    sizes = _sizes(content)
    for image_id, (height, width) in sizes.items():
        if height * width > MOST_PIXELS:
            raise ValueError(
                f"{where}: image {image_id} has {height} x {width} pixels;"
                f" allowed: at most {MOST_PIXELS}"
            )
    problems = []
    for annotation in content["annotations"]:
        size = sizes[annotation["image_id"]]
        problem = box_problem(annotation["bbox"], *size)
        if annotation.get("segmentation"):
            problem = mask_problem(annotation["segmentation"], *size) or problem
        if problem:
            problems.append((annotation["id"], problem))
    raise_problems(where, len(content["annotations"]), problems)


def _sizes(content: Dict[str, Any]) -> Dict[Any, Tuple[int, int]]:
    return {image["id"]: (image["height"], image["width"]) for image in content["images"]}


def _warn_about_masks(where: str, content: Dict[str, Any]) -> None:
    """Warns about masks that cannot be learned."""
    sizes = _sizes(content)
    empty, outside, flat, replaced = [], [], [], []
    for annotation in content["annotations"]:
        height, width = sizes[annotation["image_id"]]
        if replacement_box(annotation, height, width):
            replaced.append(annotation["id"])
        elif min(annotation["bbox"][2:]) <= 0:
            flat.append(annotation["id"])
        segmentation = annotation.get("segmentation")
        if not segmentation:
            continue
        if isinstance(segmentation, dict):
            if not sum(rle_runs(segmentation)[1::2]):
                empty.append(annotation["id"])
            continue
        polygons = [p for p in segmentation if is_polygon(p) and _polygon_area(p) > 0]
        if not polygons:
            empty.append(annotation["id"])
        elif all(
            max(p[0::2]) <= 0
            or min(p[0::2]) >= width
            or max(p[1::2]) <= 0
            or min(p[1::2]) >= height
            for p in polygons
        ):
            outside.append(annotation["id"])
    parts = [
        f"{len(ids)} {what} ({_first(ids)})"
        for ids, what in (
            (empty, "masks without area"),
            (outside, "masks outside of the image"),
            (flat, "boxes without area"),
        )
        if ids
    ]
    if parts:
        logger.warning(f"{where}: annotations that cannot be learned: {', '.join(parts)}")
    if replaced:
        logger.warning(
            f"{where}: {len(replaced)} of {len(content['annotations'])} boxes are empty, outside of"
            f" the image or have an IoU below 0.5 with the box of their mask ({_first(replaced)});"
            " training and evaluation use the boxes of the masks"
        )


def _polygon_area(polygon: List[float]) -> float:
    x, y = polygon[0::2], polygon[1::2]
    return abs(sum(map(mul, x, y[1:] + y[:1])) - sum(map(mul, y, x[1:] + x[:1]))) / 2


def _first(values: Any, limit: int = 5) -> str:
    values = list(values)
    return ", ".join(map(str, values[:limit])) + (", …" if len(values) > limit else "")
