"""Simple ways to make label maps smoother or to fit them to an image, to compare a refiner with.

Each maps an image (H, W, 3) uint8 RGB and a label map (H, W) int32 to a label map. Each has one
parameter, which is chosen on training data.
"""

from typing import Callable, Dict, List, NamedTuple

import cv2
import numpy as np

from rpe_d2.evaluation import DenseCRF
from rpe_d2.refinement.label_geometry import boundary_distance, color_labels, nearest_labels

# No pixel farther than this from the given boundaries changes, as with the refiner.
_MAX_SHIFT = 8.0


class Opponent(NamedTuple):
    """A method and the values of its parameter that are tried."""

    maps: Callable[[np.ndarray, np.ndarray, float], np.ndarray]
    values: List[float]


def apply(method: Opponent, value: float, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Refines a label map. Labels of the same color share a map, as in the refiner."""
    values, indices = np.unique(labels, return_inverse=True)
    indices = indices.reshape(labels.shape)
    colors, count = color_labels(indices, 2 * _MAX_SHIFT)
    own = colors[indices]
    maps = (own == np.arange(count)[:, None, None]).astype(np.float32)
    wanted = method.maps(image, maps, value).argmax(axis=0)
    changed = (wanted != own) & (boundary_distance(labels) <= _MAX_SHIFT)
    found, far = nearest_labels(indices, own, changed, wanted[changed])
    changed[changed] = far <= _MAX_SHIFT
    result = indices.copy()
    result[changed] = found[far <= _MAX_SHIFT]
    return values[result].astype(labels.dtype)


def gaussian(image: np.ndarray, maps: np.ndarray, sigma: float) -> np.ndarray:
    """Blurs the map of each label."""
    return np.stack([cv2.GaussianBlur(one, (0, 0), sigma) for one in maps])


def median(image: np.ndarray, maps: np.ndarray, radius: float) -> np.ndarray:
    """Takes the most frequent label of a square; for two labels this is the median."""
    side = 2 * int(radius) + 1
    return np.stack([cv2.blur(one, (side, side)) for one in maps])


def guided_filter(image: np.ndarray, maps: np.ndarray, epsilon: float) -> np.ndarray:
    """Filters the map of each label with the image as the guide (He et al., ECCV 2010)."""
    guide = np.ascontiguousarray(image, np.float32) / 255
    return np.stack([cv2.ximgproc.guidedFilter(guide, one, 4, epsilon) for one in maps])


def random_walker(image: np.ndarray, maps: np.ndarray, beta: float) -> np.ndarray:
    """Starts random walks from the pixels that are not near a boundary (Grady, PAMI 2006)."""
    from skimage.segmentation import random_walker as walk

    labels = maps.argmax(axis=0) + 1
    seeds = np.where(boundary_distance(labels) > 2, labels, 0)
    present = np.unique(seeds[seeds > 0])
    if len(present) < 2 or (seeds > 0).all():
        return maps
    order = np.zeros(len(maps) + 1, np.int32)
    order[present] = np.arange(1, len(present) + 1)
    found = walk(image / 255.0, order[seeds], beta=beta, mode="cg_j", channel_axis=-1)
    result = np.zeros_like(maps)
    result[
        np.where(found > 0, present[np.maximum(found, 1) - 1], labels) - 1
        == np.arange(len(maps))[:, None, None]
    ] = 1
    return result


def dense_crf(image: np.ndarray, maps: np.ndarray, color: float) -> np.ndarray:
    """Infers a fully connected CRF whose unary terms are the given labels."""
    certain = 0.7 * maps + 0.3 / len(maps)
    return DenseCRF(position=20.0, color=color)(image, certain)


OPPONENTS: Dict[str, Opponent] = {
    "gaussian": Opponent(gaussian, [1.0, 2.0, 4.0]),
    "median": Opponent(median, [1, 2, 4]),
    "guided_filter": Opponent(guided_filter, [1e-4, 1e-3, 1e-2]),
    "random_walker": Opponent(random_walker, [50, 500, 5000]),
    "dense_crf": Opponent(dense_crf, [5.0, 13.0, 30.0]),
}
