"""Files of the Berkeley boundary benchmark: human boundaries, and boundary maps of several kinds."""

from pathlib import Path
from typing import Any, Dict, List, Sequence

import numpy as np
from PIL import Image
from scipy.io import loadmat

BOUNDARY_MAP_SUFFIXES = (".png", ".npy", ".mat")
# Rounding of maps that were scaled to 0-1.
_SLACK = 1e-6


def read_boundary_annotations(path: str) -> List[np.ndarray]:
    """The boundaries that people drew, as BSDS500 stores them.

    Args:
        path: a .mat file with a cell array ``groundTruth`` of structs with a field ``Boundaries``.

    Returns:
        (H, W) bool, one an annotator, at least one, of one size, with a boundary pixel in at least one.

    Raises:
        ValueError: in one line, the file and what is wrong with it.
        OSError: it cannot be opened.
    """
    cells = _field(path, "groundTruth")
    if cells.dtype != object:
        raise ValueError(f"{path}: groundTruth is no cell array, found {cells.dtype}")
    annotations = []
    for number, cell in enumerate(cells.ravel(), start=1):
        names = getattr(getattr(cell, "dtype", None), "names", None) or ()
        if "Boundaries" not in names or cell.size != 1:
            found = ", ".join(names) or "no struct"
            raise ValueError(f"{path}: groundTruth {{{number}}} has no Boundaries, found {found}")
        annotation = np.asarray(cell["Boundaries"].item())
        if annotation.ndim != 2 or annotation.dtype.kind not in "buif":
            raise ValueError(
                f"{path}: Boundaries of groundTruth {{{number}}} is no map, "
                f"found {annotation.dtype} of the shape {annotation.shape}"
            )
        annotations.append(annotation != 0)
    if not annotations:
        raise ValueError(f"{path}: groundTruth is empty, no annotator")
    sizes = {annotation.shape for annotation in annotations}
    if len(sizes) > 1:
        found = " and ".join(_size(shape) for shape in sorted(sizes))
        raise ValueError(f"{path}: the annotators' Boundaries differ in size, found {found}")
    if not any(annotation.any() for annotation in annotations):
        raise ValueError(f"{path}: the ground truth is empty, no annotator has a boundary pixel")
    return annotations


def read_boundary_map(path: str) -> np.ndarray:
    """A predicted boundary map.

    Args:
        path: a greyscale .png; an .npy of (H, W) floats 0-1, bools or unsigned integers; or a .mat with ``ucm2``, an
            ultrametric contour map of the doubled size (2H + 1, 2W + 1), of which every second row and column is taken
            from the third on, as BSDS500's ``boundaryBench`` does.

    Returns:
        (H, W) float64, 0-1; of unsigned integers the largest is 1.

    Raises:
        ValueError: in one line, the file and what is wrong with it.
        OSError: it cannot be opened.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".mat":
        content = _field(path, "ucm2")
        if content.ndim != 2 or not all(side % 2 for side in content.shape):
            raise ValueError(
                f"{path}: ucm2 has the size {_size(content.shape)}; "
                "allowed: the doubled size 2H + 1 x 2W + 1"
            )
        content = content[2::2, 2::2]
    elif suffix == ".npy":
        content = _read_npy(path)
    elif suffix == ".png":
        content = _read_png(path)
    else:
        allowed = ", ".join(BOUNDARY_MAP_SUFFIXES)
        raise ValueError(f"{path}: boundary maps are files of the kinds {allowed}")
    return as_boundary_map(content, path)


def as_boundary_map(content: np.ndarray, name: str) -> np.ndarray:
    """A map (H, W) of floats, bools or unsigned integers as float64 in 0-1.

    Raises:
        ValueError: with the name, where it is no such map, or leaves 0-1.
    """
    if content.ndim != 2 or not content.size or content.dtype.kind not in "buf":
        raise ValueError(
            f"{name}: is no boundary map, found {content.dtype} of the shape {content.shape}; "
            "allowed: (H, W) of floats 0-1, bools or unsigned integers"
        )
    largest = np.iinfo(content.dtype).max if content.dtype.kind == "u" else 1
    boundaries = content.astype(np.float64) / largest
    low, high = boundaries.min(), boundaries.max()
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # so written, NaN fails
        raise ValueError(f"{name}: values from {low:.4g} to {high:.4g}; allowed: 0 to 1")
    return boundaries


def check_sizes(boundaries: np.ndarray, annotations: Sequence[np.ndarray], name: str) -> None:
    """
    Raises:
        ValueError: with the name, where the map and its ground truth differ in size.
    """
    if boundaries.shape != annotations[0].shape:
        raise ValueError(
            f"{name}: the boundary map is {_size(boundaries.shape)} and its ground truth "
            f"{_size(annotations[0].shape)} (height x width)"
        )


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _field(path: str, name: str) -> np.ndarray:
    """One array of a MATLAB file."""
    with open(path, "rb") as file:
        try:
            content: Dict[str, Any] = loadmat(file)
        except NotImplementedError as error:
            raise ValueError(f"{path}: is a MATLAB 7.3 file; save it with '-v7'") from error
        except Exception as error:  # a damaged file raises whatever its bytes lead the reader to
            reason = " ".join(str(error).split())
            raise ValueError(f"{path}: cannot be read as a MATLAB file: {reason}") from error
    if not isinstance(content.get(name), np.ndarray):
        found = ", ".join(key for key in content if not key.startswith("__")) or "nothing"
        raise ValueError(f"{path}: has no field {name}, found {found}")
    return content[name]


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
    with open(path, "rb") as file:
        try:
            with Image.open(file, formats=["PNG"]) as image:
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: cannot be read as a PNG: {error}") from error
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "I", "I;16"):
        raise ValueError(f"{path}: is a picture of the mode {image.mode}; allowed: greyscale")
    return np.asarray(image).astype(np.uint8 if image.mode == "L" else np.uint16)
