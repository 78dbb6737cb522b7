"""Readers of semantic label maps, shared by datasets and evaluators."""

from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

from .readable import UNREADABLE, UnreadableImage

__all__ = ["read_class_indices", "read_label_map"]

_MODES = ("L", "P")  # PIL modes with one 8-bit index per pixel


def read_label_map(file_name: str, dtype: Any = np.int64) -> np.ndarray:
    """Reads a label map (H, W) from any path that Detectron2's PathManager opens.

    Detectron2's own reader fails with NumPy 2.
    """
    with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
        return np.array(image, dtype=dtype)


def read_class_indices(path: Path, where: str = "") -> np.ndarray:
    """Reads a PNG of class or palette indices from disk.

    Args:
        path: the file.
        where: prefix of error messages, such as a configuration key.

    Returns:
        (H, W) uint8.

    Raises:
        UnreadableImage: The file cannot be read, or it does not have one 8-bit index per pixel.
    """
    prefix = f"{where}: " if where else ""
    try:
        with Image.open(path) as image:
            mode, labels = image.mode, np.asarray(image)
    except UNREADABLE as error:
        raise UnreadableImage(f"{prefix}{path}: {error}") from error
    if mode not in _MODES:
        raise UnreadableImage(
            f"{prefix}{path} has the mode {mode}; allowed: {' or '.join(_MODES)}, "
            "one 8-bit class per pixel"
        )
    return labels
