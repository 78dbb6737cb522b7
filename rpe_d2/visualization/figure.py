"""Figures of titled panels in rows, as PNG files."""

import io
import textwrap
from typing import Any, Callable, List, NamedTuple, Sequence

import cv2
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rpe_d2.utils.image_files import printable

# In pixels: longer side of an image in its panel, shortest side of a panel, height of the titles,
# space between panels, height of the heading.
PANEL_SIDE = 380
_SMALLEST_SIDE = 260
_TITLE = 46
_GAP = 14
_HEADING = 40
_DPI = 100


class Panel(NamedTuple):
    """A panel of a figure.

    Attributes:
        title: a few words.
        note: a second, smaller line, or "".
        draw: draws into axes without frame and ticks.
    """

    title: str
    note: str
    draw: Callable[[Axes], None]


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, such as "1 object" or "2 objects"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def at_most(image: np.ndarray, side: int) -> np.ndarray:
    """Shrinks an image (H, W, 3) whose longer side exceeds ``side`` pixels."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def fit_to_panel(image: np.ndarray, smooth: bool = False) -> np.ndarray:
    """Resizes an image so that its longer side is ``PANEL_SIDE``.

    Args:
        image: (H, W) or (H, W, C), uint8 or floating point.
        smooth: whether to interpolate. Label maps need False.

    Returns:
        The image with the same dtype and number of dimensions.
    """
    scale = PANEL_SIDE / max(image.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])  # (width, height)
    if not smooth:
        return cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def image_panel(image: np.ndarray, title: str, note: str = "", smooth: bool = True) -> Panel:
    """Creates a panel that shows an image.

    Args:
        image: (H, W, 3) RGB, uint8 in 0 to 255 or floating point in 0 to 1.
        title: title of the panel.
        note: smaller second line of the title.
        smooth: see :func:`fit_to_panel`.
    """
    fitted = fit_to_panel(image, smooth)
    return Panel(title, note, lambda axes: axes.imshow(fitted, vmin=0, vmax=1))


def text_panel(title: str, paragraphs: Sequence[str]) -> Panel:
    """Creates a panel of small text, such as a legend."""
    text = "\n\n".join(textwrap.fill(paragraph, 46) for paragraph in paragraphs)

    def draw(axes: Axes) -> None:
        place = {"transform": axes.transAxes, "va": "top"}
        axes.text(0.04, 1, text, fontsize=9.5, linespacing=1.4, **place)

    return Panel(title, "", draw)


def draw_figure(rows: Sequence[List[Panel]], heading: str, image_size: Sequence[int]) -> bytes:
    """Draws rows of panels on white, without a display.

    Args:
        rows: panels from left to right.
        heading: one line above the panels.
        image_size: (H, W) of the image in the panels, which determines their shape.

    Returns:
        The content of a PNG file.
    """
    # File and class names may have dollar signs, which are not mathematics.
    with rc_context({"text.parse_math": False}):
        return _draw_figure(rows, printable(heading), image_size)


def _draw_figure(rows: Sequence[List[Panel]], heading: str, image_size: Sequence[int]) -> bytes:
    scale = PANEL_SIDE / max(image_size)
    panel_height, panel_width = (max(_SMALLEST_SIDE, round(side * scale)) for side in image_size)
    columns = max(len(row) for row in rows)
    width = columns * (panel_width + _GAP) + _GAP
    height = _HEADING + len(rows) * (panel_height + _TITLE + _GAP)
    # Without pyplot there is no global state: the caller's backend and figures do not change.
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    _write(figure, _GAP / width, 1 - _HEADING / 2 / height, heading, va="center", fontsize=12)
    for row, panels in enumerate(rows):
        bottom = height - _HEADING - (row + 1) * (panel_height + _TITLE) - row * _GAP
        for column, panel in enumerate(panels):
            left = _GAP + column * (panel_width + _GAP)
            box = (left / width, bottom / height, panel_width / width, panel_height / height)
            axes = figure.add_axes(box)
            axes.set_axis_off()
            panel.draw(axes)
            middle = (left + panel_width / 2) / width
            top = bottom + panel_height
            centered = {"ha": "center"}
            title, note = panel.title, panel.note
            _write(
                figure, middle, (top + 24) / height, title, fontsize=12, weight="bold", **centered
            )
            _write(figure, middle, (top + 7) / height, note, fontsize=9, color="0.3", **centered)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def _write(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    figure.text(x, y, printable(text), **style)
