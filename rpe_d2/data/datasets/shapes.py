"""Synthetic instance segmentation data, `shapes_train` and `shapes_val`: no download, no files.

Every picture is rendered from a seed when it is asked for. Objects touch and occlude each other, mostly
within their own class, so that a semantic map does not give the instances away: connected components of
the *true* semantic map reach less than 40 mask AP.
"""

import functools
import io
import pickle
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathHandler, PathManager
from PIL import Image

__all__ = ["SHAPES_CLASSES", "SHAPES_SPLITS", "load_shapes", "render_shapes"]

SHAPES_CLASSES = ("ellipse", "rectangle", "triangle", "star")
SHAPES_SPLITS = {"train": 1500, "val": 100}

_ELLIPSE, _RECTANGLE, _TRIANGLE, _STAR = range(len(SHAPES_CLASSES))
_PREFIX = "shapes://"
_SEED = 1801
_SIZE = 128  # height and width of a picture, px
_MARGIN = (
    80  # objects are drawn on a larger canvas: the visible part is judged against the whole object
)
_NUM_OBJECTS = (4, 12)
_DIAMETER = (14.0, 80.0)  # of the circle around an object, px
_SAME_CLASS = 0.6  # probability that an object has the class of its cluster
_MIN_VISIBLE_FRACTION = 0.25
_MIN_VISIBLE_PIXELS = 30


@dataclass
class _Object:
    category: int
    center: np.ndarray  # (2,) float, x and y, px
    radius: float  # px
    angle: float  # radians
    mask: np.ndarray  # (128, 128) bool, the part inside the picture, before occlusion


def _outline(category: int, aspect: float) -> np.ndarray:
    """Corners (K, 2) of an upright object inside the unit circle; `aspect` in (0, 1]."""
    if category == _RECTANGLE:
        half_angle = np.arctan(aspect)
        turns = np.array([half_angle, np.pi - half_angle, np.pi + half_angle, -half_angle])
        return np.stack([np.cos(turns), np.sin(turns)], axis=1)
    if category == _STAR:
        turns = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
        # a squeezed star is easily taken for a triangle
        return np.stack([radii * np.cos(turns), radii * np.sin(turns) * (0.6 + 0.4 * aspect)], 1)
    num_corners = 3 if category == _TRIANGLE else 40
    turns = np.arange(num_corners) * 2 * np.pi / num_corners
    return np.stack([np.cos(turns), aspect * np.sin(turns)], axis=1)


def _draw(
    category: int, center: np.ndarray, radius: float, angle: float, aspect: float
) -> np.ndarray:
    """Mask (288, 288) uint8 in {0, 1} on the canvas with margins."""
    cos, sin = np.cos(angle), np.sin(angle)
    corners = _outline(category, aspect) @ np.array([[cos, sin], [-sin, cos]])
    corners = (corners * radius + center + _MARGIN) * 16  # 4 fractional bits
    canvas = np.zeros((_SIZE + 2 * _MARGIN,) * 2, dtype=np.uint8)
    cv2.fillPoly(canvas, [np.rint(corners).astype(np.int32)], 1, shift=4)
    return canvas


def _place(rng: np.random.Generator) -> Tuple[List[_Object], np.ndarray]:
    """Arrange the objects of one picture.

    An object that would be nearly invisible, or would make an earlier one so, is drawn again: all that
    the picture shows is annotated.

    Returns:
        objects from back to front, and the map (128, 128) int of the visible object per pixel, -1 = none.
    """
    num_objects = rng.integers(_NUM_OBJECTS[0], _NUM_OBJECTS[1] + 1)
    num_clusters = rng.integers(1, 4)
    cluster_classes = rng.integers(0, len(SHAPES_CLASSES), num_clusters)
    cluster_centers = rng.uniform(0.2 * _SIZE, 0.8 * _SIZE, (num_clusters, 2))
    members: List[List[int]] = [[] for _ in range(num_clusters)]

    objects: List[_Object] = []
    whole_areas: List[int] = []
    owner = np.full((_SIZE, _SIZE), -1)
    inside = slice(_MARGIN, _MARGIN + _SIZE)
    attempts = 0
    while len(objects) < _NUM_OBJECTS[0] or (len(objects) < num_objects and attempts < 60):
        attempts += 1
        cluster = rng.integers(num_clusters)
        same_class = rng.random() < _SAME_CLASS
        category = int(cluster_classes[cluster] if same_class else rng.integers(4))
        radius = 0.5 * np.exp(rng.uniform(*np.log(_DIAMETER)))
        angle, direction = rng.uniform(0, 2 * np.pi, 2)
        aspect, closeness = rng.uniform(0.55, 1.0), rng.uniform(0.45, 0.9)
        if members[cluster]:
            neighbor = objects[rng.choice(members[cluster])]
            distance = closeness * (radius + neighbor.radius)
            center = neighbor.center + distance * np.array([np.cos(direction), np.sin(direction)])
        else:
            center = cluster_centers[cluster]
        if (center < 0).any() or (center >= _SIZE).any():
            continue

        canvas = _draw(category, center, radius, angle, aspect)
        mask = canvas[inside, inside].astype(bool)
        candidate_owner = np.where(mask, len(objects), owner)
        candidate_areas = np.array(whole_areas + [cv2.countNonZero(canvas)])
        visible = np.bincount(candidate_owner.ravel() + 1, minlength=len(objects) + 2)[1:]
        needed = np.maximum(_MIN_VISIBLE_PIXELS, _MIN_VISIBLE_FRACTION * candidate_areas)
        if (visible < needed).any():
            continue
        members[cluster].append(len(objects))
        objects.append(_Object(category, center, radius, angle, mask))
        whole_areas.append(candidate_areas[-1])
        owner = candidate_owner
    return objects, owner


