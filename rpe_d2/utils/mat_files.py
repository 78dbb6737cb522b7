"""MATLAB files of human boundaries. Data sets and evaluators both read them, and neither knows the other."""

from typing import Any, Dict, List, Sequence

import numpy as np
from scipy.io import loadmat

__all__ = ["read_boundary_annotations", "read_field", "size_text"]


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
    cells = read_field(path, "groundTruth")
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
        found = " and ".join(size_text(shape) for shape in sorted(sizes))
        raise ValueError(f"{path}: the annotators' Boundaries differ in size, found {found}")
    if not any(annotation.any() for annotation in annotations):
        raise ValueError(f"{path}: the ground truth is empty, no annotator has a boundary pixel")
    return annotations


def read_field(path: str, name: str) -> np.ndarray:
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


def size_text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
