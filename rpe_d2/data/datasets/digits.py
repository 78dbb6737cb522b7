"""Overlapping colored digits, the toy data of Kong & Fowlkes (CVPR 2018, section 5.1).

Every image is rendered from a seed on access: a black canvas of 64 x 64 pixels with up to nine
digits on a 3 x 3 grid, the later ones in front. A digit's color depends on its class.
``digits_authors`` are 30 such images of the authors.
"""

import functools
import os
from typing import Any, Dict, List, Tuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from rpe_d2.utils.mat_files import read_field

from .generated import encoded, serve_pictures

__all__ = [
    "DIGITS_SPLITS",
    "digit_stamps",
    "register_digits",
    "register_digits_authors",
    "render_digits",
]

DIGITS_SPLITS = {"train": 4000, "val": 200}
_CLASSES = tuple("0123456789")
# RGB in 0-1 of each class, read off the authors' images.
_COLORS = np.array(
    [
        (0.310, 0.220, 1.000), (0.505, 1.000, 0.205), (0.496, 0.901, 1.000),
        (0.946, 1.000, 0.350), (1.000, 0.145, 0.124), (0.596, 0.347, 1.000),
        (0.919, 1.000, 0.810), (0.720, 1.000, 0.597), (0.477, 1.000, 0.494),
        (0.692, 1.000, 0.705),
    ]
)  # fmt: skip
_PREFIX = "digits://"
_AUTHORS_PREFIX = "digits_authors://"
_BUILT_IN = "sklearn"  # the source without a file
_SEED = 1712
_SIZE = 64  # height and width of an image
_STAMP = 28  # height and width of a digit with its margin
_GRID = (0, 17, 35)  # first row or column of a stamp
_VAL_PERIOD = 10  # every tenth digit is used for validation only
_KEY = "DATASETS.DIGITS"
_AUTHORS_KEY = "DATASETS.DIGITS_AUTHORS"


def register_digits(source: str = "") -> None:
    """Registers ``digits_train`` and ``digits_val``.

    No digit occurs in both.

    Args:
        source: .npz file with ``images`` (N, 28, 28) uint8 and ``labels`` (N,) in 0-9, such as
            those of MNIST. If empty, the digits are those of scikit-learn, enlarged from 8 x 8
            pixels.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is wrong, or the names are registered from another one.
    """
    path = os.path.abspath(source) if source else _BUILT_IN
    if source:
        digit_stamps(path)  # errors in the file are reported now
    for split in DIGITS_SPLITS:
        name = f"digits_{split}"
        if name in DatasetCatalog.list():
            if not source or MetadataCatalog.get(name).source == path:
                continue
            if MetadataCatalog.get(name).source != _BUILT_IN:
                raise ValueError(
                    f"{_KEY} is {source}; {name} is registered from "
                    f"{MetadataCatalog.get(name).source}"
                )
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        DatasetCatalog.register(name, functools.partial(_load, path, split))
        MetadataCatalog.get(name).set(
            source=path, thing_classes=list(_CLASSES), best_iou=True, evaluator_type="coco"
        )


def register_digits_authors(path: str) -> None:
    """Registers ``digits_authors``, the images of a MATLAB file of the authors.

    Args:
        path: file with ``imgMat`` (64, 64, 3, N) in 0-1, ``instanceMaskMat`` (64, 64, 1, N), 0 for
            background, and ``semanticMaskMat`` (64, 64, 1, N), where 10 stands for the digit 0. If
            empty, nothing is registered.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is wrong, or the name is registered from another one.
    """
    if not path:
        return
    name, path = "digits_authors", os.path.abspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{_AUTHORS_KEY} is {path}; there is no such file")
    if name in DatasetCatalog.list():
        if MetadataCatalog.get(name).source == path:
            return
        other = MetadataCatalog.get(name).source
        raise ValueError(f"{_AUTHORS_KEY} is {path}; {name} is registered from {other}")
    _authors(path)
    DatasetCatalog.register(name, functools.partial(_load_authors, path))
    MetadataCatalog.get(name).set(
        source=path, thing_classes=list(_CLASSES), best_iou=True, evaluator_type="coco"
    )


