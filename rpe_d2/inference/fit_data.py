"""Data of ``rpe-d2 fit``: reading, splitting and measuring them."""

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode
from scipy import ndimage
from skimage.measure import regionprops_table

from rpe_d2.data import read_label_dirs
from rpe_d2.data.datasets.coco_jsons import read_coco_json
from rpe_d2.evaluation.ground_truth import complete_ground_truth, target_label_map
from rpe_d2.utils.image_files import image_exists, printable
from rpe_d2.utils.images import ImageReader
from rpe_d2.utils.label_maps import decode_labels

__all__ = [
    "LabelMaps",
    "Measures",
    "measure",
    "read_coco_data",
    "read_label_data",
    "split_images",
]

# Images that are measured at most, evenly spaced over the data.
_MOST_IMAGES = 100
_SHAPE = ("axis_major_length", "axis_minor_length", "orientation")
# Objects touch if at most this many pixels of background are between them.
_GAP = 1
# Objects whose longer axis is at least this many times the shorter one have a direction.
_ELONGATED = 1.3
# Gray images whose brightest pixels are darker are scaled by percentiles.
_DIM = 160.0
_BY_PERCENTILES = "percentile:0.1,99.8"
# Directions with a mean resultant length below this value have no preference.
_NO_PREFERENCE = 0.3


class Measures(NamedTuple):
    """Measures of images and objects, from which the settings of a training are derived.

    Attributes:
        images: number of images.
        objects: number of objects.
        classes: names of the classes.
        height, width: median size of the images, in pixels.
        smallest_side: shortest side of all images, in pixels.
        diameters: percentiles 1, 10, 50, 90 and 99 of the diameters of objects, in pixels. The
            diameter is that of a disc of the same area.
        most_objects: largest number of objects in an image.
        neighbors: percentile 99 of the number of other objects whose boxes are at most a median
            diameter away from an object's box.
        touching: fraction of the objects that touch another one.
        elongation: median ratio of the longer and the shorter axis of the objects.
        is_directed: whether elongated objects prefer a direction, as in upright photographs.
        is_gray: whether all images are gray.
        peaks: percentiles 10 and 90 of the brightest intensities of the images, in 0-255. The
            brightest intensity of an image is its percentile 99.8.
        intensity: the value of ``INPUT.INTENSITY``. Gray images of different exposure are scaled
            by their percentiles.
        mean, std: of the red, green and blue channel with this value, in 0-255.
    """

    images: int
    objects: int
    classes: Tuple[str, ...]
    height: float
    width: float
    smallest_side: int
    diameters: Tuple[float, float, float, float, float]
    most_objects: int
    neighbors: int
    touching: float
    elongation: float
    is_directed: bool
    is_gray: bool
    peaks: Tuple[float, float]
    intensity: str
    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]


def read_label_data(images: str, labels: str, classes: str = "") -> Dict[str, Any]:
    """Reads a folder of images and a folder of label maps.

    Args:
        images, labels, classes: as in the entries of ``DATASETS.LABEL_DIRS``.

    Returns:
        The data in COCO's format, with absolute names of the image files.

    Raises:
        ValueError: A file is wrong. The message is one line.
    """
    records, names = read_label_dirs("fit", images, labels, classes)
    annotations: List[Dict[str, Any]] = []
    for record in records:
        for annotation in record["annotations"]:
            rle = annotation["segmentation"]
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record["image_id"],
                    "category_id": annotation["category_id"] + 1,
                    "iscrowd": 0,
                    "bbox": list(box),
                    "area": int(mask_util.area(rle)),
                    "segmentation": {**rle, "counts": _text(rle["counts"])},
                }
            )
    keys = "file_name", "height", "width"
    return {
        "images": [
            {
                "id": record["image_id"],
                **{key: record[key] for key in keys},
                "file_name": os.path.abspath(record["file_name"]),
            }
            for record in records
        ],
        "annotations": annotations,
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, start=1)],
    }


