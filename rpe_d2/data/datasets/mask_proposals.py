"""Region proposals of a data set, named in ``DATASETS.PROPOSAL_MASKS_TRAIN`` and ``_TEST``."""

import functools
import os
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from rpe_d2.utils.coco_annotations import are_numbers, rle_problem
from rpe_d2.utils.json_text import parse_json, read_text
from rpe_d2.utils.readable import UnreadableImage

__all__ = ["MASK_PROPOSALS", "ImageRegions", "read_regions", "register_mask_proposals"]

# The key of a dataset dict with the file of its regions and the id of the image in it.
MASK_PROPOSALS = "mask_proposals"


class ImageRegions(NamedTuple):
    """The regions of an image, the best first.

    Attributes:
        rles: masks in COCO's RLE.
        scores: (N,) float32.
    """

    rles: List[Dict[str, Any]]
    scores: np.ndarray


def register_mask_proposals(key: str, entries: Sequence[str]) -> None:
    """Adds region proposals to registered data sets.

    The files have COCO's results format: a list of dicts with ``image_id``, ``segmentation`` (RLE)
    and ``score``. Dataset dicts get the file and the id of the image as ``mask_proposals``. Entries
    that this process has already registered are skipped.

    Args:
        key: the configuration key of the entries, for messages.
        entries: ``"name=path.json"``, where ``name`` is the name of a registered data set.

    Raises:
        ValueError: An entry or a file is wrong, or the data set is not registered.
        FileNotFoundError: The file is missing.
    """
    for entry in entries:
        name, separator, path = entry.partition("=")
        path = os.path.expanduser(path)
        if not (name and separator and path):
            raise ValueError(f"{key}: {entry!r}; allowed: entries name=path.json")
        if name not in DatasetCatalog.list():
            raise ValueError(
                f"{key}: {entry!r} names a data set that is not registered; allowed: one of "
                "DATASETS"
            )
        metadata = MetadataCatalog.get(name)
        if metadata.get("mask_proposals") == path:
            continue
        if metadata.get("mask_proposals") is not None:
            raise ValueError(
                f"{key}: {entry!r}; {name} has {metadata.mask_proposals}; allowed: one file"
            )
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{key}: {entry!r}: there is no such file")
        _regions_by_image(path)  # checks it
        load = DatasetCatalog[name]
        DatasetCatalog.pop(name)
        DatasetCatalog.register(name, functools.partial(_with_regions, load, path))
        metadata.mask_proposals = path


def _with_regions(load: Callable[[], List[Dict[str, Any]]], path: str) -> List[Dict[str, Any]]:
    regions = _regions_by_image(path)
    items = load()
    if items and not any(str(item["image_id"]) in regions for item in items):
        raise ValueError(
            f"{path} has no region of any image of the data set, whose first one is image_id "
            f"{items[0]['image_id']!r}; its own first one is {next(iter(regions), None)!r}"
        )
    return [{**item, MASK_PROPOSALS: (path, str(item["image_id"]))} for item in items]


def read_regions(source: Tuple[str, str], limit: int, size: Tuple[int, int]) -> ImageRegions:
    """Returns the best regions of an image, none if the file has none.

    The file is parsed once in a process. Forked data-loading processes share it.

    Args:
        source: ``mask_proposals`` of a dataset dict.
        limit: largest number of regions.
        size: (H, W) of the image.

    Raises:
        UnreadableImage: A mask cannot be decoded, or has another size than the image.
    """
    path, image_id = source
    rles, scores = _regions_by_image(path).get(image_id, ImageRegions([], np.zeros(0, np.float32)))
    for rle in rles[:limit]:
        problem = rle_problem(rle, size)
        if problem:
            raise UnreadableImage(
                f"{path}: image_id {image_id} has {problem.found}; allowed: {problem.allowed}"
            )
    return ImageRegions(rles[:limit], scores[:limit])


@functools.lru_cache(maxsize=4)
def _regions_by_image(path: str) -> Dict[str, ImageRegions]:
    """Reads a file and groups its regions by the id of the image, as text."""
    content = parse_json(read_text(path), path)
    if not isinstance(content, list):
        raise ValueError(f"{path} is not a list; allowed: COCO results with masks")
    grouped: Dict[str, List[Tuple[float, Dict[str, Any]]]] = {}
    for number, result in enumerate(content):
        if not (
            isinstance(result, dict)
            and type(result.get("image_id")) in (int, float, str)
            and isinstance(result.get("segmentation"), dict)
            and are_numbers([result.get("score")])
        ):
            raise ValueError(
                f"{path}: entry {number} has no image_id, no RLE segmentation or no score; "
                "allowed: COCO results with masks"
            )
        own = grouped.setdefault(str(result["image_id"]), [])
        own.append((result["score"], result["segmentation"]))
    return {image_id: _ranked(own) for image_id, own in grouped.items()}


def _ranked(regions: List[Tuple[float, Dict[str, Any]]]) -> ImageRegions:
    scores = np.array([score for score, _ in regions], np.float32)
    order = np.argsort(-scores, kind="stable")
    return ImageRegions([regions[index][1] for index in order], scores[order])
