"""Reading the region proposals of an image from a MATLAB file, such as those of MCG and COB."""

from typing import Any, Dict, List, NamedTuple

import numpy as np
import pycocotools.mask as mask_util

from .mat_files import read_mat, size_text

__all__ = ["Region", "read_mat_regions"]

# The variables that may hold the other ones as a struct.
_STRUCTS = ("candidates", "proposals")


class Region(NamedTuple):
    """A region proposal.

    Attributes:
        rle: mask in COCO's compressed RLE, {"size": [H, W], "counts": text}.
        score: any number; a higher one is better.
    """

    rle: Dict[str, Any]
    score: float


def read_mat_regions(path: str, limit: int) -> List[Region]:
    """Reads the best region proposals of an image.

    The variables stand in the file itself or in a struct ``candidates`` or ``proposals``:

    * ``superpixels`` (H, W), numbers from 0 or more, and ``labels``, a cell array with the numbers
      of the superpixels of each region, as MCG and COB write them; or ``masks`` (H, W, N).
    * ``scores`` (N,), if there are any. Otherwise regions are ranked by their order.

    Args:
        path: the .mat file.
        limit: largest number of regions.

    Returns:
        The regions, the best first.

    Raises:
        ValueError: The message is one line with the file and what is wrong with it.
        OSError: The file cannot be opened.
    """
    fields = _fields(path)
    if "superpixels" in fields and "labels" in fields:
        superpixels = _superpixels(path, fields["superpixels"])
        labels = _cells(path, fields["labels"])
        count, mask_of = len(labels), lambda number: _members(path, labels[number], superpixels)
    elif "masks" in fields:
        masks = np.asarray(fields["masks"])
        if masks.ndim == 2:
            masks = masks[:, :, None]  # MATLAB drops the last axis of a single mask
        if masks.ndim != 3 or masks.dtype.kind not in "buif":
            raise ValueError(f"{path}: masks are {_described(masks)}; allowed: numbers (H, W, N)")
        count, mask_of = masks.shape[2], lambda number: masks[:, :, number] > 0
    else:
        raise ValueError(
            f"{path}: has {', '.join(fields) or 'nothing'}; allowed: superpixels and labels, or "
            "masks"
        )
    scores = _scores(path, fields.get("scores"), count)
    regions = []
    for number in np.argsort(-scores, kind="stable")[:limit]:
        rle = mask_util.encode(np.asfortranarray(mask_of(number), dtype=np.uint8))
        rle = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
        regions.append(Region(rle, float(scores[number])))
    return regions


def _fields(path: str) -> Dict[str, Any]:
    content = read_mat(path)
    for name in _STRUCTS:
        struct = content.get(name)
        names = getattr(getattr(struct, "dtype", None), "names", None)
        if names and struct.size == 1:
            return {field: struct[field].item() for field in names}
    return content


def _superpixels(path: str, superpixels: Any) -> np.ndarray:
    superpixels = np.asarray(superpixels)
    if superpixels.ndim != 2 or superpixels.dtype.kind not in "uif" or not superpixels.size:
        raise ValueError(
            f"{path}: superpixels are {_described(superpixels)}; allowed: numbers (H, W)"
        )
    if superpixels.min() < 0 or superpixels.max() >= superpixels.size + 1:
        raise ValueError(
            f"{path}: superpixels are {superpixels.min()} to {superpixels.max()}; allowed: 0 to "
            f"the number of pixels, {superpixels.size}"
        )
    return superpixels.astype(np.int64)


def _cells(path: str, labels: Any) -> List[np.ndarray]:
    labels = np.asarray(labels)
    cells = [np.asarray(cell).ravel() for cell in labels.ravel()] if labels.dtype == object else []
    if labels.dtype != object or any(cell.dtype.kind not in "uif" for cell in cells if cell.size):
        raise ValueError(f"{path}: labels are {_described(labels)}; allowed: a cell array of lists")
    return [cell.astype(np.int64) for cell in cells]


def _members(path: str, label: np.ndarray, superpixels: np.ndarray) -> np.ndarray:
    """Returns the mask (H, W) bool of the superpixels of a region."""
    is_member = np.zeros(superpixels.max() + 1, bool)
    if label.size and (label.min() < 0 or label.max() >= len(is_member)):
        raise ValueError(
            f"{path}: a region has the superpixel {label.max()}; allowed: 0 to {len(is_member) - 1}"
        )
    is_member[label] = True
    return is_member[superpixels]


def _scores(path: str, scores: Any, count: int) -> np.ndarray:
    if scores is None:
        return -np.arange(count, dtype=np.float64)
    scores = np.asarray(scores)
    if scores.dtype.kind not in "uif" or scores.size != count or not np.isfinite(scores).all():
        raise ValueError(
            f"{path}: scores are {_described(scores)}; allowed: a finite number for each of "
            f"{count} regions"
        )
    return scores.astype(np.float64).ravel()


def _described(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {size_text(array.shape)}"
