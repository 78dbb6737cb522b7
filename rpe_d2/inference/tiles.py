"""Prediction of large images in overlapping tiles.

Every tile is seen with a margin around its core. An object belongs to the tile whose core holds its
center, so that no object is cut at a core's edge. All tiles have the same scale and lie on the grid
of the network's strides: what the network says of a pixel does not depend on the tile, apart from
what it sees beyond the margin.
"""

import tempfile
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Sequence, Tuple, Union

import numpy as np
import torch
from detectron2.structures import Instances
from PIL import Image
from scipy import ndimage

from rpe_d2.utils.windows import NetworkWindows

from .segmentation import Segmentation

__all__ = ["Found", "Progress", "Span", "predict_tiles", "resized_window", "spans"]

# Windows start at multiples of this, the largest stride of usual networks.
_STRIDE = 32
# Pixels of an image around a window that enter the interpolation at its edges, at scale 1.
_SUPPORT = 2
# Centers may lie this fraction of an object's diameter outside the core of a tile, because two
# tiles see an object slightly differently. It is then found twice, and one of them is dropped.
_TOLERANCE = 0.25
# Two objects are the same if they share more than this fraction of the smaller one.
_SAME = 0.5
# An object of which less than this fraction is left beside earlier ones is dropped.
_LEFT = 0.25
_MOST_ENLARGED = 2
_MOST_IN_MEMORY = 2**27  # pixels of the label map


# Wraps a list, to show how much of it is done.
Progress = Callable[[List[Any]], Iterable[Any]]


class Span(NamedTuple):
    """A tile along one axis.

    Attributes:
        start, stop: what the network sees, in pixels of its input.
        image_start, image_stop: the same in pixels of the image.
        core_start, core_stop: the part whose objects belong to the tile, in pixels of the image.
    """

    start: int
    stop: int
    image_start: int
    image_stop: int
    core_start: int
    core_stop: int


class Found(NamedTuple):
    """Objects of a whole image.

    Attributes:
        labels: (H, W) uint32, 0 for background.
        scores: (N,) float32, decreasing.
        class_ids: (N,) int64.
    """

    labels: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray


