"""Synthetic datasets ``shapes_train``, ``shapes_val`` and variants, without downloads or files.

Every image is rendered from a seed on access. Objects touch and occlude each other, mostly within
their own class, so that semantic segmentation alone does not separate the instances: connected
components of the ground-truth semantic map have less than 40 mask AP.

``shapes_dev`` serves to choose settings, so that nothing is chosen on ``shapes_val``.

``shapes_large_train`` and ``shapes_large_val`` are such scenes at four times the size, to evaluate
mask boundaries. Each of the five also exists with semantic label maps instead of instances, such
as ``shapes_train_sem_seg``. ``shapes_train_noisy_sem_seg`` and ``shapes_large_train_noisy_sem_seg``
have carelessly drawn maps. ``shapes_train_panoptic`` and ``shapes_val_panoptic`` have both
instances and maps of the background.
"""

import functools
import pickle
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from .generated import encoded, serve_pictures
from .label_noise import corrupt_labels

__all__ = [
    "SHAPES_CLASSES",
    "SHAPES_SEM_SEG_CLASSES",
    "SHAPES_SPLITS",
    "load_shapes",
    "load_shapes_panoptic",
    "load_shapes_sem_seg",
    "render_shapes",
]

SHAPES_CLASSES = ("ellipse", "rectangle", "triangle", "star")
SHAPES_SEM_SEG_CLASSES = ("background", *SHAPES_CLASSES)
# The position of a split is part of the seed of its images.
SHAPES_SPLITS = {"train": 1500, "val": 100, "large_train": 400, "large_val": 60, "dev": 100}

_ELLIPSE, _RECTANGLE, _TRIANGLE, _STAR = range(len(SHAPES_CLASSES))
_PREFIX = "shapes://"
_SEED = 1801
# Classes of the maps in the panoptic datasets, in the format of PanopticFPN.
SHAPES_STUFF_CLASSES = ("things", "background")
# Suffixes of the files of an image's label map, and of the datasets that use them.
_SEM_SEG = "_sem_seg"
_NOISY = "_noisy_sem_seg"
_STUFF = "_stuff"
# Lengths are in units of one pixel, or of four pixels in the large splits.
_LARGE = 4
_SIZE = 128  # height and width of an image
# Margin of the canvas, because the visible part is compared with the whole object.
_MARGIN = 80
_NUM_OBJECTS = (4, 12)
_DIAMETER = (14.0, 80.0)  # diameter of an object's circumscribed circle
_LARGE_DIAMETER = (16.0, 80.0)
_SAME_CLASS = 0.6  # probability that an object has the class of its cluster
_MIN_VISIBLE_FRACTION = 0.25
_MIN_VISIBLE_AREA = 30


@dataclass
class _Object:
    category: int
    center: np.ndarray  # (2,) float, x and y
    radius: float
    angle: float  # radians
    aspect: float  # in (0, 1]
    mask: np.ndarray  # (H, W) bool, the part inside the image, before occlusion


def _scale(split: str) -> int:
    """Returns the number of pixels per unit of length."""
    return _LARGE if split.startswith("large") else 1


def _outline(category: int, aspect: float) -> np.ndarray:
    """Returns corners (K, 2) of an upright object in the unit circle, for ``aspect`` in (0, 1]."""
    if category == _RECTANGLE:
        half_angle = np.arctan(aspect)
        turns = np.array([half_angle, np.pi - half_angle, np.pi + half_angle, -half_angle])
        return np.stack([np.cos(turns), np.sin(turns)], axis=1)
    if category == _STAR:
        turns = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
        # A star that is squeezed further is easily confused with a triangle.
        return np.stack([radii * np.cos(turns), radii * np.sin(turns) * (0.6 + 0.4 * aspect)], 1)
    num_corners = 3 if category == _TRIANGLE else 40
    turns = np.arange(num_corners) * 2 * np.pi / num_corners
    return np.stack([np.cos(turns), aspect * np.sin(turns)], axis=1)


