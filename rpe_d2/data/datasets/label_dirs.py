"""Datasets of images and instance label maps, named in ``DATASETS.LABEL_DIRS``."""

import csv
import functools
import io
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from rpe_d2.utils.image_files import image_size, image_stem, list_images, printable
from rpe_d2.utils.json_text import read_text
from rpe_d2.utils.label_folders import common_stem, match_files, unique_by_stem
from rpe_d2.utils.label_maps import encode_labels, read_label_map
from rpe_d2.utils.readable import UnreadableImage

__all__ = ["read_label_dirs", "register_label_dirs"]

_KEY = "DATASETS.LABEL_DIRS"
_ONE_CLASS = "object"
_COLUMNS = ("file", "id", "class")
_NAMES = "classes.txt"
_MOST_CLASSES = 65535


class _Folders(NamedTuple):
    images: str
    labels: str
    classes: str


def register_label_dirs(entries: Sequence[str]) -> None:
    """Registers datasets of an image folder and a folder of instance label maps.

    In a label map (PNG, TIFF or NPY, up to 32 bits), 0 is background, and the pixels of an object
    have its number. Images and label maps are matched by their names, as in
    :func:`rpe_d2.utils.label_folders.match_files`. All label maps are read here. Entries that this
    process has already registered are skipped.

    Args:
        entries: ``"name=images/:labels/"``, where all objects are of one class, or
            ``"name=images/:labels/:classes"``, where ``classes`` is one of

            * a CSV file with the columns ``file``, ``id`` and ``class``: name of the image or its
              label map, number of the object, and name of its class. The classes are sorted.
            * a folder of label maps of classes, 0 for none. The class of an object is that of most
              of its pixels. A file ``classes.txt`` in the folder has the name of class 1 in its
              first line, and so on.

    Raises:
        ValueError: An entry, a label map or a class is wrong, or another dataset has the name. The
            message is one line.
    """
    for entry in entries:
        name, folders = _parse_entry(entry)
        where = f"{_KEY}: {entry!r}"
        if name in DatasetCatalog.list():
            if MetadataCatalog.get(name).get("label_dirs") == folders:
                continue
            raise ValueError(
                f"{where}: the name {name!r} is taken by another dataset; choose one that is not "
                "registered yet"
            )
        _, names = _read(where, folders)
        DatasetCatalog.register(name, functools.partial(_load, where, folders))
        MetadataCatalog.get(name).set(
            label_dirs=folders,
            thing_classes=list(names),
            thing_dataset_id_to_contiguous_id={n + 1: n for n in range(len(names))},
            evaluator_type="coco",
            has_report=True,
            field_metrics=True,
        )


def read_label_dirs(
    where: str, images: str, labels: str, classes: str = ""
) -> Tuple[List[Dict[str, Any]], Tuple[str, ...]]:
    """Reads the objects of an image folder and a folder of instance label maps.

    Args:
        where: prefix of error messages.
        images, labels, classes: as in the entries of :func:`register_label_dirs`.

    Returns:
        The dicts of the images in Detectron2's format, and the names of the classes.

    Raises:
        ValueError: A label map or a class is wrong. The message is one line.
    """
    folders = _Folders(images, labels, classes)
    return _load(where, folders), _read(where, folders)[1]


def _parse_entry(entry: str) -> Tuple[str, _Folders]:
    name, _, rest = entry.partition("=") if isinstance(entry, str) else ("", "", "")
    parts = [part.strip() for part in rest.split(":")]
    if not name.strip() or len(parts) not in (2, 3) or not all(parts):
        raise ValueError(
            f"{_KEY}: malformed entry {entry!r}; allowed: 'name=images/:labels/' or "
            "'name=images/:labels/:classes'"
        )
    paths = [str(Path(part).expanduser()) for part in parts]
    return name.strip(), _Folders(*paths, *[""] * (3 - len(paths)))


def _load(where: str, folders: _Folders) -> List[Dict[str, Any]]:
    # Detectron2's loaders may change the dicts, so that every caller gets its own.
    return [
        {**record, "annotations": [dict(a) for a in record["annotations"]]}
        for record in _read(where, folders)[0]
    ]


