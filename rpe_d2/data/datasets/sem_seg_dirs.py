"""Datasets of image folders and label maps, named in ``DATASETS.SEM_SEG_DIRS``."""

import contextlib
import functools
import logging
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from rpe_d2.utils.image_files import IMAGE_SUFFIXES, image_size, list_images
from rpe_d2.utils.json_text import read_text
from rpe_d2.utils.label_maps import LABEL_SUFFIXES, check_unlabeled, read_class_indices
from rpe_d2.utils.readable import UnreadableImage

from .generated import encoded, serve_pictures

__all__ = ["register_sem_seg_dirs"]

logger = logging.getLogger(__name__)

_KEY = "DATASETS.SEM_SEG_DIRS"
_PREFIX = "sem_seg_dir://"
_NUM_CHECKED_IMAGES = 10
# Missing classes are reported only for at least _MANY_MAPS maps, of which _MOST_MAPS are read.
_MANY_MAPS, _MOST_MAPS = 10, 200


class _Folders(NamedTuple):
    images: str
    labels: str
    classes_file: Optional[str]
    num_classes: int
    ignore_value: int


def register_sem_seg_dirs(entries: Sequence[str], num_classes: int, ignore_value: int) -> None:
    """Registers datasets of an image folder and a folder of label maps with the same names.

    This is the format of ADE20K: ``images/a.jpg`` belongs to ``labels/a.png`` (also TIFF or NPY,
    up to 32 bits), whose pixels are classes from 0, or ``ignore_value``. Both folders may have the
    same subfolders. The first images and label maps are read here. The sizes of the others are
    compared when the data are first used, and labels are checked whenever a map is read. Entries
    that this process has already registered are skipped.

    Args:
        entries: ``"name=images/:labels/"`` or ``"name=images/:labels/:classes.txt"``, where the
            text file has the name of a class in each line.
        num_classes: number of classes, ``MODEL.SEM_SEG_HEAD.NUM_CLASSES``.
        ignore_value: label of ignored pixels, 0 to 255.

    Raises:
        ValueError: An entry, a label or the size of an image is wrong, or another dataset has the
            name.
        FileNotFoundError: A folder, a file or the label map of an image is missing.
    """
    for entry in entries:
        name, images, labels, classes_file = _parse_entry(entry)
        where = f"{_KEY}: {entry!r}"
        folders = _Folders(images, labels, classes_file, num_classes, ignore_value)
        if name in DatasetCatalog.list():
            if MetadataCatalog.get(name).get("sem_seg_dirs") == folders:
                continue
            raise ValueError(
                f"{where}: the name {name!r} is taken by another dataset;"
                " choose one that is not registered yet"
            )
        names = _class_names(where, classes_file, num_classes)
        pairs = _pairs(where, images, labels)
        for image, label in pairs[:_NUM_CHECKED_IMAGES]:
            _sizes(where, image, label)
            _read(label, num_classes, ignore_value, where)
        check_unlabeled(where, _readable(pairs, num_classes, ignore_value, where), ignore_value)
        _warn_about_missing_classes(where, pairs, folders, names)
        DatasetCatalog.register(name, functools.partial(_load, where, folders))
        MetadataCatalog.get(name).set(
            sem_seg_dirs=folders,
            stuff_classes=names,
            ignore_label=ignore_value,
            evaluator_type="sem_seg",
        )


def _parse_entry(entry: str) -> Tuple[str, str, str, Optional[str]]:
    """Splits an entry into name, image folder, label folder and file of class names."""
    name, _, rest = entry.partition("=") if isinstance(entry, str) else ("", "", "")
    parts = [part.strip() for part in rest.split(":")]
    if not name.strip() or len(parts) not in (2, 3) or not all(parts):
        raise ValueError(
            f"{_KEY}: malformed entry {entry!r}; allowed: 'name=images/:labels/' or "
            "'name=images/:labels/:classes.txt'"
        )
    paths = [str(Path(part).expanduser()) for part in parts]
    return name.strip(), paths[0], paths[1], paths[2] if len(paths) == 3 else None


def _class_names(where: str, file: Optional[str], num_classes: int) -> List[str]:
    if file is None:
        return [f"class {number}" for number in range(num_classes)]
    if not Path(file).is_file():
        raise FileNotFoundError(f"{where}: there is no file {file}")
    names = [line.strip() for line in read_text(file, where).splitlines() if line.strip()]
    if len(names) != num_classes:
        raise ValueError(
            f"{where}: {file} names {len(names)} classes;"
            f" MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}"
        )
    return names