def _draw(
    category: int, center: np.ndarray, radius: float, angle: float, aspect: float, scale: int
) -> np.ndarray:
    """Draws a mask, uint8 in {0, 1}, on the canvas with margins, 288 units high and wide."""
    cos, sin = np.cos(angle), np.sin(angle)
    corners = _outline(category, aspect) @ np.array([[cos, sin], [-sin, cos]])
    corners = (corners * radius + center + _MARGIN) * scale * 16  # 4 fractional bits
    canvas = np.zeros(((_SIZE + 2 * _MARGIN) * scale,) * 2, dtype=np.uint8)
    cv2.fillPoly(canvas, [np.rint(corners).astype(np.int32)], 1, shift=4)
    return canvas


def _place(rng: np.random.Generator, scale: int) -> Tuple[List[_Object], np.ndarray]:
    """Places the objects of one image.

    An object is sampled again if it would be nearly invisible, or would make an earlier object
    nearly invisible. Thus everything that is visible in the image is annotated.

    Returns:
        The objects from back to front, and the map (H, W) int of the visible object per pixel, -1
        where there is none.
    """
    num_objects = rng.integers(_NUM_OBJECTS[0], _NUM_OBJECTS[1] + 1)
    num_clusters = rng.integers(1, 4)
    cluster_classes = rng.integers(0, len(SHAPES_CLASSES), num_clusters)
    cluster_centers = rng.uniform(0.2 * _SIZE, 0.8 * _SIZE, (num_clusters, 2))
    members: List[List[int]] = [[] for _ in range(num_clusters)]

    objects: List[_Object] = []
    whole_areas: List[int] = []
    owner = np.full((_SIZE * scale, _SIZE * scale), -1)
    inside = slice(_MARGIN * scale, (_MARGIN + _SIZE) * scale)
    diameters = np.log(_DIAMETER if scale == 1 else _LARGE_DIAMETER)
    attempts = 0
    while len(objects) < _NUM_OBJECTS[0] or (len(objects) < num_objects and attempts < 60):
        attempts += 1
        cluster = rng.integers(num_clusters)
        same_class = rng.random() < _SAME_CLASS
        category = int(cluster_classes[cluster] if same_class else rng.integers(4))
        radius = 0.5 * np.exp(rng.uniform(*diameters))
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

        canvas = _draw(category, center, radius, angle, aspect, scale)
        mask = canvas[inside, inside].astype(bool)
        candidate_owner = np.where(mask, len(objects), owner)
        candidate_areas = np.array(whole_areas + [cv2.countNonZero(canvas)])
        visible = np.bincount(candidate_owner.ravel() + 1, minlength=len(objects) + 2)[1:]
        needed = np.maximum(_MIN_VISIBLE_AREA * scale**2, _MIN_VISIBLE_FRACTION * candidate_areas)
        if (visible < needed).any():
            continue
        members[cluster].append(len(objects))
        objects.append(_Object(category, center, radius, angle, aspect, mask))
        whole_areas.append(candidate_areas[-1])
        owner = candidate_owner
    return objects, owner


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Renders a cloudy background with a brightness ramp, (size, size, 3) float32, about 0–255."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    turn = rng.uniform(0, 2 * np.pi)
    ramp = (np.cos(turn) * x + np.sin(turn) * y)[:, :, None]
    image = rng.uniform(60, 190, 3) + ramp * rng.uniform(-60, 60, 3)
    for cells, amplitude in ((5, 18.0), (24, 7.0)):
        coarse = rng.standard_normal((cells, cells, 3), dtype=np.float32) * amplitude
        image += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return image.astype(np.float32)


