"""Files of the BSDS contour benchmark: contour maps in several formats."""

from pathlib import Path
from typing import Sequence

import numpy as np

from rpe_d2.utils.image_files import check_is_file, open_image
from rpe_d2.utils.mat_files import read_boundary_annotations, read_field, size_text

__all__ = [
    "BOUNDARY_MAP_SUFFIXES",
    "as_boundary_map",
    "check_sizes",
    "read_boundary_annotations",
    "read_boundary_map",
]

BOUNDARY_MAP_SUFFIXES = (".png", ".npy", ".mat")
# Tolerance for rounding of maps that were scaled to 0 to 1.
_SLACK = 1e-6


def read_boundary_map(path: str) -> np.ndarray:
    """Reads a predicted contour map.

    Args:
        path: a grayscale .png, an .npy of (H, W) floats in 0 to 1, bools or unsigned integers, or
            a .mat with ``ucm2``. The latter is an ultrametric contour map of doubled size
            (2H + 1, 2W + 1), which is sampled at every second row and column from the third on, as
            ``boundaryBench`` of BSDS500 does.

    Returns:
        (H, W) float64 in 0 to 1. The largest unsigned integer maps to 1.

    Raises:
        ValueError: The file is invalid. The message is one line that names it.
        OSError: The file cannot be opened.
    """
    check_is_file(path)
    suffix = Path(path).suffix.lower()
    if suffix == ".mat":
        content = read_field(path, "ucm2")
        if content.ndim != 2 or not all(side % 2 for side in content.shape):
            raise ValueError(
                f"{path}: ucm2 has the size {size_text(content.shape)}; "
                "allowed: the doubled size 2H + 1 x 2W + 1"
            )
        content = content[2::2, 2::2]
    elif suffix == ".npy":
        content = _read_npy(path)
    elif suffix == ".png":
        content = _read_png(path)
    else:
        allowed = ", ".join(BOUNDARY_MAP_SUFFIXES)
        raise ValueError(f"{path}: suffix of a boundary map is {suffix!r}; allowed: {allowed}")
    return as_boundary_map(content, path)


def as_boundary_map(content: np.ndarray, name: str) -> np.ndarray:
    """Converts a map (H, W) of floats, bools or unsigned integers to float64 in 0 to 1.

    Args:
        content: the map.
        name: prefix of error messages.

    Raises:
        ValueError: The array has a wrong shape, dtype or range.
    """
    if content.ndim != 2 or not content.size or content.dtype.kind not in "buf":
        raise ValueError(
            f"{name}: not a boundary map, found {content.dtype} of shape {content.shape}; "
            "allowed: (H, W) of floats 0-1, bools or unsigned integers"
        )
    largest = np.iinfo(content.dtype).max if content.dtype.kind == "u" else 1
    boundaries = content.astype(np.float64) / largest
    low, high = boundaries.min(), boundaries.max()
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # also true for NaN
        raise ValueError(f"{name}: values from {low:.4g} to {high:.4g}; allowed: 0 to 1")
    return boundaries


def check_sizes(boundaries: np.ndarray, annotations: Sequence[np.ndarray], name: str) -> None:
    """Checks that a map and its ground truth have the same size.

    Raises:
        ValueError: The sizes differ. The message begins with ``name``.
    """
    if boundaries.shape != annotations[0].shape:
        raise ValueError(
            f"{name}: the boundary map is {size_text(boundaries.shape)} and its ground truth "
            f"{size_text(annotations[0].shape)} (height x width)"
        )


def _read_npy(path: str) -> np.ndarray:
    try:
        content = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as an array: {reason}") from error
    if not isinstance(content, np.ndarray):
        content.close()
        raise ValueError(f"{path}: is an archive of arrays; allowed: one array")
    return content


def _read_png(path: str) -> np.ndarray:
    with open_image(path) as image:
        content, _ = image.pixels(0)
    if content.shape[2] != 1:
        raise ValueError(f"{path}: is an image of {content.shape[2]} channels; allowed: grayscale")
    return content[:, :, 0]