@functools.lru_cache(maxsize=8)
def _read(where: str, folders: _Folders) -> Tuple[List[Dict[str, Any]], Tuple[str, ...]]:
    """Returns the dicts of a dataset and the names of its classes."""
    pairs = match_files((f"{where}: images", folders.images), (f"{where}: labels", folders.labels))
    try:
        classes = _classes(folders, pairs)
        return [_record(image, label, classes) for image, label in pairs], classes.names
    except UnreadableImage as error:
        raise UnreadableImage(f"{where}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


class _Classes:
    """The classes of a dataset in which all objects are of one class."""

    names: Tuple[str, ...] = (_ONE_CLASS,)

    def of(self, image: str, labels: np.ndarray, label: int) -> int:
        """Returns the index of the class of an object."""
        return 0


class _ClassTable(_Classes):
    """Classes from a CSV file."""

    def __init__(self, path: str):
        self._path = path
        self._of: Dict[Tuple[str, int], str] = {}
        text = read_text(path).removeprefix("\ufeff")  # the mark that Excel writes
        rows = csv.DictReader(io.StringIO(text))
        if not set(_COLUMNS) <= set(rows.fieldnames or ()):
            raise ValueError(
                f"{path} has the columns {', '.join(rows.fieldnames or ['none'])}; allowed: "
                f"{', '.join(_COLUMNS)}"
            )
        for row in self._rows(rows):
            number, name = str(row["id"]).strip(), str(row["class"] or "").strip()
            if not number.isdecimal() or not name:
                raise ValueError(
                    f"{path}, line {rows.line_num}: id {number!r}, class {name!r}; allowed: a "
                    "number and a name"
                )
            key = common_stem(str(row["file"])), int(number)
            if self._of.setdefault(key, name) != name:
                raise ValueError(
                    f"{path}, line {rows.line_num}: object {number} of {printable(key[0])} is "
                    f"{name!r} and {self._of[key]!r}; allowed: one class"
                )
        self.names = tuple(sorted(set(self._of.values())))

    def _rows(self, rows: csv.DictReader) -> Iterator[Dict[str, Any]]:
        try:
            yield from rows
        except csv.Error as error:
            raise ValueError(
                f"{self._path}, line {rows.line_num} is not CSV ({error}); allowed: rows of "
                f"{', '.join(_COLUMNS)}"
            ) from error

    def of(self, image: str, labels: np.ndarray, label: int) -> int:
        name = self._of.get((common_stem(image), label))
        if name is None:
            raise ValueError(
                f"{self._path} has no class of object {label} of {printable(image)}; allowed: a "
                "row for every object"
            )
        return self.names.index(name)


class _ClassMaps(_Classes):
    """Classes from a folder of label maps."""

    def __init__(self, folder: str, images_and_labels: Sequence[Tuple[str, str]]):
        maps = unique_by_stem(("classes", folder), list_images(folder))
        images = [image for image, _ in images_and_labels]
        missing = [image for image in images if common_stem(image) not in maps]
        if missing:
            raise ValueError(
                f"classes is {folder}, which has no class map for {printable(missing[0])}; "
                "allowed: one of the same name for every image"
            )
        self._maps = {image: maps[common_stem(image)] for image in images}
        file = Path(folder) / _NAMES
        if file.is_file():
            self.names = tuple(line.strip() for line in read_text(str(file)).splitlines())
        else:
            count = max(int(_read_classes(self._maps[i]).max(initial=0)) for i in images)
            self.names = tuple(f"class {number}" for number in range(1, count + 1))
        self._last: Tuple[str, Dict[int, int]] = ("", {})

    def of(self, image: str, labels: np.ndarray, label: int) -> int:
        path = self._maps[image]
        if self._last[0] != path:
            classes = _read_classes(path)
            if classes.shape != labels.shape:
                raise ValueError(
                    f"{printable(path)} is {classes.shape[1]} x {classes.shape[0]} pixels; "
                    f"allowed: {labels.shape[1]} x {labels.shape[0]}, as the label map"
                )
            self._last = path, _majority(labels, classes)
        number = int(self._last[1][label])
        if not 0 < number <= len(self.names):
            found = f"class {number}" if number else "no class"
            raise ValueError(
                f"{printable(path)} has {found} at object {label}; allowed: 1 to {len(self.names)}"
            )
        return number - 1


def _read_classes(path: str) -> np.ndarray:
    classes = read_label_map(path)
    if classes.size and not 0 <= classes.min() <= classes.max() <= _MOST_CLASSES:
        raise ValueError(
            f"{printable(path)} has the classes {classes.min()} to {classes.max()}; allowed: 0 to "
            f"{_MOST_CLASSES}"
        )
    return classes


def _majority(labels: np.ndarray, classes: np.ndarray) -> Dict[int, int]:
    """Returns the class of most pixels of each object, 0 if none of them has a class."""
    pairs, counts = np.unique(
        np.stack([labels[labels > 0], classes[labels > 0]]), axis=1, return_counts=True
    )
    best: Dict[int, Tuple[int, int]] = {}
    for label, number, count in zip(*pairs.tolist(), counts.tolist()):
        # The lowest class wins where several have as many pixels.
        if number and count > best.get(label, (0, 0))[1]:
            best[label] = number, count
    return {label: best.get(label, (0, 0))[0] for label in np.unique(pairs[0]).tolist()}


def _classes(folders: _Folders, pairs: Sequence[Tuple[str, str]]) -> _Classes:
    if not folders.classes:
        return _Classes()
    if os.path.isdir(folders.classes):
        return _ClassMaps(folders.classes, pairs)
    if os.path.isfile(folders.classes):
        return _ClassTable(folders.classes)
    raise ValueError(f"classes is {folders.classes}; there is no such file or folder")


def _record(image: str, label_file: str, classes: _Classes) -> Dict[str, Any]:
    width, height = image_size(image)
    labels = read_label_map(label_file)
    if labels.shape != (height, width):
        raise ValueError(
            f"{printable(image)} is {width} x {height} pixels, its label map "
            f"{printable(label_file)} {labels.shape[1]} x {labels.shape[0]}; allowed: the same"
        )
    if labels.size and labels.min() < 0:
        raise ValueError(
            f"{printable(label_file)} has the label {labels.min()}; allowed: 0 or more"
        )
    annotations = []
    for number, rle in encode_labels(labels).items():
        annotations.append(
            {
                "bbox": mask_util.toBbox(rle).tolist(),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": classes.of(image, labels, number),
                "iscrowd": 0,
                "segmentation": rle,
            }
        )
    return {
        "file_name": image,
        "image_id": image_stem(image),
        "height": height,
        "width": width,
        "annotations": annotations,
    }
