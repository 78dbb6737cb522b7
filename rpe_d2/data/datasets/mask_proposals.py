"""Region proposals of a data set, named in ``DATASETS.PROPOSAL_MASKS_TRAIN`` and ``_TEST``."""

import functools
import os
from typing import Any, Callable, Dict, List, Sequence, Tuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from rpe_d2.utils.json_regions import JsonRegions
from rpe_d2.utils.mat_regions import Region
from rpe_d2.utils.readable import UnreadableImage

__all__ = ["MASK_PROPOSALS", "read_regions", "register_mask_proposals"]

# The key of a dataset dict with the file of its regions and the id of the image in it.
MASK_PROPOSALS = "mask_proposals"


def register_mask_proposals(key: str, entries: Sequence[str]) -> None:
    """Adds region proposals to registered data sets.

    The files have COCO's results format; see :class:`rpe_d2.utils.json_regions.JsonRegions`.
    Dataset dicts get the file and the id of the image as ``mask_proposals``. Entries that this
    process has already registered are skipped.

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
        _json_regions(path)  # checks it
        load = DatasetCatalog[name]
        DatasetCatalog.pop(name)
        DatasetCatalog.register(name, functools.partial(_with_regions, load, path))
        metadata.mask_proposals = path


def _with_regions(load: Callable[[], List[Dict[str, Any]]], path: str) -> List[Dict[str, Any]]:
    known = _json_regions(path).image_ids
    items = load()
    if items and not {str(item["image_id"]) for item in items} & set(known):
        raise ValueError(
            f"{path} has no region of any image of the data set, whose first one is image_id "
            f"{items[0]['image_id']!r}; its own first one is {next(iter(known), None)!r}"
        )
    return [{**item, MASK_PROPOSALS: (path, item["image_id"])} for item in items]


def read_regions(source: Tuple[str, Any], limit: int, size: Tuple[int, int]) -> List[Region]:
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
    try:
        return _json_regions(path).of_image(image_id, size, limit)
    except ValueError as error:
        raise UnreadableImage(str(error)) from error


@functools.lru_cache(maxsize=4)
def _json_regions(path: str) -> JsonRegions:
    return JsonRegions(path)
