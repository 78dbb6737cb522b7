"""Predictions of another model for a data set, named in ``DATASETS.COARSE_DIRS``."""

import functools
import os
from typing import Any, Callable, Dict, List, Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from rpe_d2.utils.image_files import image_stem, printable
from rpe_d2.utils.readable import UnreadableImage

__all__ = ["COARSE_FILE", "read_coarse_maps", "register_coarse_dirs"]

# The key of a dataset dict that names its file.
COARSE_FILE = "coarse_file_name"
_KEY = "DATASETS.COARSE_DIRS"
_ARRAY = "probabilities"


def register_coarse_dirs(entries: Sequence[str]) -> None:
    """Adds the predictions of another model to registered data sets.

    The folder has one file for every image, with the same stem: an NPZ file with the array
    ``probabilities`` (K, H, W) uint8, in which 255 is the probability 1. Dataset dicts get the path
    as ``coarse_file_name``. Entries that this process has already registered are skipped.

    Args:
        entries: ``"name=folder"``, where ``name`` is the name of a registered data set.

    Raises:
        ValueError: An entry is wrong, or the data set is not registered.
        FileNotFoundError: The folder is missing.
    """
    for entry in entries:
        name, separator, folder = entry.partition("=")
        if not (name and separator and folder):
            raise ValueError(f"{_KEY}: {entry!r}; allowed: entries name=folder")
        if name not in DatasetCatalog.list():
            raise ValueError(
                f"{_KEY}: {entry!r} names a data set that is not registered; allowed: one of "
                "DATASETS"
            )
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"{_KEY}: {entry!r}: there is no such folder")
        metadata = MetadataCatalog.get(name)
        if metadata.get("coarse_dir") == folder:
            continue
        if metadata.get("coarse_dir") is not None:
            raise ValueError(f"{_KEY}: {entry!r}; {name} has {metadata.coarse_dir}; allowed: one")
        load = DatasetCatalog[name]
        DatasetCatalog.pop(name)
        DatasetCatalog.register(name, functools.partial(_with_files, load, folder))
        metadata.coarse_dir = folder


def _with_files(load: Callable[[], List[Dict[str, Any]]], folder: str) -> List[Dict[str, Any]]:
    dicts = []
    for item in load():
        path = os.path.join(folder, f"{image_stem(item['file_name'])}.npz")
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{_KEY}: {folder} has no {os.path.basename(path)} for "
                f"{printable(item['file_name'])}"
            )
        dicts.append({**item, COARSE_FILE: path})
    return dicts


def read_coarse_maps(path: str, size: Sequence[int]) -> np.ndarray:
    """Reads the predictions for an image.

    Args:
        path: the NPZ file.
        size: H and W of the image.

    Returns:
        (K, H, W) float32 in 0-1 with the sum 1.

    Raises:
        UnreadableImage: The file cannot be read, or its array has a wrong type or shape.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            maps = content[_ARRAY]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UnreadableImage(f"{path}: {error}; allowed: an NPZ file with {_ARRAY}") from error
    if maps.dtype != np.uint8 or maps.ndim != 3 or maps.shape[1:] != tuple(size):
        raise UnreadableImage(
            f"{path}: {_ARRAY} is {maps.dtype} of shape {maps.shape}; allowed: uint8 "
            f"(K, {size[0]}, {size[1]})"
        )
    maps = maps.astype(np.float32)
    total = maps.sum(axis=0)
    if (total == 0).any():
        raise UnreadableImage(f"{path}: {_ARRAY} are 0 for all classes of a pixel")
    return maps / total
