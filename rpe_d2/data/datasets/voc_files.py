"""Readers of the files of PASCAL VOC and SBD: object maps, class maps and boxes."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np

from rpe_d2.utils.image_files import check_is_file
from rpe_d2.utils.label_maps import read_class_indices
from rpe_d2.utils.readable import UnreadableImage

from .generated import encoded, serve_pictures

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
VOC_SEM_SEG_CLASSES = ("background", *VOC_CLASSES)
VOID = 255  # label of the ambiguous band around objects
CLASS_MAP_PREFIX = "voc://"  # URL prefix of the path of a class map
# Class, box (x, y, width, height in pixels), and whether the object is difficult.
AnnotatedBox = Tuple[int, List[float], bool]


def read_png_objects(object_map: Path, class_map: Path) -> Tuple[np.ndarray, Dict[int, int]]:
    """Reads VOC's map of objects (H, W) uint8, and the most frequent class of each object."""
    objects = read_class_indices(object_map)
    classes = read_class_indices(class_map)
    if objects.shape != classes.shape:
        raise UnreadableImage(
            f"{object_map} has {objects.shape[0]} x {objects.shape[1]} pixels (height, width); "
            f"{class_map} has {classes.shape[0]} x {classes.shape[1]}"
        )
    categories = {}
    for number in np.setdiff1d(objects, [0, VOID]).tolist():
        counts = np.bincount(classes[objects == number], minlength=VOID + 1)
        category = int(counts[:VOID].argmax())
        if counts[category] == 0 or not 1 <= category <= len(VOC_CLASSES):
            category = VOID if counts[category] == 0 else category
            raise UnreadableImage(
                f"{class_map} has {category} under object {number} of {object_map}; "
                f"allowed: 1 to {len(VOC_CLASSES)}"
            )
        categories[number] = category - 1
    return objects, categories


def _read_mat(path: Path, variable: str, fields: Tuple[str, ...]) -> List[np.ndarray]:
    """Reads fields of the structure in one of SBD's files.

    Raises:
        UnreadableImage: The file cannot be read, or a field is missing.
    """
    from scipy.io import loadmat

    check_is_file(str(path))
    try:
        content = loadmat(path, variable_names=[variable])
    except Exception as error:  # scipy raises arbitrary errors for other kinds of files
        raise UnreadableImage(f"{path} is not a MATLAB file: {error}") from error
    structure = content.get(variable)
    present = () if structure is None else structure.dtype.names or ()
    missing = [field for field in fields if field not in present]
    if missing:
        raise UnreadableImage(f"{path} has no {variable}.{missing[0]}, which SBD's files have")
    return [structure[field].flat[0] for field in fields]


def read_mat_objects(path: Path) -> Tuple[np.ndarray, Dict[int, int]]:
    """Reads SBD's map of objects (H, W) uint8, and the class of each object."""
    objects, listed = _read_mat(path, "GTinst", ("Segmentation", "Categories"))
    listed = listed.reshape(-1).astype(int).tolist()  # classes of the objects 1, 2, ...
    categories = {}
    for number in np.setdiff1d(objects, [0]).tolist():
        category = listed[number - 1] if number <= len(listed) else None
        if category not in range(1, len(VOC_CLASSES) + 1):
            raise UnreadableImage(
                f"{path} has the class {category} for object {number}; "
                f"allowed: 1 to {len(VOC_CLASSES)}"
            )
        categories[number] = category - 1
    return objects, categories


def read_boxes(path: Path) -> List[AnnotatedBox]:
    """Reads the annotated objects of an image from VOC's XML."""
    check_is_file(str(path))
    boxes = []
    try:
        for thing in ET.parse(path).getroot().findall("object"):
            name = thing.findtext("name").strip()
            if name not in VOC_CLASSES:
                continue  # the boxes have more classes than the segmentation
            corners = [thing.find("bndbox").find(k) for k in ("xmin", "ymin", "xmax", "ymax")]
            left, top, right, bottom = (float(corner.text) for corner in corners)
            # Coordinates start at 1, and the last pixel belongs to the box.
            box = [left - 1, top - 1, right - left + 1, bottom - top + 1]
            difficult = bool(int(thing.findtext("difficult", "0")))
            boxes.append((VOC_CLASSES.index(name), box, difficult))
    except (ET.ParseError, AttributeError, ValueError) as error:
        raise UnreadableImage(f"{path} is not a VOC annotation: {error}") from error
    return boxes


def _class_map(path: str) -> bytes:
    """Encodes the class map in FILE.png (VOC) or FILE.mat (SBD) without its palette."""
    file = Path(path)
    if file.suffix == ".mat":
        (labels,) = _read_mat(file, "GTcls", ("Segmentation",))
    else:
        labels = read_class_indices(file)
    return encoded(labels.astype(np.uint8))


serve_pictures(CLASS_MAP_PREFIX, _class_map)
