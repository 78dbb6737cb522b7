"""Masks of annotations in COCO's format: checks before decoding, and masks that are missing."""

import reprlib
import sys
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data.datasets.coco import convert_to_coco_dict

# Largest distance of a coordinate from the origin, in widths or heights of the image. Values of
# about 1e8 or more crash pycocotools with a segmentation fault.
_MOST_SIDES = 10
# pycocotools keeps the length of a run in 32 bits, 5 of them in each character.
_MOST_CHARACTERS = 7
_NUM_NAMED = 5
_LEAST_BOX_IOU = 0.5
MOST_PIXELS = 2**31 - 1  # pycocotools counts pixels in 32 bits


class Problem(NamedTuple):
    """The reason why a mask or a box cannot be used."""

    found: str
    allowed: str


def registered_as_coco(name: str) -> Dict[str, Any]:
    """Converts a registered dataset to COCO's format, with "annotations" even if it has none.

    Detectron2's converter leaves the key out then.
    """
    return {"annotations": [], **convert_to_coco_dict(name)}


def are_numbers(values: Any) -> bool:
    """Returns whether a value is a list of finite numbers."""
    largest = sys.float_info.max
    return (
        isinstance(values, list)
        and set(map(type, values)) <= {int, float}
        and all(-largest <= value <= largest for value in values)  # False for NaN
    )


