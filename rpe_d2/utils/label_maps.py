"""Reading label maps, for datasets, evaluators and tools."""

import io
from pathlib import Path
from typing import Any, Iterable, Optional, Set, Tuple, Union

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

from .image_files import NPY_START, check_regular_file, split_plane
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


def read_label_map(file_name: Union[str, Path], dtype: Any = np.int64) -> np.ndarray:
    """Reads a label map with :func:`read_class_indices` and converts it to ``dtype``."""
    return read_class_indices(file_name).astype(dtype)


def read_class_indices(path: Union[str, Path], where: str = "") -> np.ndarray:
    """Reads a label map (PNG, TIFF or NPY) of class, palette or instance indices.

    Args:
        path: any path that Detectron2's PathManager opens. "labels.tif[3]" names one of several
            pages.
        where: prefix of error messages, such as a configuration key.

    Returns:
        (H, W) uint8, uint16, uint32 or int32.

    Raises:
        UnreadableImage: The file cannot be read, or it does not have one index per pixel.
    """
    prefix = f"{where}: " if where else ""
    try:
        labels, found = _read_indices(str(path))
    except (*UNREADABLE, EOFError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        reason = " ".join(str(error).split())
        reason = reason if str(path) in reason else f"{path}: {reason}"
        raise UnreadableImage(f"{prefix}{reason}") from error
    if labels is not None and labels.dtype == bool:
        labels = labels.astype(np.uint8)
    if labels is None or labels.ndim != 2 or labels.dtype.newbyteorder("=") not in _DTYPES:
        raise UnreadableImage(
            f"{prefix}{path} has {found}; allowed: {' or '.join(_MODES)}, one 8-bit class per"
            f" pixel or one index of {', '.join(map(str, _DTYPES))}"
        )
    return labels.astype(labels.dtype.newbyteorder("="), copy=False)


def _read_indices(path: str) -> Tuple[Optional[np.ndarray], str]:
    """Returns the array of a file, or None without one index per pixel, and a description of it."""
    name, page = split_plane(path)
    check_regular_file(name)
    with PathManager.open(name, "rb") as file:
        is_array = file.read(len(NPY_START)) == NPY_START
        file.seek(0)
        if is_array:
            labels = np.load(io.BytesIO(file.read()), allow_pickle=False)
            return labels, f"an array {labels.shape} of {labels.dtype}"
        with Image.open(file) as image:
            pages = getattr(image, "n_frames", 1)
            if page is None and pages > 1:
                raise UnreadableImage(
                    f"{path} has {pages} pages; choose one as {path}[0] … [{pages - 1}]"
                )
            if page is not None and page >= pages:
                raise UnreadableImage(f"{path}: there is no such page; allowed: 0 to {pages - 1}")
            image.seek(page or 0)
            labels = np.asarray(image) if image.mode in _MODES else None
            return labels, f"the mode {image.mode}"


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
    """Raises an error if the maps of a data set have at most one label besides the unlabeled value.

    This is the case for masks of 0 and 255. Maps are read only until two labels are found.

    Args:
        where: prefix of the message.
        labels: the maps.
        unlabeled: value of pixels without a label.

    Raises:
        ValueError: There are fewer than two labels.
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