def spans(length: int, factor: float, tile: int, margin: int) -> List[Span]:
    """Divides one side of an image into tiles.

    Args:
        length: length of the side in pixels of the image.
        factor: factor by which the image is resized.
        tile: length of the core of a tile in pixels of the network's input.
        margin: what is seen beyond the core on each side, in pixels of the network's input.
    """
    total = max(1, round(length * factor))
    exact = total / length
    unit = _grid(exact, tile)
    tile = max(unit, unit * round(tile / unit))
    margin = unit * -(-margin // unit)
    starts = list(range(0, total, tile))
    if len(starts) > 1 and total - starts[-1] < tile // 2:
        starts.pop()  # a narrow rest belongs to the tile before it
    found = []
    for number, core_start in enumerate(starts):
        core_stop = starts[number + 1] if number + 1 < len(starts) else total
        start, stop = max(0, core_start - margin), min(total, core_stop + margin)
        ends = (round(x / exact) for x in (start, stop, core_start, core_stop))
        found.append(Span(start, stop, *ends))
    return found


def _grid(factor: float, tile: int) -> int:
    """Returns the grid of windows: a multiple of the stride that is close to whole image pixels."""
    candidates = [_STRIDE * n for n in range(1, max(1, tile // (4 * _STRIDE)) + 1)]
    return min(candidates, key=lambda unit: round(abs(unit / factor - round(unit / factor)), 3))


def resized_window(
    image: Union[np.ndarray, NetworkWindows], factor: float, rows: Span, columns: Span
) -> np.ndarray:
    """Returns a window of the resized image, without resizing all of it.

    Args:
        image: (H, W, C) uint8.
        factor: factor by which the image is resized.
        rows, columns: the window.

    Returns:
        The window. It differs from that of the whole image, resized by Detectron2's
        ``ResizeTransform``, by at most 2, because of rounding.
    """
    height, width = image.shape[:2]
    size = tuple(max(1, round(side * factor)) for side in (height, width))
    if size == (height, width):
        return image[rows.start : rows.stop, columns.start : columns.stop]
    boxes = []
    for span, length, total in ((rows, height, size[0]), (columns, width, size[1])):
        scale = length / total
        low, high = span.start * scale, span.stop * scale
        border = int(np.ceil(_SUPPORT * max(scale, 1)))
        first, last = max(0, int(low) - border), min(length, int(np.ceil(high)) + border)
        boxes.append((first, last, low - first, high - first))
    (y0, y1, top, bottom), (x0, x1, left, right) = boxes
    part = np.ascontiguousarray(image[y0:y1, x0:x1])
    picture = Image.fromarray(part[:, :, 0] if part.shape[2] == 1 else part)
    new = columns.stop - columns.start, rows.stop - rows.start
    box = left, top, min(right, picture.width), min(bottom, picture.height)
    resized = np.asarray(picture.resize(new, Image.Resampling.BILINEAR, box=box))
    return resized[:, :, None] if resized.ndim == 2 else resized


def predict_tiles(
    run: Callable[[Dict[str, Any]], Instances],
    image: Union[np.ndarray, NetworkWindows],
    factor: float,
    tile: int,
    margin: int,
    progress: Progress = iter,
) -> Found:
    """Predicts the objects of an image tile by tile.

    Args:
        run: maps the network's input of a window to instances with ``pred_masks`` (N, h, w),
            ``scores`` and ``pred_classes`` in pixels of the window's part of the image.
        image: (H, W, C) uint8 in the format of the network, or what has its shape and returns its
            windows.
        factor: factor by which the image is resized.
        tile: length of the cores in pixels of the network's input.
        margin: what is seen beyond a core, in pixels of the network's input. If an object of the
            core reaches the edge of the window, the tile is seen again with a margin of twice and
            of four times the length. Larger objects are cut.
        progress: wraps the list of tiles, to show progress.
    """
    height, width = image.shape[:2]
    canvas = _Canvas(_empty_labels(height, width))
    rows, columns = (spans(side, factor, tile, margin) for side in (height, width))
    numbers = [(y, x) for y in range(len(rows)) for x in range(len(columns))]
    for y, x in progress(numbers):
        for step in range(_MOST_ENLARGED + 1):
            wider = margin * 2**step
            row = spans(height, factor, tile, wider)[y]
            column = spans(width, factor, tile, wider)[x]
            window = resized_window(image, factor, row, column)
            instances = run(
                {
                    "image": torch.as_tensor(window.astype("float32").transpose(2, 0, 1)),
                    "height": row.image_stop - row.image_start,
                    "width": column.image_stop - column.image_start,
                }
            )
            objects = _objects(instances, row, column)
            if not any(item.is_cut(height, width, row, column) for item in objects):
                break
        for item in objects:
            canvas.add(item)
    return canvas.found()


class _Object(NamedTuple):
    """An object of a tile.

    Attributes:
        mask: (h, w) bool, cropped to its box, or what :func:`_packed` returns.
        y, x: the first row and column of the box, in pixels of the image.
        score: its score.
        class_id: index of its class.
    """

    mask: Any
    y: int
    x: int
    score: float
    class_id: int

    def is_cut(self, height: int, width: int, rows: Span, columns: Span) -> bool:
        """Returns whether the object reaches an edge of the window inside the image."""
        bottom, right = self.y + self.mask.shape[0], self.x + self.mask.shape[1]
        return (
            0 < self.y == rows.image_start
            or 0 < self.x == columns.image_start
            or height > bottom == rows.image_stop
            or width > right == columns.image_stop
        )


def _objects(instances: Instances, rows: Span, columns: Span) -> List[_Object]:
    """Returns the objects of a window whose centers are in its core or close to it."""
    found = Segmentation.from_instances(instances, _names(instances))
    objects = []
    windows = ndimage.find_objects(found.labels.astype(np.int64), len(found))
    for number, window in enumerate(windows, start=1):
        mask = found.labels[window] == number
        points = np.nonzero(mask)
        center = [part.mean() + cut.start + 0.5 for part, cut in zip(points, window)]
        tolerance = _TOLERANCE * np.sqrt(len(points[0]))
        y, x = (c + s.image_start for c, s in zip(center, (rows, columns)))
        if (
            rows.core_start - tolerance <= y < rows.core_stop + tolerance
            and columns.core_start - tolerance <= x < columns.core_stop + tolerance
        ):
            objects.append(
                _Object(
                    mask,
                    window[0].start + rows.image_start,
                    window[1].start + columns.image_start,
                    float(found.scores[number - 1]),
                    int(found.class_ids[number - 1]),
                )
            )
    return objects


def _names(instances: Instances) -> Sequence[str]:
    classes = instances.pred_classes
    return [""] * (int(classes.max()) + 1 if len(classes) else 1)


def _empty_labels(height: int, width: int) -> np.ndarray:
    """Returns zeros (H, W) uint32, in a temporary file if they are many."""
    if height * width <= _MOST_IN_MEMORY:
        return np.zeros((height, width), np.uint32)
    with tempfile.TemporaryFile() as file:  # exists as long as it is mapped
        file.truncate(4 * height * width)
        return np.memmap(file, np.uint32, "r+", shape=(height, width))


class _Canvas:
    """The label map of the whole image and what is known about its objects."""

    def __init__(self, labels: np.ndarray):
        self.labels = labels
        self._waiting: List[_Object] = []
        self._objects: List[Tuple[float, int, int]] = []  # score, class and area

    def add(self, item: _Object) -> None:
        """Notes an object."""
        self._waiting.append(item._replace(mask=_packed(item.mask)))

    def _draw(self, item: _Object) -> None:
        """Draws an object behind those that are there, unless it is one of them."""
        mask = _unpacked(item.mask)
        height, width = mask.shape
        window = self.labels[item.y : item.y + height, item.x : item.x + width]
        area = int(mask.sum())
        there, counts = np.unique(window[mask], return_counts=True)
        for label, count in zip(there.tolist(), counts.tolist()):
            if label and count > _SAME * min(area, self._objects[label - 1][2]):
                return
        free = mask & (window == 0)
        left = int(free.sum())
        if left < _LEFT * area:
            return
        self._objects.append((item.score, item.class_id, left))
        window[free] = len(self._objects)

    def found(self) -> Found:
        """Draws the objects, the highest score first, and returns them."""
        for item in sorted(self._waiting, key=lambda item: -item.score):
            self._draw(item)
        scores = np.array([score for score, _, _ in self._objects], np.float32)
        class_ids = np.array([class_id for _, class_id, _ in self._objects], np.int64)
        return Found(self.labels, scores, class_ids)


def _packed(mask: np.ndarray) -> Tuple[np.ndarray, Tuple[int, int]]:
    """Returns a mask (h, w) as bits, and its size."""
    return np.packbits(mask), mask.shape


def _unpacked(packed: Tuple[np.ndarray, Tuple[int, int]]) -> np.ndarray:
    bits, shape = packed
    return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(bool)
