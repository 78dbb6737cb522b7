"""Images that are generated on access, under a URL prefix of Detectron2's PathManager."""

import io
from typing import Any, Callable, List

import numpy as np
from detectron2.utils.file_io import PathHandler, PathManager
from PIL import Image

__all__ = ["encoded", "serve_pictures"]


def encoded(picture: np.ndarray) -> bytes:
    """Encodes an image (H, W) or (H, W, 3) uint8 as the content of a file.

    The format is BMP, regardless of the name of the file, because readers detect the format by the
    content and compression would only take time.
    """
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="BMP")
    return buffer.getvalue()


def serve_pictures(prefix: str, make: Callable[[str], bytes]) -> None:
    """Registers a prefix with Detectron2's PathManager.

    Args:
        prefix: URL prefix such as "name://".
        make: maps the rest of a path to the content of an image file. It raises FileNotFoundError
            if there is no such image.
    """
    PathManager.register_handler(_GeneratedPictures(prefix, make))


class _GeneratedPictures(PathHandler):
    def __init__(self, prefix: str, make: Callable[[str], bytes]):
        super().__init__()
        self._prefix = prefix
        self._make = make

    def _get_supported_prefixes(self) -> List[str]:
        return [self._prefix]

    def _open(
        self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any
    ) -> io.BufferedIOBase:
        self._check_kwargs(kwargs)
        if mode != "rb":
            raise ValueError(f"mode of {path} is {mode!r}; allowed: 'rb'")
        return io.BytesIO(self._make(path[len(self._prefix) :]))

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            self._make(path[len(self._prefix) :])
        except FileNotFoundError:
            return False
        return True

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self._exists(path, **kwargs)
