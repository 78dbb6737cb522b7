"""What the files of PASCAL VOC and SBD hold: maps of objects and classes, boxes."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np
from PIL import Image
from scipy.io import loadmat

from rpe_d2.utils.readable import UnreadableImage

from .generated import encoded, serve_pictures

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
VOC_SEM_SEG_CLASSES = ("background", *VOC_CLASSES)
VOID = 255  # in the maps: the band around objects, which is nobody's
CLASS_MAP_PREFIX = "voc://"  # before the path of a class map, see _VOCHandler
# Class, box (x, y, width, height in pixels), whether it is difficult.
AnnotatedBox = Tuple[int, List[float], bool]


def _read_map(path: Path) -> np.ndarray:
    """(H, W) uint8 palette indices.

    Raises:
        UnreadableImage: it is not a picture, or one of colours.
    """
    try:
        with Image.open(path) as image:
            mode, labels = image.mode, np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise UnreadableImage(f"{path}: {error}") from error
    if mode not in ("P", "L"):
        raise UnreadableImage(
            f"{path} has the mode {mode}; allowed: P, the palette of the release, or L"
        )
    return labels


def read_png_objects(object_map: Path, class_map: Path) -> Tuple[np.ndarray, Dict[int, int]]:
    """The map (H, W) uint8 of objects, and the class of each: the one that most of its pixels have."""
    objects = _read_map(object_map)
    classes = _read_map(class_map)
    if objects.shape != classes.shape:
        raise UnreadableImage(
            f"{object_map} has {objects.shape[0]} x {objects.shape[1]} pixels (height, width); "
            f"{class_map} has {classes.shape[0]} x {classes.shape[1]}"
        )
    categories = {}
    for number in np.setdiff1d(objects, [0, VOID]).tolist():
        counts = np.bincount(classes[objects == number], minlength=VOID + 1)
        found = int(counts[:VOID].argmax())
        if counts[found] == 0 or not 1 <= found <= len(VOC_CLASSES):
            found = VOID if counts[found] == 0 else found
            raise UnreadableImage(
                f"{class_map} has {found} under object {number} of {object_map}; "
                f"allowed: 1 to {len(VOC_CLASSES)}"
            )
        categories[number] = found - 1
    return objects, categories


def _read_mat(path: Path, variable: str, fields: Tuple[str, ...]) -> List[np.ndarray]:
    """Fields of the structure in one of SBD's files.

    Raises:
        UnreadableImage: it is no such file.
    """
    try:
        content = loadmat(path, variable_names=[variable])
    except Exception as error:  # scipy raises anything for files of another kind
        raise UnreadableImage(f"{path} is no MATLAB file: {error}") from error
    structure = content.get(variable)
    found = () if structure is None else structure.dtype.names or ()
    missing = [field for field in fields if field not in found]
    if missing:
        raise UnreadableImage(f"{path} has no {variable}.{missing[0]}, as SBD's files do")
    return [structure[field].flat[0] for field in fields]


def read_mat_objects(path: Path) -> Tuple[np.ndarray, Dict[int, int]]:
    """The map (H, W) uint8 of objects, and the class of each."""
    objects, listed = _read_mat(path, "GTinst", ("Segmentation", "Categories"))
    listed = listed.reshape(-1).astype(int).tolist()  # of object 1, 2, ...
    categories = {}
    for number in np.setdiff1d(objects, [0]).tolist():
        category = listed[number - 1] if number <= len(listed) else None
        if category not in range(1, len(VOC_CLASSES) + 1):
            raise UnreadableImage(
                f"{path} has the class {category} for object {number}; allowed: 1 to {len(VOC_CLASSES)}"
            )
        categories[number] = category - 1
    return objects, categories


def read_boxes(path: Path) -> List[AnnotatedBox]:
    """The annotated objects of an image, in VOC's XML."""
    boxes = []
    try:
        for thing in ET.parse(path).getroot().findall("object"):
            name = thing.findtext("name").strip()
            if name not in VOC_CLASSES:
                continue  # more than the segmentation is about
            corners = [thing.find("bndbox").find(k) for k in ("xmin", "ymin", "xmax", "ymax")]
            left, top, right, bottom = (float(corner.text) for corner in corners)
            # Pixels count from 1, and the last one belongs to the box.
            box = [left - 1, top - 1, right - left + 1, bottom - top + 1]
            difficult = bool(int(thing.findtext("difficult", "0")))
            boxes.append((VOC_CLASSES.index(name), box, difficult))
    except (ET.ParseError, AttributeError, ValueError) as error:
        raise UnreadableImage(f"{path} is no annotation of VOC: {error}") from error
    return boxes


def _class_map(path: str) -> bytes:
    """The class map in FILE.png (VOC) or FILE.mat (SBD), without the palette."""
    file = Path(path)
    if file.suffix == ".mat":
        (labels,) = _read_mat(file, "GTcls", ("Segmentation",))
    else:
        labels = _read_map(file)
    return encoded(labels.astype(np.uint8))


serve_pictures(CLASS_MAP_PREFIX, _class_map)