def _background(rng: np.random.Generator) -> np.ndarray:
    """Cloudy, tilted background (128, 128, 3) float32, about 0–255."""
    y, x = np.mgrid[0:_SIZE, 0:_SIZE].astype(np.float32) / _SIZE - 0.5
    turn = rng.uniform(0, 2 * np.pi)
    ramp = (np.cos(turn) * x + np.sin(turn) * y)[:, :, None]
    image = rng.uniform(60, 190, 3) + ramp * rng.uniform(-60, 60, 3)
    for cells, amplitude in ((5, 18.0), (24, 7.0)):
        coarse = rng.standard_normal((cells, cells, 3), dtype=np.float32) * amplitude
        image += cv2.resize(coarse, (_SIZE, _SIZE), interpolation=cv2.INTER_CUBIC)
    return image.astype(np.float32)


def _texture(obj: _Object, x: np.ndarray, y: np.ndarray, phase: float) -> np.ndarray:
    """Brightness factor around 1 of the fill that is typical of the class, (h, w) float32.

    Args:
        x, y: positions relative to the object's centre, broadcastable to (h, w), px.
        phase: of the pattern, radians.
    """
    cos, sin = np.float32(np.cos(obj.angle)), np.float32(np.sin(obj.angle))
    u, v = cos * x + sin * y, cos * y - sin * x
    if obj.category == _ELLIPSE:
        return 1.2 - 0.55 * (u * u + v * v) / obj.radius**2
    if obj.category == _RECTANGLE:
        return 1 + 0.3 * np.sign(np.sin(u * (2 * np.pi / 6) + phase))
    if obj.category == _TRIANGLE:
        return 1 + 0.3 * np.sign(np.sin(u * (2 * np.pi / 8) + phase) * np.sin(v * (2 * np.pi / 8)))
    dots = np.cos(u * (2 * np.pi / 6) + phase) + np.cos(v * (2 * np.pi / 6)) > 0.8
    return 0.8 + 0.6 * dots


def _colors(rng: np.random.Generator, num_objects: int) -> np.ndarray:
    """Base colours (num_objects, 3), 50–240, kept apart so that neighbours can be told apart."""
    colors = np.empty((num_objects, 3))
    for i in range(num_objects):
        candidates = rng.uniform(50, 240, (8, 3))
        distances = np.linalg.norm(candidates[:, None] - colors[None, :i], axis=2)  # (8, i)
        colors[i] = candidates[distances.min(axis=1, initial=1e3).argmax()]
    return colors


def _paint(rng: np.random.Generator, objects: List[_Object]) -> np.ndarray:
    """Paint the objects from back to front; RGB (128, 128, 3) uint8."""
    image = _background(rng)
    kernel = np.ones((3, 3), dtype=np.uint8)
    for obj, color in zip(objects, _colors(rng, len(objects))):
        x0, y0, width, height = cv2.boundingRect(obj.mask.astype(np.uint8))
        window = slice(y0, y0 + height), slice(x0, x0 + width)
        mask = obj.mask[window]
        x = np.arange(x0, x0 + width, dtype=np.float32)[None, :] - np.float32(obj.center[0])
        y = np.arange(y0, y0 + height, dtype=np.float32)[:, None] - np.float32(obj.center[1])
        phase, shade_x, shade_y = rng.uniform(0, 2 * np.pi), *rng.uniform(-0.12, 0.12, 2)
        brightness = _texture(obj, x, y, phase) + (shade_x * x + shade_y * y) / obj.radius
        # the constant border of cv2.erode counts as object: no outline where the picture cuts it off
        core = cv2.erode(obj.mask.astype(np.uint8), kernel)[window].astype(bool)
        brightness = np.where(core, brightness, 0.4 * brightness)
        image[window][mask] = (brightness[:, :, None] * color)[mask]
    image = cv2.GaussianBlur(image, (3, 3), 0.5)
    image += rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(4, 9)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _arrange(split: str, index: int) -> Tuple[List[_Object], np.ndarray]:
    # placement and paint have generators of their own: annotations do not need the paint
    return _place(np.random.default_rng([_SEED, list(SHAPES_SPLITS).index(split), index, 0]))