def read_coco_data(json_file: str, images: str) -> Dict[str, Any]:
    """Reads a file in COCO's format, and makes the names of its image files absolute.

    Raises:
        ValueError: The file is wrong, or it has masks that cannot be used. The message is one line.
        FileNotFoundError: The file or an image does not exist.
    """
    content = read_coco_json("fit", json_file)
    for image in content["images"]:
        image["file_name"] = os.path.abspath(os.path.join(images, image["file_name"]))
        if not image_exists(image["file_name"]):
            raise FileNotFoundError(
                f"{printable(image['file_name'])}, an image of {json_file}, does not exist"
            )
    return content


def _text(counts: Any) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts


def split_images(
    content: Dict[str, Any], fraction: float = 0.2, seed: int = 1
) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Splits data in COCO's format by images.

    Args:
        content: the data.
        fraction: fraction of the images with objects that is held out. It is at least one image.
        seed: the same seed gives the same split.

    Returns:
        The data to train on, with the images without objects, and the held-out data.

    Raises:
        ValueError: Fewer than two images have objects.
    """
    counts = Counter(a["image_id"] for a in content["annotations"] if not a.get("iscrowd", 0))
    ids = [image["id"] for image in content["images"] if counts[image["id"]]]
    if len(ids) < 2:
        raise ValueError(
            f"the data have {len(content['images'])} images, {len(ids)} of them with objects; "
            "allowed: 2 or more with objects, because one is held out to choose and to check the "
            "settings"
        )
    count = min(max(1, round(fraction * len(ids))), len(ids) - 1)
    held_out = set(random.Random(seed).sample(ids, count))

    def part(is_held_out: bool) -> Dict[str, Any]:
        return {
            **content,
            "images": [i for i in content["images"] if (i["id"] in held_out) == is_held_out],
            "annotations": [
                a for a in content["annotations"] if (a["image_id"] in held_out) == is_held_out
            ],
        }

    return part(False), part(True)


def measure(content: Dict[str, Any], channels: str = "", plane: int = -1) -> Measures:
    """Measures images and objects.

    Args:
        content: data in COCO's format. An annotation without a mask is measured as its box.
        channels: ``INPUT.CHANNELS``.
        plane: ``INPUT.PLANE``.

    Raises:
        ValueError: No object has a pixel.
        UnreadableImage: An image cannot be read.
    """
    truth = complete_ground_truth(content)
    images = truth.imgs
    by_image = {key: [a for a in truth.imgToAnns[key] if not a["iscrowd"]] for key in images}
    chosen = [image for image in images.values() if by_image[image["id"]]]
    diameters, ratios, directions, neighbors, touching, boxes = [], [], [], [], [], []
    for image in _spaced(chosen, _MOST_IMAGES):
        masks = [truth.annToRLE(annotation) for annotation in by_image[image["id"]]]
        areas = [int(mask_util.area(rle)) for rle in masks]
        diameters += [2 * np.sqrt(area / np.pi) for area in areas if area]
        labels = decode_labels(masks, (image["height"], image["width"]))
        shapes = regionprops_table(labels, properties=_SHAPE)
        ratio = shapes["axis_major_length"] / np.maximum(shapes["axis_minor_length"], 1)
        ratios += ratio.tolist()
        directions += shapes["orientation"][ratio >= _ELONGATED].tolist()
        touching += _touching(labels, len(masks))
        boxes.append(np.array([mask_util.toBbox(rle) for rle in masks]))
    if not diameters:
        raise ValueError("no object has a pixel; allowed: masks or boxes with pixels")
    for found in boxes:
        neighbors += _neighbors(found, float(np.median(diameters)))
    resultant = abs(np.mean(np.exp(2j * np.array(directions)))) if len(directions) >= 30 else 0.0
    intensity = "auto"
    pixels = _intensities(chosen, ImageReader("RGB", intensity, channels, plane))
    if pixels.is_gray and pixels.peaks[0] < _DIM:
        intensity = _BY_PERCENTILES
        scaled = _intensities(chosen, ImageReader("RGB", intensity, channels, plane))
        pixels = pixels._replace(mean=scaled.mean, std=scaled.std)
    sizes = np.array([(image["height"], image["width"]) for image in images.values()])
    category_names = {c["id"]: c["name"] for c in content["categories"]}
    return Measures(
        images=len(images),
        objects=sum(map(len, by_image.values())),
        classes=tuple(category_names[key] for key in sorted(category_names)),
        height=float(np.median(sizes[:, 0])),
        width=float(np.median(sizes[:, 1])),
        smallest_side=int(sizes.min()),
        diameters=tuple(np.percentile(diameters, (1, 10, 50, 90, 99)).tolist()),
        most_objects=max(map(len, by_image.values())),
        neighbors=int(np.percentile(neighbors, 99)),
        touching=float(np.mean(touching)),
        elongation=float(np.median(ratios)) if ratios else 1.0,
        is_directed=bool(resultant > _NO_PREFERENCE),
        intensity=intensity,
        **pixels._asdict(),
    )


def _spaced(values: Sequence[Any], most: int) -> List[Any]:
    index = np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int)
    return [values[n] for n in index]


class LabelMaps:
    """The true objects of images as label maps, which are made when they are asked for."""

    def __init__(self, content: Dict[str, Any]):
        """
        Args:
            content: data in COCO's format.
        """
        self.images: List[Dict[str, Any]] = content["images"]
        self._truth = complete_ground_truth(content)

    def __len__(self) -> int:
        return len(self.images)

    def file(self, number: int) -> Path:
        """Returns the file of an image."""
        return Path(self.images[number]["file_name"])

    def target(self, number: int) -> Tuple[np.ndarray, np.ndarray]:
        """Returns the label map of an image and where its crowds are, which are ignored.

        They are those of :func:`rpe_d2.evaluation.ground_truth.target_label_map`.
        """
        return target_label_map(self._truth, self.images[number]["id"])


def _touching(labels: np.ndarray, count: int) -> List[bool]:
    """Returns for each of the objects 1 to count whether it touches another one."""
    size = 2 * _GAP + 1
    highest = ndimage.maximum_filter(labels, size)
    lowest = ndimage.minimum_filter(np.where(labels > 0, labels, count + 1), size)
    near = (labels > 0) & ((highest != labels) | (lowest != labels))
    touching = np.zeros(count + 1, bool)
    touching[labels[near]] = True
    return touching[1:].tolist()


def _neighbors(boxes: np.ndarray, distance: float) -> List[int]:
    """Returns for each box (x, y, w, h) how many others are at most a distance away."""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    counts = []
    for own_low, own_high in zip(low, high):
        gaps = np.maximum(low - own_high, own_low - high).max(axis=1)
        counts.append(int((gaps <= distance).sum()) - 1)
    return counts


class _Intensities(NamedTuple):
    """Fields of :class:`Measures`."""

    is_gray: bool
    peaks: Tuple[float, float]
    mean: Tuple[float, ...]
    std: Tuple[float, ...]


def _intensities(images: Sequence[Dict[str, Any]], reader: ImageReader) -> _Intensities:
    means, squares, peaks, is_gray = [], [], [], True
    for image in _spaced(images, _MOST_IMAGES):
        pixels = reader(image["file_name"]).astype(np.float32)
        is_gray = is_gray and bool((pixels == pixels[:, :, :1]).all())
        peaks.append(np.percentile(pixels, 99.8))
        means.append(pixels.mean(axis=(0, 1), dtype=np.float64))
        squares.append((pixels**2).mean(axis=(0, 1), dtype=np.float64))
    mean = np.mean(means, axis=0)
    std = np.sqrt(np.maximum(np.mean(squares, axis=0) - mean**2, 1.0))
    return _Intensities(
        is_gray,
        tuple(np.percentile(peaks, (10, 90)).tolist()),
        tuple(mean.round(2).tolist()),
        tuple(std.round(2).tolist()),
    )
