"""Readers of label maps, shared by datasets, evaluators and tools."""

from pathlib import Path
from typing import Any, Iterable, Set, Tuple

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

from .readable import UNREADABLE, UnreadableImage

__all__ = [
    "LABEL_SUFFIXES",
    "check_unlabeled",
    "label_map_size",
    "read_class_indices",
    "read_label_map",
]

LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".npy")

# PIL modes with one index per pixel: 8 bits, palette, 1 bit, 16 and 32 bits.
_MODES = ("L", "P", "1", "I;16", "I;16B", "I;16L", "I")
_DTYPES = tuple(map(np.dtype, ("uint8", "uint16", "uint32", "int32")))


def read_label_map(file_name: str, dtype: Any = np.int64) -> np.ndarray:
    """Reads a label map (H, W) from any path that Detectron2's PathManager opens.

    Detectron2's own reader fails with NumPy 2.
    """
    with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
        return np.array(image, dtype=dtype)


def read_class_indices(path: Path, where: str = "") -> np.ndarray:
    """Reads a label map, PNG, TIFF or NPY, of class, palette or instance indices from disk.

    Args:
        path: the file.
        where: prefix of error messages, such as a configuration key.

    Returns:
        (H, W) uint8, uint16, uint32 or int32.

    Raises:
        UnreadableImage: The file cannot be read, or it does not have one index per pixel.
    """
    prefix = f"{where}: " if where else ""
    try:
        if path.suffix.lower() == ".npy":
            labels = np.load(path, allow_pickle=False)
            found = f"an array {labels.shape} of {labels.dtype}"
        else:
            with Image.open(path) as image:
                found, pages = f"the mode {image.mode}", getattr(image, "n_frames", 1)
                if pages > 1:
                    raise UnreadableImage(f"{prefix}{path} has {pages} pages; allowed: 1")
                labels = np.asarray(image) if image.mode in _MODES else None
    except (*UNREADABLE, EOFError, ValueError) as error:
        if isinstance(error, UnreadableImage):
            raise
        raise UnreadableImage(f"{prefix}{path}: {error}") from error
    if labels is not None and labels.dtype == bool:
        labels = labels.astype(np.uint8)
    if labels is None or labels.ndim != 2 or labels.dtype.newbyteorder("=") not in _DTYPES:
        raise UnreadableImage(
            f"{prefix}{path} has {found}; allowed: {' or '.join(_MODES)}, one 8-bit class per"
            f" pixel or one index of {', '.join(map(str, _DTYPES))}"
        )
    return labels.astype(labels.dtype.newbyteorder("="), copy=False)


def label_map_size(path: Path) -> Tuple[int, int]:
    """Returns width and height of a label map without reading its pixels.

    Raises:
        OSError, ValueError: The file cannot be read.
    """
    if path.suffix.lower() == ".npy":
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
        if len(shape) != 2:
            raise ValueError(f"an array {shape}; allowed: (height, width)")
        return shape[1], shape[0]
    with Image.open(path) as image:
        return image.size


def check_unlabeled(where: str, labels: Iterable[np.ndarray], unlabeled: int) -> None:
    """Raises where the maps of a set have no more than one label beside the unlabeled pixels.

    Masks of 0 and 255 look like this. Only as many maps are read as it takes to find two labels.

    Args:
        where: prefix of the message.
        labels: the maps.
        unlabeled: value of pixels without a label.

    Raises:
        ValueError: There is no second label.
    """
    seen: Set[int] = set()
    for one in labels:
        seen.update(np.unique(one).tolist())
        if len(seen - {unlabeled}) > 1:
            return
    if unlabeled in seen:
        others = ", ".join(map(str, sorted(seen - {unlabeled}))) or "no other value"
        raise ValueError(
            f"{where}: all pixels are {unlabeled} or {others}, but {unlabeled} means"
            f" 'unlabeled' and is never learned or evaluated; write the object as a class, for"
            f" example 1 in place of {unlabeled}: (labels == {unlabeled}).astype('uint8')"
        )
