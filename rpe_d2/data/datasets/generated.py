"""Pictures that are made when they are opened, under a prefix of their own for Detectron2's file reading."""

import io
from typing import Any, Callable, List

import numpy as np
from detectron2.utils.file_io import PathHandler, PathManager
from PIL import Image

__all__ = ["encoded", "serve_pictures"]


def encoded(picture: np.ndarray) -> bytes:
    """A picture (H, W) or (H, W, 3) uint8 as a file's content.

    BMP, whatever the file is called: there is nothing to gain from compressing, and readers go by the content.
    """
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="BMP")
    return buffer.getvalue()


def serve_pictures(prefix: str, make: Callable[[str], bytes]) -> None:
    """Lets Detectron2's PathManager open `PREFIX…`.

    Args:
        prefix: "name://".
        make: from what follows the prefix to the content of an image file; raises FileNotFoundError where there is none.
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
            raise ValueError(f"{path}: can be opened with mode 'rb' only, not {mode!r}")
        return io.BytesIO(self._make(path[len(self._prefix) :]))

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            self._make(path[len(self._prefix) :])
        except FileNotFoundError:
            return False
        return True

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self._exists(path, **kwargs)