def _texture(obj: _Object, x: np.ndarray, y: np.ndarray, phase: float) -> np.ndarray:
    """Computes the brightness factor, around 1, of the class's texture, (h, w) float32.

    Args:
        obj: the object.
        x: horizontal positions relative to the object's center, broadcastable to (h, w).
        y: vertical positions relative to the object's center, broadcastable to (h, w).
        phase: phase of the pattern in radians.
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
    """Samples base colors (num_objects, 3) in 50–240 that differ enough from each other."""
    colors = np.empty((num_objects, 3))
    for i in range(num_objects):
        candidates = rng.uniform(50, 240, (8, 3))
        distances = np.linalg.norm(candidates[:, None] - colors[None, :i], axis=2)  # (8, i)
        colors[i] = candidates[distances.min(axis=1, initial=1e3).argmax()]
    return colors


def _paint(rng: np.random.Generator, objects: List[_Object], scale: int) -> np.ndarray:
    """Paints the objects from back to front; RGB (H, W, 3) uint8."""
    image = _background(rng, _SIZE * scale)
    kernel = np.ones((3, 3), dtype=np.uint8)
    for obj, color in zip(objects, _colors(rng, len(objects))):
        x0, y0, width, height = cv2.boundingRect(obj.mask.astype(np.uint8))
        window = slice(y0, y0 + height), slice(x0, x0 + width)
        mask = obj.mask[window]
        x = np.arange(x0, x0 + width, dtype=np.float32)[None, :] / scale
        y = np.arange(y0, y0 + height, dtype=np.float32)[:, None] / scale
        x, y = x - np.float32(obj.center[0]), y - np.float32(obj.center[1])
        phase, shade_x, shade_y = rng.uniform(0, 2 * np.pi), *rng.uniform(-0.12, 0.12, 2)
        brightness = _texture(obj, x, y, phase) + (shade_x * x + shade_y * y) / obj.radius
        # The constant border of cv2.erode counts as object, so that no outline is drawn where the
        # image boundary cuts the object off.
        core = cv2.erode(obj.mask.astype(np.uint8), kernel)[window].astype(bool)
        brightness = np.where(core, brightness, 0.4 * brightness)
        image[window][mask] = (brightness[:, :, None] * color)[mask]
    image = cv2.GaussianBlur(image, (3, 3), 0.5)
    image += rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(4, 9)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _arrange(split: str, index: int) -> Tuple[List[_Object], np.ndarray]:
    # Placement and paint have their own generators, so that annotations do not need the paint.
    rng = np.random.default_rng([_SEED, list(SHAPES_SPLITS).index(split), index, 0])
    return _place(rng, _scale(split))


def render_shapes(split: str, index: int) -> np.ndarray:
    """Renders one image, which is the same in every process.

    Args:
        split: a key of ``SHAPES_SPLITS``.
        index: 0 … ``SHAPES_SPLITS[split]`` - 1.

    Returns:
        RGB image (128, 128, 3) uint8, or (512, 512, 3) for a large split.
    """
    objects, _ = _arrange(split, index)
    rng = np.random.default_rng([_SEED, list(SHAPES_SPLITS).index(split), index, 1])
    return _paint(rng, objects, _scale(split))


def _sem_seg(split: str, index: int, suffix: str = _SEM_SEG) -> np.ndarray:
    """Renders the label map (H, W) uint8.

    Labels are indices into ``SHAPES_SEM_SEG_CLASSES``, or with the suffix ``_STUFF`` into
    ``SHAPES_STUFF_CLASSES``.
    """
    objects, owner = _arrange(split, index)
    if suffix == _STUFF:
        return (owner < 0).astype(np.uint8)
    # The last entry is the label of owner -1, the background.
    classes = np.array([1 + obj.category for obj in objects] + [0], np.uint8)
    if suffix == _SEM_SEG:
        return classes[owner]
    rng = np.random.default_rng([_SEED, list(SHAPES_SPLITS).index(split), index, 2])
    return corrupt_labels(classes[owner], rng, _scale(split))


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
            "segmentation": {"size": list(owner.shape), "counts": rle["counts"].decode("ascii")},
        }
        for obj, rle, box in zip(objects, rles, boxes)
    ]


@functools.lru_cache(maxsize=None)
def _load_pickled(split: str) -> bytes:
    return pickle.dumps(
        [
            {
                "file_name": _file_name(split, index),
                "height": _SIZE * _scale(split),
                "width": _SIZE * _scale(split),
                "image_id": index,
                "annotations": _annotate(split, index),
            }
            for index in range(SHAPES_SPLITS[split])
        ]
    )


def load_shapes(split: str) -> List[Dict[str, Any]]:
    """Loads the dataset dicts of one split in Detectron2's standard format.

    Each has ``file_name`` (which only Detectron2's ``PathManager`` can open), ``height``,
    ``width``, ``image_id`` and ``annotations`` with the visible masks as compressed RLE, from back
    to front. Annotations are generated once per process, and every call returns a new copy.

    Args:
        split: a key of ``SHAPES_SPLITS``.
    """
    return pickle.loads(_load_pickled(split))


def load_shapes_panoptic(split: str) -> List[Dict[str, Any]]:
    """Loads the dicts of :func:`load_shapes` with ``sem_seg_file_name``.

    Labels are indices into ``SHAPES_STUFF_CLASSES``.
    """
    return [
        {**record, "sem_seg_file_name": _file_name(split, index, _STUFF)}
        for index, record in enumerate(load_shapes(split))
    ]


def load_shapes_sem_seg(split: str, noisy: bool = False) -> List[Dict[str, Any]]:
    """Loads the dataset dicts of one split with ``sem_seg_file_name`` in place of annotations.

    Labels are indices into ``SHAPES_SEM_SEG_CLASSES``.

    Args:
        split: a key of ``SHAPES_SPLITS``.
        noisy: whether maps have holes and ragged boundaries, see :func:`corrupt_labels`.
    """
    suffix = _NOISY if noisy else _SEM_SEG
    return [
        {
            "file_name": _file_name(split, index),
            "sem_seg_file_name": _file_name(split, index, suffix),
            "height": _SIZE * _scale(split),
            "width": _SIZE * _scale(split),
            "image_id": index,
        }
        for index in range(SHAPES_SPLITS[split])
    ]


def _file_name(split: str, index: int, suffix: str = "") -> str:
    return f"{_PREFIX}{split}/{index:06d}{suffix}.png"


def _encode(split: str, index: int, suffix: str) -> bytes:
    return encoded(_sem_seg(split, index, suffix) if suffix else render_shapes(split, index))


# All small images together take 85 MB, as much as a hundred large ones.
_encode_once = functools.lru_cache(
    maxsize=sum(size for split, size in SHAPES_SPLITS.items() if _scale(split) == 1)
)(_encode)


def _open(path: str) -> bytes:
    """Renders the content of a file such as ``train/000012.png``."""
    split, _, name = path.partition("/")
    stem = name[: -len(".png")]
    suffix = next((end for end in (_NOISY, _SEM_SEG, _STUFF) if stem.endswith(end)), "")
    stem = stem.removesuffix(suffix)
    index = int(stem) if stem.isdecimal() else -1
    known = 0 <= index < SHAPES_SPLITS.get(split, 0)
    if not known or _PREFIX + path != _file_name(split, index, suffix):
        allowed = " or ".join(
            f"{_file_name(split, 0)} … {size - 1:06d}.png" for split, size in SHAPES_SPLITS.items()
        )
        raise FileNotFoundError(f"{_PREFIX}{path}: no such image; allowed: {allowed}")
    encode = _encode_once if _scale(split) == 1 else _encode
    return encode(split, index, suffix)


serve_pictures(_PREFIX, _open)
for _split in SHAPES_SPLITS:
    DatasetCatalog.register(f"shapes_{_split}", functools.partial(load_shapes, _split))
    MetadataCatalog.get(f"shapes_{_split}").set(
        thing_classes=list(SHAPES_CLASSES), evaluator_type="coco"
    )
    DatasetCatalog.register(
        f"shapes_{_split}_sem_seg", functools.partial(load_shapes_sem_seg, _split)
    )
    MetadataCatalog.get(f"shapes_{_split}_sem_seg").set(
        stuff_classes=list(SHAPES_SEM_SEG_CLASSES), ignore_label=255, evaluator_type="sem_seg"
    )
for _split in ("train", "large_train"):
    DatasetCatalog.register(
        f"shapes_{_split}{_NOISY}", functools.partial(load_shapes_sem_seg, _split, noisy=True)
    )
    MetadataCatalog.get(f"shapes_{_split}{_NOISY}").set(
        stuff_classes=list(SHAPES_SEM_SEG_CLASSES), ignore_label=255, evaluator_type="sem_seg"
    )
for _split in ("train", "val"):
    DatasetCatalog.register(
        f"shapes_{_split}_panoptic", functools.partial(load_shapes_panoptic, _split)
    )
    MetadataCatalog.get(f"shapes_{_split}_panoptic").set(
        thing_classes=list(SHAPES_CLASSES),
        stuff_classes=list(SHAPES_STUFF_CLASSES),
        ignore_label=255,
        # Detectron2's own training script has evaluators for this type.
        evaluator_type="coco",
    )