def render_digits(
    stamps: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Renders one image of digits.

    Between 0 and 9 cells of the grid are filled, where each number has the same probability.

    Args:
        stamps: (N, 28, 28) uint8 gray digits on black.
        labels: (N,) int64 digits in 0-9.
        rng: source of random numbers.

    Returns:
        RGB image (64, 64, 3) uint8, the digit in front at each pixel (64, 64) int64 with -1 for
        background, and the classes (n,) int64 of the digits from back to front.
    """
    cells = rng.permutation(len(_GRID) ** 2)[: rng.integers(len(_GRID) ** 2 + 1)]
    chosen = rng.integers(len(stamps), size=len(cells))
    image = np.zeros((_SIZE, _SIZE, 3))
    owner = np.full((_SIZE, _SIZE), -1)
    for number, (cell, index) in enumerate(zip(cells, chosen)):
        row, column = _GRID[cell // len(_GRID)], _GRID[cell % len(_GRID)]
        window = slice(row, row + _STAMP), slice(column, column + _STAMP)
        inside = stamps[index] > 0
        image[window][inside] = stamps[index][inside][:, None] * _COLORS[labels[index]]
        owner[window][inside] = number
    return image.round().astype(np.uint8), owner, labels[chosen]


@functools.lru_cache(maxsize=2)
def digit_stamps(source: str) -> Tuple[np.ndarray, np.ndarray]:
    """Returns all digits (N, 28, 28) uint8, gray on black, and their labels (N,) int64 in 0-9.

    Args:
        source: a file as for :func:`register_digits`, or "sklearn" for those of scikit-learn.

    Raises:
        FileNotFoundError: There is no such file, or scikit-learn is not installed.
        ValueError: The file is wrong.
    """
    return _built_in_stamps() if source == _BUILT_IN else _stamps_of_file(source)


def _built_in_stamps() -> Tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise FileNotFoundError(
            f"{_KEY} is empty and scikit-learn, whose digits would be used, is not installed: "
            "pip install scikit-learn"
        ) from error
    digits = load_digits()
    stamps = np.zeros((len(digits.images), _STAMP, _STAMP), np.uint8)
    inner = 20  # as in MNIST, digits fill 20 of 28 pixels
    border = (_STAMP - inner) // 2
    for stamp, image in zip(stamps, digits.images):
        enlarged = Image.fromarray(np.float32(image * 255 / 16)).resize((inner,) * 2, Image.BICUBIC)
        gray = np.asarray(enlarged).clip(0, 255)
        gray = np.where(gray < 32, 0, gray)  # bicubic interpolation rings around the strokes
        stamp[border:-border, border:-border] = gray.round()
    return stamps, digits.target.astype(np.int64)


def _stamps_of_file(path: str) -> Tuple[np.ndarray, np.ndarray]:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{_KEY} is {path}; there is no such file")
    try:
        with np.load(path, allow_pickle=False) as content:
            stamps, labels = content["images"], content["labels"]
    except Exception as error:  # a damaged file may raise any error
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as digits: {reason}") from error
    shape = (len(labels), _STAMP, _STAMP)
    if stamps.shape != shape or stamps.dtype != np.uint8 or not len(stamps):
        raise ValueError(
            f"{path}: images is {stamps.dtype} of shape {stamps.shape}; allowed: uint8 {shape}"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"{path}: labels are not integers in 0-9")
    return stamps, labels.astype(np.int64)


def _render(source: str, split: str, index: int) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    stamps, labels = digit_stamps(source)
    of_val = np.arange(len(stamps)) % _VAL_PERIOD == 0
    of_split = of_val if split == "val" else ~of_val
    rng = np.random.default_rng([_SEED, list(DIGITS_SPLITS).index(split), index])
    return render_digits(stamps[of_split], labels[of_split], rng)


def _load(source: str, split: str) -> List[Dict[str, Any]]:
    records = []
    for index in range(DIGITS_SPLITS[split]):
        _, owner, classes = _render(source, split, index)
        file_name = f"{_PREFIX}{source}/{split}/{index:06d}.png"
        records.append(_record(file_name, index, owner, classes))
    return records


def _record(file_name: str, index: int, owner: np.ndarray, classes: np.ndarray) -> Dict[str, Any]:
    visible = owner[:, :, None] == np.arange(len(classes))  # (H, W, n)
    rles = mask_util.encode(np.asfortranarray(visible.astype(np.uint8)))
    boxes = mask_util.toBbox(rles)  # (n, 4) XYWH
    annotations = [
        {
            "bbox": box.tolist(),
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": int(category),
            "iscrowd": 0,
            "segmentation": {"size": list(owner.shape), "counts": rle["counts"].decode("ascii")},
        }
        for category, rle, box in zip(classes, rles, boxes)
        if mask_util.area(rle)  # a digit may be hidden by those in front
    ]
    height, width = owner.shape
    return {
        "file_name": file_name,
        "height": height,
        "width": width,
        "image_id": index,
        "annotations": annotations,
    }


@functools.lru_cache(maxsize=1)
def _authors(path: str) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads images (N, 64, 64, 3) uint8, instances and classes (N, 64, 64) uint8."""
    names = ("imgMat", "instanceMaskMat", "semanticMaskMat")
    images, instances, classes = (read_field(path, name) for name in names)
    size = instances.shape
    if len(size) != 4 or size[2] != 1 or classes.shape != size:
        size = None
    if size is None or images.shape != (*size[:2], 3, size[3]):
        raise ValueError(
            f"{path}: imgMat {images.shape}, instanceMaskMat {instances.shape} and "
            f"semanticMaskMat {classes.shape} do not belong together; allowed: (H, W, 3, N), "
            "(H, W, 1, N), (H, W, 1, N)"
        )
    instances, classes = instances[:, :, 0], classes[:, :, 0]
    images = (255 * images.clip(0, 1)).round().astype(np.uint8)
    return images.transpose(3, 0, 1, 2), instances.transpose(2, 0, 1), classes.transpose(2, 0, 1)


def _load_authors(path: str) -> List[Dict[str, Any]]:
    _, instances, classes = _authors(path)
    records = []
    for index, (labels, digits) in enumerate(zip(instances, classes)):
        owner = labels.astype(np.int64) - 1
        of_instance = [digits[owner == number].max(initial=0) for number in range(owner.max() + 1)]
        file_name = f"{_AUTHORS_PREFIX}{path}/{index:06d}.png"
        records.append(_record(file_name, index, owner, np.array(of_instance, np.int64) % 10))
    return records


def _open(path: str) -> bytes:
    """Renders the content of a file such as ``sklearn/train/000012.png``."""
    source, split, name = (path.rsplit("/", 2) + ["", ""])[:3]
    index = _index(name)
    if not 0 <= index < DIGITS_SPLITS.get(split, 0):
        allowed = " or ".join(
            f"{split}/000000.png … {size - 1:06d}.png" for split, size in DIGITS_SPLITS.items()
        )
        raise FileNotFoundError(f"{_PREFIX}{path}: no such image; allowed: SOURCE/{allowed}")
    return encoded(_render(source, split, index)[0])


def _open_authors(path: str) -> bytes:
    source, _, name = path.rpartition("/")
    if not os.path.isfile(source) or not 0 <= _index(name) < len(_authors(source)[0]):
        raise FileNotFoundError(f"{_AUTHORS_PREFIX}{path}: no such image")
    return encoded(np.ascontiguousarray(_authors(source)[0][_index(name)]))


def _index(name: str) -> int:
    stem = name.removesuffix(".png")
    return int(stem) if name.endswith(".png") and stem.isascii() and stem.isdecimal() else -1


serve_pictures(_PREFIX, _open)
serve_pictures(_AUTHORS_PREFIX, _open_authors)
