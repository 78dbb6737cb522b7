"""Readers of label maps, shared by datasets, evaluators and tools."""

from pathlib import Path
from typing import Any, Dict, Iterable, Sequence, Set, Tuple, Union

import numpy as np
import pycocotools.mask as mask_util

from .coco_annotations import rle_runs
from .image_files import open_image, split_plane
from .readable import UnreadableImage

__all__ = [
    "LABEL_SUFFIXES",
    "check_unlabeled",
    "decode_labels",
    "encode_labels",
    "read_class_indices",
    "read_label_map",
    "unlabeled_value",
]

LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".npy")

_DTYPES = tuple(map(np.dtype, ("uint8", "uint16", "uint32", "int32")))


def read_label_map(file_name: str, dtype: Any = np.int64) -> np.ndarray:
    """Reads a label map (H, W) from any path that Detectron2's PathManager opens.

    Raises:
        UnreadableImage: As for :func:`read_class_indices`.
    """
    return read_class_indices(file_name).astype(dtype)


def read_class_indices(path: Union[str, Path], where: str = "") -> np.ndarray:
    """Reads a label map, PNG, TIFF or NPY, of class, palette or instance indices.

    Palette indices are the labels; the colors of a palette have no meaning. The map is turned
    upright if the file has an EXIF orientation, as images are.

    Args:
        path: the file. ``name.tif[3]`` is plane 3 of a file, counted from 0.
        where: prefix of error messages, such as a configuration key.

    Returns:
        (H, W) uint8, uint16, uint32 or int32. Other integers become int32, or uint32.

    Raises:
        UnreadableImage: The file cannot be read, or it does not have one index per pixel.
    """
    try:
        return _read(str(path))
    except UnreadableImage as error:
        raise UnreadableImage(f"{where}: {error}" if where else str(error)) from error


def _read(name: str) -> np.ndarray:
    path, plane = split_plane(name)
    with open_image(path) as image:
        count = image.num_planes
        if plane is None and count > 1:
            raise ValueError(
                f"the file has {count} planes (pages, slices or frames); allowed: 1, or the name "
                f"of one, as in {Path(path).name}[0]"
            )
        if (plane or 0) >= count:
            raise ValueError(f"the plane is {plane}; allowed: 0 to {count - 1}")
        labels = image.indices(plane or 0)
    if not isinstance(labels, str) and labels.dtype == bool:
        labels = labels.astype(np.uint8)
    if not isinstance(labels, str) and labels.dtype.kind in "iu" and labels.dtype not in _DTYPES:
        labels = _as_32_bits(labels, path)
    if isinstance(labels, str) or labels.dtype not in _DTYPES:
        found = labels if isinstance(labels, str) else f"indices of {labels.dtype}"
        raise UnreadableImage(
            f"{path} has {found}; allowed: one index per pixel, as a palette, 1 bit or"
            f" {', '.join(map(str, _DTYPES))}"
        )
    return labels


def _as_32_bits(labels: np.ndarray, path: str) -> np.ndarray:
    """Converts integers of other types, whose values are usually small."""
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    for dtype in (np.int32, np.uint32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return labels.astype(dtype)
    raise UnreadableImage(
        f"{path} has labels of {low} to {high}; allowed: -{2**31} to {2**31 - 1}, or 0 to "
        f"{2**32 - 1}"
    )


def encode_labels(labels: np.ndarray) -> Dict[int, Dict[str, Any]]:
    """Encodes the objects of a label map as RLE, in one pass over the pixels.

    Args:
        labels: (H, W) integers, 0 for background.

    Returns:
        Compressed RLE with text by label, in ascending order of the labels. Dicts in COCO's format
        may hold it, and JSON as well.
    """
    height, width = labels.shape
    if not labels.size:
        return {}
    pixels = labels.flatten(order="F")
    starts = np.flatnonzero(np.diff(pixels, prepend=pixels[0] - np.int64(1)))
    ends = np.append(starts[1:], len(pixels))
    names = pixels[starts]
    order = np.argsort(names, kind="stable")  # the runs of a label stay in order
    found, first = np.unique(names[order], return_index=True)
    encoded = {}
    for label, runs in zip(found.tolist(), np.split(order, first[1:])):
        if label == 0:
            continue
        # Lengths of the runs of 0 and 1 by turns.
        edges = np.stack([starts[runs], ends[runs]], axis=1).ravel()
        counts = np.diff(edges, prepend=0).tolist()
        if edges[-1] < len(pixels):
            counts.append(int(len(pixels) - edges[-1]))
        rle = mask_util.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        encoded[label] = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
    return encoded


def decode_labels(masks: Sequence[Dict[str, Any]], size: Tuple[int, int]) -> np.ndarray:
    """Draws masks into a label map, without decoding any of them as a whole.

    Args:
        masks: RLE of the objects, all of the size.
        size: height and width.

    Returns:
        (H, W) int32: 1 for the first mask, 2 for the next one, which is in front, and so on; 0 for
        background.
    """
    height, width = size
    flat = np.zeros(height * width, np.int32)  # column by column
    for number, rle in enumerate(masks, start=1):
        ends = np.cumsum(rle_runs(rle))
        for start, end in zip(ends[::2], ends[1::2]):
            flat[start:end] = number
    return np.ascontiguousarray(flat.reshape(width, height).T)


def unlabeled_value(labels: np.ndarray) -> int:
    """Returns the value of pixels without a label, the largest of the type: 255, 65535."""
    return int(np.iinfo(labels.dtype).max)


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