def compressed_runs(counts: Union[str, bytes]) -> Optional[np.ndarray]:
    """Decodes the lengths of the runs in the compressed text of an RLE.

    The format is that of ``rleFrString`` in pycocotools: each number has 5 bits per character,
    the lowest first, and is the difference to the run before the previous one.

    Args:
        counts: ``counts`` of a compressed RLE.

    Returns:
        (R,) int64, which may be negative if the text is damaged, or None if it is malformed.
    """
    try:
        text = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError:
        return None
    bits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(bits):
        return np.zeros(0, np.int64)
    last = bits & 0x20 == 0  # the last character of a number
    if bits.min() < 0 or bits.max() >= 64 or not last[-1]:
        return None
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MOST_CHARACTERS:
        return None
    shift = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((bits & 0x1F) << shift, starts)
    runs -= np.where(bits[ends] & 0x10, np.int64(1) << 5 * lengths, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def rle_runs(rle: Dict[str, Any]) -> Optional[Union[np.ndarray, List[int]]]:
    """Returns the lengths of an RLE's runs, background first, or None if they are malformed."""
    counts = rle.get("counts")
    runs = compressed_runs(counts) if isinstance(counts, (str, bytes)) else counts
    if isinstance(runs, list) and _are_whole(runs) and min(runs, default=0) >= 0:
        return runs
    return runs if isinstance(runs, np.ndarray) and runs.min(initial=0) >= 0 else None


def mask_problem(segmentation: Any, height: int, width: int) -> Optional[Problem]:
    """Checks a mask in COCO's format without decoding it.

    If the runs of an RLE do not sum to the number of pixels, pycocotools reads memory out of
    bounds, and it hangs when it compares such masks.

    Args:
        segmentation: polygons, or RLE as a list or as compressed text.
        height: height of the image.
        width: width of the image.

    Returns:
        The problem, or None if the mask can be decoded.
    """
    if isinstance(segmentation, dict):
        return rle_problem(segmentation, (height, width))
    if not (isinstance(segmentation, list) and all(map(are_numbers, segmentation))):
        return Problem(
            f"the segmentation {reprlib.repr(segmentation)}",
            "a list of polygons [[x, y, x, y, …], …] of finite numbers, or RLE {size, counts}",
        )
    return _coordinate_problem(
        [x for polygon in segmentation for x in polygon[0::2]],
        [y for polygon in segmentation for y in polygon[1::2]],
        height,
        width,
    )


def box_problem(box: Any, height: int, width: int) -> Optional[Problem]:
    """Checks a box (x, y, width, height), as :func:`mask_problem` does for masks."""
    if not (are_numbers(box) and len(box) == 4):
        return Problem(f"the bbox {reprlib.repr(box)}", "4 numbers, x, y, width, height")
    x, y, box_width, box_height = box
    return _coordinate_problem([x, x + box_width], [y, y + box_height], height, width)


def rle_problem(
    rle: Dict[str, Any], image_size: Optional[Tuple[int, int]] = None
) -> Optional[Problem]:
    """Checks an RLE, as :func:`mask_problem` does.

    Args:
        rle: ``size`` and ``counts``.
        image_size: (H, W) of its image. If None, the RLE's own size is used.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not is_size(size) or (image_size and tuple(size) != tuple(image_size)):
        of_image = f" in an image of {list(image_size)}" if image_size else ""
        return Problem(
            f"an RLE mask of size {reprlib.repr(size)}{of_image}", "[height, width] of the image"
        )
    height, width = map(int, size)
    runs = rle_runs(rle)
    if runs is None:
        return Problem(
            f"an RLE mask with counts {reprlib.repr(counts)}",
            "compressed text, or a list of whole numbers from 0",
        )
    total = int(sum(runs)) if isinstance(runs, list) else int(runs.sum())
    if total != height * width:
        return Problem(
            f"RLE runs that sum to {total} in {height} x {width} = {height * width} pixels",
            "runs that sum to height x width",
        )
    if height * width > MOST_PIXELS:
        return Problem(f"an RLE mask of {height} x {width} pixels", f"at most {MOST_PIXELS}")
    return None


def _coordinate_problem(
    x: Sequence[float], y: Sequence[float], height: int, width: int
) -> Optional[Problem]:
    for values, side in ((x, width), (y, height)):
        farthest = max(values, key=abs, default=0)
        if not abs(farthest) <= _MOST_SIDES * side:
            return Problem(
                f"the coordinate {farthest:g} in an image of {height} x {width} (height x width)",
                f"at most {_MOST_SIDES} times the size of the image",
            )
    return None


def is_size(size: Any) -> bool:
    """Returns whether a value is a list or tuple of two positive integers, height and width."""
    return isinstance(size, (list, tuple)) and len(size) == 2 and _are_whole(size) and min(size) > 0


def _are_whole(values: Sequence[Any]) -> bool:
    kinds = set(map(type, values))
    return bool not in kinds and all(issubclass(kind, (int, np.integer)) for kind in kinds)


def check_stored_rles(where: str, segmentations: Sequence[Any]) -> None:
    """Raises an error if RLEs of a file in COCO's results format cannot be decoded.

    Args:
        where: prefix of the message, with the file.
        segmentations: the masks of all entries. Masks other than RLEs are skipped.

    Raises:
        ValueError: An RLE cannot be decoded. The message is one line that names the first ones.
    """
    found = [rle_problem(one) if isinstance(one, dict) else None for one in segmentations]
    problems = [(place, problem) for place, problem in enumerate(found) if problem]
    raise_problems(where, len(segmentations), problems, "entry")


def raise_problems(
    where: str, count: int, problems: Sequence[Tuple[Any, Problem]], what: str = "annotation"
) -> None:
    """Raises a one-line error for all problems of a file, which names the first five.

    Args:
        where: prefix of the message, with the file.
        count: number of annotations in the file.
        problems: the problems with the ids of their annotations.
        what: the word for an annotation.

    Raises:
        ValueError: There is a problem.
    """
    if not problems:
        return
    named = ", ".join(f"{what} {name} has {p.found}" for name, p in problems[:_NUM_NAMED])
    more = ", …" if len(problems) > _NUM_NAMED else ""
    allowed = " / ".join(dict.fromkeys(p.allowed for _, p in problems[:_NUM_NAMED]))
    raise ValueError(
        f"{where}: {len(problems)} of {count} masks or boxes cannot be used: {named}{more};"
        f" allowed: {allowed}"
    )


def is_polygon(coordinates: Sequence[float]) -> bool:
    """Whether coordinates x, y, x, y … describe a polygon of at least 3 corners.

    Detectron2 drops the others when it loads annotations.
    """
    return len(coordinates) >= 6 and len(coordinates) % 2 == 0


def usable_segmentation(
    annotation: Dict[str, Any],
) -> Optional[Union[Dict[str, Any], List[List[float]]]]:
    """Returns the segmentation of an annotation, the same in training and evaluation.

    Args:
        annotation: in COCO's format, with ``bbox`` in XYWH.

    Returns:
        RLE without empty runs; polygons without the invalid ones; the filled box of an annotation
        that has no ``segmentation``. None where no polygon is valid: Detectron2 drops such an
        annotation when it loads the data.
    """
    segmentation = annotation.get("segmentation")
    if not segmentation:
        x, y, width, height = annotation["bbox"]
        right, bottom = x + width, y + height
        return [[x, y, right, y, right, bottom, x, bottom]]
    if isinstance(segmentation, dict):
        return _without_empty_runs(segmentation)
    return [polygon for polygon in segmentation if is_polygon(polygon)] or None


def _without_empty_runs(rle: Dict[str, Any]) -> Dict[str, Any]:
    """Encodes an RLE again if it has empty runs after the first one.

    pycocotools computes a wrong box of such a mask without area, and wrong IoUs between two of
    them.
    """
    runs = rle_runs(rle)
    if runs is None or 0 not in runs[1:]:
        return rle
    if isinstance(rle["counts"], list):
        rle = mask_util.frPyObjects(rle, *rle["size"])
    return mask_util.encode(mask_util.decode(rle))


def replacement_box(
    annotation: Dict[str, Any], height: int, width: int
) -> Optional[Tuple[float, float, float, float]]:
    """Returns the box of an annotation's mask where its given box cannot be right.

    The given box is used, as in Detectron2 and COCO, unless it is empty, outside the image, or has
    an IoU below 0.5 with the box of the mask. This replaces boxes that consist of corners instead
    of x, y, width and height, and boxes of zeros.

    Args:
        annotation: in COCO's format, with ``bbox`` in XYWH. Its mask can be decoded.
        height: height of the image.
        width: width of the image.

    Returns:
        The mask's box in XYWH, or None if the given box is used or the mask has no area.
    """
    if not annotation.get("segmentation"):
        return None
    segmentation = usable_segmentation(annotation)
    box = _mask_box(segmentation, height, width)
    if box is None:
        return None
    given = annotation["bbox"]
    x, y, box_width, box_height = given
    inside = x < width and y < height and x + box_width > 0 and y + box_height > 0
    candidates = [box]
    if isinstance(segmentation, list):  # corners may be the centers of pixels
        candidates.append((box[0], box[1], box[2] + 1, box[3] + 1))
    if min(box_width, box_height) > 0 and inside:
        if any(_box_iou(given, candidate) >= _LEAST_BOX_IOU for candidate in candidates):
            return None
    if isinstance(segmentation, list):  # the box of the pixels, as a prediction has it
        drawn = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
        return _mask_box(drawn, height, width)
    return box


def _mask_box(
    segmentation: Any, height: int, width: int
) -> Optional[Tuple[float, float, float, float]]:
    """Returns the box (XYWH) of a mask inside its image, or None for a mask without area."""
    if segmentation is None:
        return None
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            segmentation = mask_util.frPyObjects(segmentation, height, width)
        x, y, box_width, box_height = map(float, mask_util.toBbox(segmentation))
    else:
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation])
        points = np.clip(points.astype(np.float64), 0, [width, height])
        x, y = points.min(axis=0).tolist()
        box_width, box_height = np.ptp(points, axis=0).tolist()
    return (x, y, box_width, box_height) if min(box_width, box_height) > 0 else None


def _box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    sides = [
        min(one[i] + one[i + 2], other[i] + other[i + 2]) - max(one[i], other[i]) for i in (0, 1)
    ]
    intersection = max(sides[0], 0) * max(sides[1], 0)
    return intersection / (one[2] * one[3] + other[2] * other[3] - intersection)
