"""Reading pickles of arrays and plain types, and nothing that could run."""

import pickle
from typing import Any, BinaryIO

__all__ = ["load_arrays"]

# What NumPy's arrays and scalars are made of, by the names of NumPy 1 and 2. All of it builds data.
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_ALLOWED = {
    *((module, name) for module in _NUMPY for name in ("_reconstruct", "scalar")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),  # bytes in pickles of protocol 2
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}; allowed: NumPy arrays and plain types"
        )


def load_arrays(file: BinaryIO) -> Any:
    """Unpickles NumPy arrays, numbers, strings, lists, tuples and dicts, as in Detectron2's model zoo.

    Strings of Python 2 are read as latin-1, as Detectron2 does.

    Raises:
        pickle.UnpicklingError: the pickle asks for anything else, or is broken.
    """
    try:
        return _ArrayUnpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a broken pickle may raise anything
        raise pickle.UnpicklingError(f"broken: {' '.join(str(error).split())}") from error