def render_shapes(split: str, index: int) -> np.ndarray:
    """Render one picture; the same in every process.

    Args:
        split: "train" or "val".
        index: 0 … SHAPES_SPLITS[split] − 1.

    Returns:
        RGB image (128, 128, 3), uint8.
    """
    objects, _ = _arrange(split, index)
    rng = np.random.default_rng([_SEED, list(SHAPES_SPLITS).index(split), index, 1])
    return _paint(rng, objects)


def _annotate(split: str, index: int) -> List[Dict[str, Any]]:
    objects, owner = _arrange(split, index)
    visible = owner[:, :, None] == np.arange(len(objects))  # (H, W, N)
    rles = mask_util.encode(np.asfortranarray(visible.astype(np.uint8)))
    boxes = mask_util.toBbox(rles)  # (N, 4) XYWH
    return [
        {
            "bbox": box.tolist(),
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": obj.category,
            "iscrowd": 0,
            "segmentation": {"size": [_SIZE, _SIZE], "counts": rle["counts"].decode("ascii")},
        }
        for obj, rle, box in zip(objects, rles, boxes)
    ]


@functools.lru_cache(maxsize=None)
def _load_pickled(split: str) -> bytes:
    return pickle.dumps(
        [
            {
                "file_name": f"{_PREFIX}{split}/{index:06d}.png",
                "height": _SIZE,
                "width": _SIZE,
                "image_id": index,
                "annotations": _annotate(split, index),
            }
            for index in range(SHAPES_SPLITS[split])
        ]
    )


def load_shapes(split: str) -> List[Dict[str, Any]]:
    """Dataset dicts of one split, in Detectron2's standard format.

    Each has `file_name` (a name that only Detectron2's `PathManager` can open), `height`, `width`,
    `image_id` and `annotations` with the visible masks as compressed RLE, from back to front. The list
    is the caller's own; the annotations are generated once a process.

    Args:
        split: "train" or "val".
    """
    return pickle.loads(_load_pickled(split))


@functools.lru_cache(maxsize=sum(SHAPES_SPLITS.values()))
def _encode(split: str, index: int) -> bytes:
    buffer = io.BytesIO()
    # BMP, whatever the name says: nothing to compress, and readers go by the content
    Image.fromarray(render_shapes(split, index)).save(buffer, format="BMP")
    return buffer.getvalue()


class _ShapesHandler(PathHandler):
    """Serves `shapes://train/000012.png` and so on, rendered when opened."""

    def _get_supported_prefixes(self) -> List[str]:
        return [_PREFIX]

    def _parse(self, path: str) -> Tuple[str, int]:
        split, _, name = path[len(_PREFIX) :].partition("/")
        stem = name[: -len(".png")]
        index = int(stem) if stem.isdecimal() else -1
        if 0 <= index < SHAPES_SPLITS.get(split, 0) and name == f"{index:06d}.png":
            return split, index
        allowed = " or ".join(
            f"{_PREFIX}{split}/000000.png … {size - 1:06d}.png"
            for split, size in SHAPES_SPLITS.items()
        )
        raise FileNotFoundError(f"{path}: no such picture; there are {allowed}")

    def _open(
        self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any
    ) -> io.BufferedIOBase:
        self._check_kwargs(kwargs)
        if mode != "rb":
            raise ValueError(f"{path}: can be opened with mode 'rb' only, not {mode!r}")
        return io.BytesIO(_encode(*self._parse(path)))

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            self._parse(path)
        except FileNotFoundError:
            return False
        return True

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self._exists(path, **kwargs)


PathManager.register_handler(_ShapesHandler())
for _split in SHAPES_SPLITS:
    DatasetCatalog.register(f"shapes_{_split}", functools.partial(load_shapes, _split))
    MetadataCatalog.get(f"shapes_{_split}").set(
        thing_classes=list(SHAPES_CLASSES), evaluator_type="coco"
    )
