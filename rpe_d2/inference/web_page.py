"""A page for the browser that segments uploaded images, with Gradio."""

import os
import shutil
import tempfile
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any, Deque, List, Tuple

import numpy as np

from rpe_d2.utils.errors import USER_ERRORS, is_out_of_memory, one_line
from rpe_d2.utils.windows import number_of_pixels
from rpe_d2.visualization import at_most, counted

from .segmentation import Segmentation
from .segmenter import MOST_READ, Segmenter

__all__ = ["build_page", "load_gradio", "theme"]

# Files of a result that can be downloaded.
_FORMATS = ".tif", ".geojson", ".csv"
# Longer side of the pictures on the page, in pixels. Files have the size of the image.
_PREVIEW = 1600
# Results whose files are kept. Gradio copies them when it has received them.
_KEPT = 20
# Gradio deletes its copies of older files, in seconds.
_OLDEST = 3600


def load_gradio() -> Any:
    """Imports Gradio, which sends nothing to anyone then.

    Raises:
        ImportError: Gradio is not installed. The message is one line.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            "the page needs the package gradio: pip install 'rpe_d2[serve]'"
        ) from error
    return gradio


class _Results:
    """Segments uploads and keeps the files of the last results."""

    def __init__(self, segmenter: Segmenter, folder: Path):
        self._segmenter = segmenter
        self._folder = folder
        self._kept: Deque[str] = deque()

    def segment(self, path: str) -> Tuple[Tuple[np.ndarray, np.ndarray], str, List[str]]:
        """Segments an uploaded file.

        Returns:
            Image and overlay for the page, a line about the objects, and the files to download.

        Raises:
            ValueError: The image is too large for the page.
            UnreadableImage: The file cannot be read.
        """
        pixels = number_of_pixels(path)
        if pixels > MOST_READ:
            raise ValueError(
                f"{path} has {pixels} pixels; allowed: at most {MOST_READ} on this page, more with "
                "rpe-d2 predict"
            )
        start = time.perf_counter()
        found = self._segmenter.predict(path)
        seconds = time.perf_counter() - start
        folder = tempfile.mkdtemp(dir=self._folder)
        self._kept.append(folder)
        if len(self._kept) > _KEPT:
            shutil.rmtree(self._kept.popleft(), ignore_errors=True)
        # Gradio shows no file whose name starts with a dot.
        stem = Path(folder) / (Path(path).stem.lstrip(".") or "image")
        files = [str(found.save(f"{stem}{suffix}")) for suffix in _FORMATS]
        image = found.image if found.image is not None else np.zeros((*found.labels.shape, 3))
        pictures = [at_most(x, _PREVIEW) for x in (image.astype(np.uint8), found.overlay())]
        return tuple(pictures), f"{_summary(found)}, {seconds:.1f} s", files


def _summary(found: Segmentation) -> str:
    count = counted(len(found), "object")
    if len(found.class_names) == 1 or not len(found):
        return count
    names = Counter(found.classes).most_common()
    return f"{count} ({', '.join(f'{name}: {number}' for name, number in names)})"


def build_page(segmenter: Segmenter, folder: Path) -> Any:
    """Builds the page.

    Args:
        segmenter: the model.
        folder: existing folder for the files that can be downloaded.

    Returns:
        ``gradio.Blocks``. Its fonts are those of the reader's machine, so that the browser asks
        nobody else.

    Raises:
        ImportError: Gradio is not installed.
    """
    gradio = load_gradio()
    results = _Results(segmenter, folder)

    def segment(path: str) -> Tuple[Any, str, List[str]]:
        try:
            return results.segment(path)
        except Exception as error:
            if isinstance(error, USER_ERRORS) or is_out_of_memory(error):
                # The name of the upload, without the server's folders.
                parent = " ".join(str(Path(path).parent).split())
                message = one_line(error).replace(f"{parent}{os.sep}", "")
                raise gradio.Error(message, duration=None, print_exception=False) from error
            raise

    with gradio.Blocks(
        title="rpe-d2", analytics_enabled=False, delete_cache=(_OLDEST, _OLDEST)
    ) as page:
        upload = gradio.File(label="Image", type="filepath", elem_id="upload")
        summary = gradio.Markdown(elem_id="summary")
        overlay = gradio.ImageSlider(
            label="Image and objects", type="numpy", format="png", elem_id="overlay"
        )
        files = gradio.Files(
            label="Label map, outlines and table", interactive=False, elem_id="files"
        )
        upload.upload(
            segment,
            upload,
            [overlay, summary, files],
            api_visibility="private",
            concurrency_limit=1,
        )
    return page


def theme() -> Any:
    """Returns a theme of Gradio with the fonts of the reader's machine."""
    gradio = load_gradio()
    return gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
