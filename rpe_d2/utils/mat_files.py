"""Reading MATLAB files, such as those of human boundary annotations."""

from typing import Any, Dict, List, Sequence

import numpy as np

from .image_files import check_is_file

__all__ = ["read_boundary_annotations", "read_field", "read_mat", "size_text"]


def read_boundary_annotations(path: str) -> List[np.ndarray]:
    """Reads the boundaries that several annotators drew in an image, as BSDS500 stores them.

    Args:
        path: a .mat file with a cell array ``groundTruth`` of structs with a field ``Boundaries``.

    Returns:
        A boolean map (H, W) for each annotator, at least one. All have the same size, and at least
        one has a boundary pixel.

    Raises:
        ValueError: The message is one line with the file and what is wrong with it.
        OSError: The file cannot be opened.
    """
    cells = read_field(path, "groundTruth")
    if cells.dtype != object:
        raise ValueError(f"{path}: groundTruth is not a cell array, found {cells.dtype}")
    annotations = []
    for number, cell in enumerate(cells.ravel(), start=1):
        names = getattr(getattr(cell, "dtype", None), "names", None) or ()
        if "Boundaries" not in names or cell.size != 1:
            found = ", ".join(names) or "something other than a struct"
            raise ValueError(f"{path}: groundTruth {{{number}}} has no Boundaries, found {found}")
        annotation = np.asarray(cell["Boundaries"].item())
        if annotation.ndim != 2 or annotation.dtype.kind not in "buif":
            raise ValueError(
                f"{path}: Boundaries of groundTruth {{{number}}} is not a 2D map, "
                f"found {annotation.dtype} of shape {annotation.shape}"
            )
        annotations.append(annotation != 0)
    if not annotations:
        raise ValueError(f"{path}: groundTruth is empty; it needs at least one annotator")
    sizes = {annotation.shape for annotation in annotations}
    if len(sizes) > 1:
        found = " and ".join(size_text(shape) for shape in sorted(sizes))
        raise ValueError(f"{path}: the annotators' Boundaries differ in size, found {found}")
    if not any(annotation.any() for annotation in annotations):
        raise ValueError(f"{path}: the ground truth is empty, no annotator has a boundary pixel")
    return annotations


def read_field(path: str, name: str) -> np.ndarray:
    """Reads an array from a MATLAB file.

    Args:
        path: the .mat file.
        name: the name of the array.

    Raises:
        ValueError: The message is one line with the file and what is wrong with it.
        OSError: The file cannot be opened.
    """
    content = read_mat(path)
    if not isinstance(content.get(name), np.ndarray):
        found = ", ".join(content) or "nothing"
        raise ValueError(f"{path}: has no field {name}, found {found}")
    return content[name]


def read_mat(path: str) -> Dict[str, Any]:
    """Reads all variables of a MATLAB file by name.

    Args:
        path: the .mat file.

    Raises:
        ValueError: The message is one line with the file and what is wrong with it.
        OSError: The file cannot be opened.
    """
    from scipy.io import loadmat

    check_is_file(path)
    with open(path, "rb") as file:
        try:
            content = loadmat(file)
        except NotImplementedError as error:
            raise ValueError(f"{path} is a MATLAB 7.3 file; save it with '-v7'") from error
        except Exception as error:  # a damaged file may raise any error
            reason = " ".join(str(error).split())
            raise ValueError(f"{path}: cannot be read as a MATLAB file: {reason}") from error
    return {name: value for name, value in content.items() if not name.startswith("__")}


def size_text(shape: Sequence[int]) -> str:
    """Formats a size as "height x width"."""
    return " x ".join(map(str, shape))
