"""Predictions of another model for a data set, named in ``DATASETS.COARSE_DIRS``."""

import functools
import os
from typing import Any, Callable, Dict, List, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog

from rpe_d2.utils.image_files import image_stem, printable

__all__ = ["COARSE_FILE", "register_coarse_dirs"]

# The key of a dataset dict that names its file.
COARSE_FILE = "coarse_file_name"
_KEY = "DATASETS.COARSE_DIRS"


def register_coarse_dirs(entries: Sequence[str]) -> None:
    """Adds the predictions of another model to registered data sets.

    The folder has one file for every image, with the same stem, as
    :func:`rpe_d2.utils.probability_maps.read_probabilities` reads it. Dataset dicts get the path as
    ``coarse_file_name``. Entries that this process has already registered are skipped.

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
