"""Reader and writer of class probabilities, the NPZ files of semantic models."""

import io
import zipfile
import zlib
from pathlib import Path
from typing import Sequence, Union

import numpy as np

from .readable import UnreadableImage

__all__ = ["PROBABILITIES", "encode_probabilities", "read_probabilities"]

# The array in a file. nnU-Net uses the same name.
PROBABILITIES = "probabilities"

_SUM_TOLERANCE = 1e-2

# What NumPy raises for files that are damaged or of another kind.
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def read_probabilities(path: Union[str, Path], size: Sequence[int]) -> np.ndarray:
    """Reads the probabilities of the classes at each pixel of an image.

    The file is an NPZ file with the array ``probabilities`` (K, H, W), or (K, 1, H, W) as nnU-Net
    writes it: uint8, in which 255 is the probability 1, or floating point. Sums that
    differ from 1 by rounding are corrected.

    Args:
        path: the file.
        size: H and W of the image.

    Returns:
        (K, H, W) float32 in 0-1 with the sum 1.

    Raises:
        UnreadableImage: The file cannot be read, or the array has a wrong type, shape or value.
            The message is one line.
    """
    try:
        shape, dtype = _header(path)
        if len(shape) == 4 and shape[1] == 1:
            shape = (shape[0], *shape[2:])
        if len(shape) != 3 or shape[1:] != tuple(size) or not shape[0]:
            raise UnreadableImage(
                f"{path}: {PROBABILITIES} has shape {shape}; allowed: (K, {size[0]}, {size[1]})"
            )
        if dtype != np.uint8 and dtype.kind != "f":
            raise UnreadableImage(
                f"{path}: {PROBABILITIES} is {dtype}; allowed: uint8 or floating point"
            )
        with np.load(path, allow_pickle=False) as content:
            maps = content[PROBABILITIES].reshape(shape).astype(np.float32)
    except UnreadableImage:
        raise
    except _DAMAGED as error:
        reason = " ".join(str(error).split())
        raise UnreadableImage(
            f"{path}: {reason}; allowed: an NPZ file with {PROBABILITIES}"
        ) from error
    total = maps.sum(axis=0)
    # Rounding to 8 bits may change the sum of many classes a lot.
    correct = total.min() > 0 if dtype == np.uint8 else abs(total - 1).max() < _SUM_TOLERANCE
    if not (maps.min() >= 0 and correct):
        raise UnreadableImage(
            f"{path}: {PROBABILITIES} are from {maps.min():.3g}, with sums at a pixel from "
            f"{total.min():.3g} to {total.max():.3g}; allowed: 0 or more, with the sum 1"
        )
    return maps / total


def encode_probabilities(maps: np.ndarray) -> bytes:
    """Encodes probabilities (K, H, W) as an NPZ file of uint8."""
    buffer = io.BytesIO()
    scaled = np.rint(255 * maps.astype(np.float32)).astype(np.uint8)
    np.savez_compressed(buffer, **{PROBABILITIES: scaled})
    return buffer.getvalue()


def _header(path: Union[str, Path]) -> tuple:
    """Returns shape and dtype of the array before any memory is taken for it."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{PROBABILITIES}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"the array has format {version}")
        shape, _, dtype = read(file)
    return shape, dtype