def _pairs(where: str, images: str, labels: str) -> List[Tuple[Path, Path]]:
    """Pairs images with label maps by name."""
    for folder in (images, labels):
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{where}: there is no folder {folder}")
    files = [Path(path) for path in list_images(images, recursive=True)]
    if not files:
        raise ValueError(f"{where}: {images} has no images ({', '.join(IMAGE_SUFFIXES)})")
    present = {p for p in Path(labels).rglob("*") if p.suffix.lower() in LABEL_SUFFIXES}
    by_name = {path.with_suffix(""): path for path in sorted(present, key=_order, reverse=True)}
    names = [Path(labels) / path.relative_to(images).with_suffix("") for path in files]
    pairs = [(p, by_name.get(n, n.with_name(n.name + ".png"))) for p, n in zip(files, names)]
    missing = [(image, label) for image, label in pairs if label not in present]
    if missing:
        raise FileNotFoundError(
            f"{where}: {len(missing)} of {len(pairs)} images have no label map;"
            f" there is no {missing[0][1]} for {missing[0][0]}"
        )
    return pairs


def _order(label: Path) -> int:
    return LABEL_SUFFIXES.index(label.suffix.lower())


def _readable(
    pairs: Sequence[Tuple[Path, Path]], num_classes: int, ignore_value: int, where: str
) -> Iterator[np.ndarray]:
    """Yields the label maps that can be read; the others are reported when they are used."""
    for _, label in pairs:
        with contextlib.suppress(UnreadableImage):
            yield _read(label, num_classes, ignore_value, where)


def _warn_about_missing_classes(
    where: str, pairs: List[Tuple[Path, Path]], folders: _Folders, names: List[str]
) -> None:
    """Warns about classes that occur in none of many maps; a few maps often lack some classes."""
    if len(pairs) < _MANY_MAPS:
        return
    step = -(-len(pairs) // _MOST_MAPS)
    read = pairs[::step]
    seen: Set[int] = set()
    for labels in _readable(read, folders.num_classes, folders.ignore_value, where):
        seen.update(np.unique(labels).tolist())
    missing = [name for number, name in enumerate(names) if number not in seen]
    if missing:
        listed = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        logger.warning(
            f"{where}: {len(missing)} of {len(names)} classes occur in none of the {len(read)}"
            f" label maps that were read: {listed}"
        )


def _sizes(where: str, image: Path, label: Path) -> Tuple[int, int]:
    """Returns width and height of an image after comparing them with its label map's.

    Only the headers are read. If there is an EXIF orientation, the size is that of the upright
    image.
    """
    try:
        sizes = [image_size(str(path)) for path in (image, label)]
    except UnreadableImage as error:
        raise UnreadableImage(f"{where}: {error}") from error
    if sizes[0] != sizes[1]:
        texts = [f"{width} x {height}" for width, height in sizes]
        raise UnreadableImage(
            f"{where}: {image} has {texts[0]} pixels (width, height),"
            f" its label map {label} {texts[1]}; allowed: the same"
        )
    return sizes[0]


def _load(where: str, folders: _Folders) -> List[Dict[str, Any]]:
    prefix = f"{_PREFIX}{folders.num_classes},{folders.ignore_value}:"
    records = []
    for image, label in _pairs(where, folders.images, folders.labels):
        width, height = _sizes(where, image, label)
        records.append(
            {
                "file_name": str(image),
                "sem_seg_file_name": f"{prefix}{label}",
                "image_id": str(image.relative_to(folders.images).with_suffix("")),
                "height": height,
                "width": width,
            }
        )
    return records


def _read(path: Path, num_classes: int, ignore_value: int, where: str = _KEY) -> np.ndarray:
    """Reads a label map (H, W) uint8 and checks its labels.

    Raises:
        UnreadableImage: The file is not a label map, or has classes that are not allowed.
    """
    labels = read_class_indices(path, where)
    # Detectron2 reads the maps of training with 8 bits.
    wrong = np.setdiff1d(labels, [*range(min(num_classes, 256)), ignore_value])
    if wrong.size:
        raise UnreadableImage(
            f"{where}: {path} has the label {wrong[0]}; allowed: 0 to {num_classes - 1} "
            f"(MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}) and {ignore_value} (IGNORE_VALUE)"
        )
    return labels.astype(np.uint8)


def _label_map(path: str) -> bytes:
    """Encodes the label map of ``NUM_CLASSES,IGNORE_VALUE:FILE.png``."""
    numbers, _, file = path.partition(":")
    if not Path(file).is_file():
        raise FileNotFoundError(f"{_PREFIX}{path}: there is no such file")
    return encoded(_read(Path(file), *map(int, numbers.split(","))))


serve_pictures(_PREFIX, _label_map)
