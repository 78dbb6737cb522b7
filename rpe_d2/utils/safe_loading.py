"""Loading pickles of arrays and plain types without running any code from them."""

import os
import pickle
import re
from collections import OrderedDict
from typing import Any, BinaryIO, Union

import detectron2.data.build
import numpy as np
import torch

__all__ = ["guard_proposals", "load_arrays", "load_tensors"]


class _DType:
    """Replaces ``numpy.dtype``, which would take sizes and flags from the pickle unchecked."""

    def __init__(self, description: str, align: bool = False, copy: bool = False):
        if not re.fullmatch(r"[biufcSU]\d+", description):
            raise pickle.UnpicklingError(
                f"it has an array of type {description}; allowed: numbers, strings"
            )
        self.dtype = np.dtype(description)

    def __setstate__(self, state: tuple) -> None:
        byte_order = state[1]
        if byte_order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(byte_order)


class _Array:
    """Replaces ``numpy.ndarray`` during unpickling, which could give a real array any memory."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = _from_buffer(data, dtype, shape, "F" if is_fortran else "C")


_NDARRAY = object()  # stands for the class numpy.ndarray among the arguments of _reconstruct


def _reconstruct(kind: object, shape: tuple, type_code: Union[bytes, str]) -> _Array:
    if kind is not _NDARRAY:
        raise pickle.UnpicklingError(
            "it asks for a kind of array other than ndarray; allowed: ndarray"
        )
    return _Array()


def _from_buffer(data: Any, dtype: _DType, shape: tuple, order: str) -> np.ndarray:
    data = data.encode("latin1") if isinstance(data, str) else data  # written by Python 2
    return np.frombuffer(bytearray(data), dtype.dtype).reshape(shape, order=order)


def _scalar(dtype: _DType, data: Any) -> np.generic:
    return _from_buffer(data, dtype, (1,), "C")[0]


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}; allowed: latin1")
    return text.encode("latin1")


_ALLOWED = {
    # The functions that rebuild arrays and scalars, by their names in NumPy 1 and 2.
    **{
        (module, name): function
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name, function in (("_reconstruct", _reconstruct), ("scalar", _scalar))
    },
    **{
        (module, "_frombuffer"): _from_buffer
        for module in ("numpy.core.numeric", "numpy._core.numeric")
    },
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DType,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,  # bytes in pickles of protocol 2
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}; allowed: NumPy arrays and plain types"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(
            "it refers to other files; allowed: NumPy arrays and plain types"
        )


def load_arrays(file: BinaryIO) -> Any:
    """Unpickles NumPy arrays, numbers, strings, lists, tuples and dicts.

    Files of Detectron2's model zoo hold nothing else. Strings from Python 2 are read as latin-1, as
    in Detectron2.

    Args:
        file: opened for reading bytes.

    Raises:
        pickle.UnpicklingError: The pickle asks for anything else, or is damaged.
    """
    try:
        return _with_arrays(_ArrayUnpickler(file, encoding="latin1").load())
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle may raise any error
        raise pickle.UnpicklingError(f"damaged: {' '.join(str(error).split())}") from error


def _with_arrays(content: Any) -> Any:
    """Returns the content with each :class:`_Array` replaced by its array."""
    if isinstance(content, _Array):
        return content.array
    if isinstance(content, dict):
        return type(content)((key, _with_arrays(value)) for key, value in content.items())
    if isinstance(content, (list, tuple)):
        return type(content)(_with_arrays(value) for value in content)
    return content


def load_tensors(key: str, path: str) -> Any:
    """Loads tensors and plain types that ``torch.save`` has written.

    Args:
        key: the configuration key that names the file, for the message.
        path: the file.

    Raises:
        ValueError: There is no such file, or it holds anything else or is damaged.
    """
    if not os.path.isfile(path):
        raise ValueError(f"{key} is {path}; there is no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling may raise any error
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{key} is {path}, which cannot be read ({type(error).__name__}: {reason}); "
            "allowed: tensors that torch.save has written"
        ) from error


class _SafePickle:
    """Replaces the module ``pickle`` when Detectron2 loads proposals."""

    @staticmethod
    def load(file: BinaryIO, **options: Any) -> Any:
        """
        Raises:
            ValueError: The file holds something other than arrays and plain types.
        """
        try:
            return load_arrays(file)
        except pickle.UnpicklingError as error:
            raise ValueError(f"proposals {getattr(file, 'name', '')}: {error}") from error


def guard_proposals() -> None:
    """Makes Detectron2 load precomputed proposals without running code from their pickles.

    ``DATASETS.PROPOSAL_FILES_TRAIN`` and ``PROPOSAL_FILES_TEST`` are opened deep inside the data
    loaders that Detectron2 builds, so that the guard has to be there.
    """
    detectron2.data.build.pickle = _SafePickle
