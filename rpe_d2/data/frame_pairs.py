"""Pairs of video frames made from a still: layers that move, and light that changes.

Temporal propagation is first trained on such pairs (Liu et al., ECCV 2018). A still is cut into
layers by its label map, the layers move against each other, and each moves by a random affine map
and a thin plate spline. The key frame is the still.
"""

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import cv2
import numpy as np

__all__ = ["Frame", "FramePair", "Layer", "change_light", "make_frame_pair", "occluded", "render"]

# Regions of a label map that become layers: their shares of the picture, the smallest of each and
# the largest of all together, and their number.
_SMALLEST, _LARGEST, _MOST_LAYERS = 0.01, 0.5, 3
_UNKNOWN = 255
# Largest motion: of the whole picture and of layers as a share of the window, rotation in radians,
# logarithm of the scale, shear, and the deviation of the spline's control points.
_SHIFT, _ROTATION, _SCALE, _SHEAR, _BEND = 0.1, 0.1, 0.08, 0.04, 0.015
_CONTROL_POINTS = 4  # in each direction
_WEAKEST = 0.05  # smallest motion as a share of the largest
# How often nothing moves but layers.
_STILL_CAMERA = 0.3
# Largest changes of gain and gamma, and of the standard deviation of noise in gray levels.
_GAIN, _GAMMA, _NOISE = 0.15, 0.15, 2.0


@dataclass(frozen=True)
class Layer:
    """A part of a scene that moves as one.

    Attributes:
        picture: (H, W, 3) float32 RGB, 0 to 255. It is defined behind the layers in front.
        mask: (H, W) float32 in 0-1, how far the layer covers a pixel. The first layer covers all.
    """

    picture: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Frame:
    """A frame of a scene.

    Attributes:
        picture: (h, w, 3) float32 RGB, 0 to 255.
        shares: (L, h, w) float32 in 0-1, how far each layer is visible. They sum to 1.
        owner: (h, w) int64, the layer in front.
        place: (h, w, 2) float32 x and y in the still, what is seen of that layer.
    """

    picture: np.ndarray
    shares: np.ndarray
    owner: np.ndarray
    place: np.ndarray


@dataclass(frozen=True)
class FramePair:
    """Two frames of a scene.

    Attributes:
        key, target: the frames.
        occluded: (h, w) bool, pixels of the target that the key frame does not show.
    """

    key: Frame
    target: Frame
    occluded: np.ndarray


def make_frame_pair(
    image: np.ndarray,
    labels: Optional[np.ndarray],
    size: Sequence[int],
    random: np.random.Generator,
    centered: bool = False,
) -> FramePair:
    """Makes a pair of frames from a still.

    What leaves and enters is what the still shows outside the window, and reflections beyond.

    Args:
        image: (H, W, 3) RGB, 0 to 255.
        labels: (H, W) labels of regions, 255 where unknown. None: a region of random shape moves,
            and shows the image upside down.
        size: height and width of the frames.
        random: source of random numbers.
        centered: whether the window is the center of the image, instead of a random one.
    """
    height, width = size
    free = [whole - part for whole, part in zip(image.shape[:2], size)]
    if centered:
        top, left = (side // 2 for side in free)
    else:
        top, left = (int(random.integers(side + 1)) if side > 0 else side // 2 for side in free)
    # Only the surroundings of the window can become visible.
    margin = int(np.ceil(0.4 * max(size)))
    rows = slice(max(0, top - margin), max(0, top + height + margin))
    columns = slice(max(0, left - margin), max(0, left + width + margin))
    still = np.ascontiguousarray(image[rows, columns], dtype=np.float32)
    cut = None if labels is None else labels[rows, columns]
    layers = _layers(still, cut, random)

    x, y = np.meshgrid(np.arange(width), np.arange(height))
    grid = np.stack([x + left - columns.start, y + top - rows.start], axis=2).astype(np.float32)
    key = render(layers, [grid] * len(layers))
    target = render(layers, _moved(grid, len(layers), random))
    return FramePair(key, target, occluded(target, key, grid[0, 0]))


def render(layers: Sequence[Layer], places: Sequence[np.ndarray]) -> Frame:
    """Renders layers, the last one in front, with bilinear interpolation and reflected borders.

    Args:
        layers: L layers of one size.
        places: L maps (h, w, 2) float32, the x and y of the layer that every pixel shows.
    """
    picture = _sampled(layers[0].picture, places[0])
    shares = [np.ones(picture.shape[:2], np.float32)]
    owner = np.zeros(picture.shape[:2], np.int64)
    place = places[0].copy()
    for number in range(1, len(layers)):
        share = _sampled(layers[number].mask, places[number])
        pixels = _sampled(layers[number].picture, places[number])
        picture += share[:, :, None] * (pixels - picture)
        shares = [own * (1 - share) for own in shares] + [share]
        in_front = share >= 0.5
        owner[in_front] = number
        place[in_front] = places[number][in_front]
    return Frame(picture, np.stack(shares), owner, place)


def occluded(target: Frame, key: Frame, origin: Sequence[float]) -> np.ndarray:
    """Finds the pixels of a frame that the key frame does not show, (h, w) bool.

    They are outside the key frame, or another layer is in front of them there.

    Args:
        target: the frame.
        key: the key frame, whose layers have not moved.
        origin: x and y in the still of the key frame's first pixel.
    """
    column, row = (
        np.rint(target.place - np.asarray(origin, np.float32)).astype(int).transpose(2, 0, 1)
    )
    height, width = key.owner.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    seen = key.owner[row.clip(0, height - 1), column.clip(0, width - 1)]
    return ~inside | (seen != target.owner)


def change_light(
    pictures: Sequence[np.ndarray], random: np.random.Generator, gain: float = 1.0
) -> List[np.ndarray]:
    """Shows pictures as a camera does: in different light, with noise, and clipped at white.

    Args:
        pictures: (h, w, 3) RGB, 0 to 255. The light of the first one does not change.
        random: source of random numbers.
        gain: exposure of all pictures.

    Returns:
        Pictures of the same shapes, float32 from 0 to 255.
    """
    noise = random.uniform(0, _NOISE)
    shown = []
    for number, picture in enumerate(pictures):
        light = np.maximum(picture * (gain / 255), 0)
        if number > 0:
            gamma, level = 1 + random.uniform(-1, 1, 2) * (_GAMMA, _GAIN)
            light = light**gamma * level * _ramp(picture.shape[:2], random)
        shown_picture = 255 * light + noise * random.standard_normal(picture.shape, np.float32)
        shown.append(shown_picture.clip(0, 255).astype(np.float32))
    return shown


def _ramp(size: Sequence[int], random: np.random.Generator) -> np.ndarray:
    """Returns light (h, w, 1) that changes linearly from one side to the other."""
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in size)
    slopes = random.uniform(-_GAIN, _GAIN, 2) / 2
    return (1 + slopes[0] * y[:, None] + slopes[1] * x[None, :])[:, :, None]


def _sampled(picture: np.ndarray, place: np.ndarray) -> np.ndarray:
    return cv2.remap(picture, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _layers(
    still: np.ndarray, labels: Optional[np.ndarray], random: np.random.Generator
) -> List[Layer]:
    """Cuts a still into a background and the layers in front of it, at least one."""
    regions = [] if labels is None else _regions(labels, random)
    everywhere = np.ones(still.shape[:2], np.float32)
    if not regions:
        blob = _softened(_blob(still.shape[:2], random))
        upside_down = np.ascontiguousarray(still[::-1, ::-1])
        return [Layer(still, everywhere), Layer(upside_down, blob)]
    covered = np.any(regions, axis=0)
    background = Layer(_filled(still, covered), everywhere)
    return [background, *(Layer(still, _softened(region)) for region in regions)]


def _regions(labels: np.ndarray, random: np.random.Generator) -> List[np.ndarray]:
    """Chooses labels whose regions (H, W) bool become layers, the smallest one in front."""
    found, counts = np.unique(labels[labels != _UNKNOWN], return_counts=True)
    shares = dict(zip(found.tolist(), (counts / labels.size).tolist()))
    chosen: List[int] = []
    total = 0.0
    for label in random.permutation(found).tolist():
        share = shares[label]
        if share >= _SMALLEST and total + share <= _LARGEST and len(chosen) < _MOST_LAYERS:
            chosen.append(label)
            total += share
    return [labels == label for label in sorted(chosen, key=lambda label: -shares[label])]


def _blob(size: Sequence[int], random: np.random.Generator) -> np.ndarray:
    """Returns a region (H, W) bool of random, smooth shape."""
    coarse = random.standard_normal((6, 6), np.float32)
    smooth = cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return smooth > np.quantile(smooth, 1 - random.uniform(0.05, 0.3))


def _softened(region: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(region.astype(np.float32), (0, 0), 0.7)


def _filled(still: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Shows what may be behind covered pixels: the nearest pixel that is not."""
    # Pixels at the boundary mix both sides.
    hidden = cv2.dilate(covered.astype(np.uint8), np.ones((5, 5), np.uint8))
    if hidden.all():
        return still
    _, nearest = cv2.distanceTransformWithLabels(
        hidden, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    pixel_of = np.zeros(nearest.max() + 1, np.int64)
    places = np.flatnonzero(hidden == 0)
    pixel_of[nearest.ravel()[places]] = places
    return still.reshape(-1, 3)[pixel_of[nearest]]


def _moved(grid: np.ndarray, count: int, random: np.random.Generator) -> List[np.ndarray]:
    """Samples the motion of the background and of the layers in front of it.

    Args:
        grid: (h, w, 2) x and y in the still where nothing moves.
        count: number of layers.

    Returns:
        Maps like ``grid``, one for each layer.
    """
    strength = random.uniform(_WEAKEST, 1)
    side = max(grid.shape[:2])
    center = grid.reshape(-1, 2).mean(axis=0)
    bends = _splines(grid, count, strength, side, random)
    camera = grid
    if random.random() >= _STILL_CAMERA:
        camera = _affine(grid, center, strength, side, random) + bends[0]
    moved = [camera]
    for bend in bends[1:]:
        moved.append(_affine(camera, center, strength, side, random) + bend)
    return [place.astype(np.float32) for place in moved]


def _affine(
    places: np.ndarray, center: np.ndarray, strength: float, side: int, random: np.random.Generator
) -> np.ndarray:
    """Applies a random affine map, nearly a similarity, about a center."""
    angle, scale, shear = random.uniform(-1, 1, 3) * (_ROTATION, _SCALE, _SHEAR) * strength
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.exp(scale) * np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]])
    shift = random.uniform(-1, 1, 2) * _SHIFT * strength * side
    return (places - center) @ matrix.T + center + shift


def _splines(
    grid: np.ndarray, count: int, strength: float, side: int, random: np.random.Generator
) -> np.ndarray:
    """Samples the displacements (count, h, w, 2) of thin plate splines."""
    from scipy.interpolate import RBFInterpolator  # slow to import

    height, width = grid.shape[:2]
    y, x = np.mgrid[0 : 1 : _CONTROL_POINTS * 1j, 0 : 1 : _CONTROL_POINTS * 1j]
    span = max(width - 1, 1), max(height - 1, 1)
    points = np.stack([x.ravel(), y.ravel()], axis=1) * span + grid[0, 0]
    bends = random.standard_normal((len(points), count * 2)) * _BEND * strength * side
    spline = RBFInterpolator(points / side, bends, kernel="thin_plate_spline")
    displacements = spline(grid.reshape(-1, 2) / side)  # (h w, count 2)
    return displacements.reshape(height, width, count, 2).transpose(2, 0, 1, 3)
