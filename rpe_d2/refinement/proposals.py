"""Refined label maps as the network proposes them, in windows around boundaries."""

from typing import Callable, Iterator, NamedTuple, Optional, Tuple

import numpy as np

from .label_geometry import (
    boundary_distance,
    boundary_pixels,
    color_labels,
    compact_labels,
    nearest_labels,
)

__all__ = [
    "MARGIN",
    "Proposal",
    "Run",
    "classes_present",
    "propose_labels",
    "propose_probabilities",
]

# Cores of windows, and what is seen around them, in pixels.
CORE, MARGIN = 512, 32
# Classes that are less probable everywhere in a window are not propagated.
_LEAST_PROBABILITY = 0.01

# Propagates maps (K, h, w) float32 that sum to 1 over an image (h, w, 3) uint8. Further arguments:
# the distance (h, w) to the given boundaries, and how certain the given labels are, (h, w) in 0-1.
# The second result (h, w) float32 is how probable it is that the given label of a pixel is right.
Run = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Tuple[np.ndarray, np.ndarray]]


class Proposal(NamedTuple):
    """A refined label map, before its changes are accepted.

    Attributes:
        labels: (H, W) integers.
        given: (H, W) float32, how probable the given label of each pixel is now.
        best: (H, W) float32, how probable the proposed label is.
        trust: (H, W) float32, how probable it is that the given label is right.
        distance: (H, W) float32, distance to the given boundaries in pixels, infinite where it was
            not computed.
        maps: (K, H, W) float32 refined probabilities, or None for label maps.
    """

    labels: np.ndarray
    given: np.ndarray
    best: np.ndarray
    trust: np.ndarray
    distance: np.ndarray
    maps: Optional[np.ndarray] = None


def propose_labels(run: Run, image: np.ndarray, labels: np.ndarray, max_shift: float) -> Proposal:
    """Refines a label map. The time depends on the length of the boundaries.

    Labels of the same color are propagated in one map, see :func:`color_labels`.

    Args:
        run: the network.
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers.
        max_shift: pixels farther from the given boundaries do not change, and a pixel only gets a
            label that is not farther away.
    """
    proposed = labels.copy()
    given, best, trust = (np.ones(labels.shape, np.float32) for _ in range(3))
    far_away = np.full(labels.shape, np.inf, np.float32)
    for window, core, inner in _windows(labels, max_shift):
        part = labels[window]
        _, indices = compact_labels(part)
        colors, count = color_labels(indices, 2 * max_shift)
        own = colors[indices]
        maps = (own == np.arange(count)[:, None, None]).astype(np.float32)
        distance = boundary_distance(part)
        maps, right = run(image[window], distance, np.ones_like(distance), maps)
        wanted = maps.argmax(axis=0)
        changed = (wanted != own) & (distance <= max_shift)
        found, far = nearest_labels(part, own, changed, wanted[changed])
        changed[changed] = far <= max_shift
        new = part.copy()
        new[changed] = found[far <= max_shift]
        of_given = np.take_along_axis(maps, own[None], axis=0)[0]
        of_given[distance > max_shift] = 1.0
        proposed[core] = new[inner]
        given[core] = of_given[inner]
        best[core] = np.where(changed, maps.max(axis=0), of_given)[inner]
        trust[core], far_away[core] = right[inner], distance[inner]
    return Proposal(proposed, given, best, trust, far_away)


def propose_probabilities(
    run: Run, image: np.ndarray, maps: np.ndarray, max_shift: float
) -> Proposal:
    """Refines probabilities near the boundaries of the most probable classes.

    Args:
        run, image, max_shift: as for :func:`propose_labels`.
        maps: (K, H, W) float32 that sum to 1.
    """
    labels = maps.argmax(axis=0)
    refined = maps.copy()
    trust = np.ones(labels.shape, np.float32)
    far_away = np.full(labels.shape, np.inf, np.float32)
    for window, core, inner in _windows(labels, max_shift):
        part = maps[(slice(None), *window)]
        distance = boundary_distance(labels[window])
        present, among_present = classes_present(part)
        new = part.copy()
        found, right = run(image[window], distance, among_present.max(axis=0), among_present)
        new[present] = found * part[present].sum(axis=0)  # the others keep their share
        new = np.where(distance <= max_shift, new, part)
        refined[(slice(None), *core)] = new[(slice(None), *inner)]
        trust[core], far_away[core] = right[inner], distance[inner]
    of_given = np.take_along_axis(refined, labels[None], axis=0)[0]
    best = refined.max(axis=0)
    return Proposal(refined.argmax(axis=0), of_given, best, trust, far_away, refined)


def classes_present(maps: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Selects the classes that are propagated.

    Args:
        maps: (K, H, W) float32 that sum to 1.

    Returns:
        (K,) bool, and the probabilities of these classes among themselves, which sum to 1.
    """
    present = maps.max(axis=(1, 2)) >= _LEAST_PROBABILITY
    present[np.unique(maps.argmax(axis=0))] = True  # so that every pixel has a class
    selected = maps[present]
    return present, selected / selected.sum(axis=0)


def _windows(
    labels: np.ndarray, max_shift: float
) -> Iterator[Tuple[Tuple[slice, slice], Tuple[slice, slice], Tuple[slice, slice]]]:
    """Returns windows around the boundaries: what the network sees, the core, and its place there.

    A window of the image without a boundary is left out, and others are cut to their boundaries.
    """
    near = boundary_pixels(labels)
    reach = int(np.ceil(max_shift))
    height, width = labels.shape
    for top in range(0, height, CORE):
        for left in range(0, width, CORE):
            tile = (slice(top, min(height, top + CORE)), slice(left, min(width, left + CORE)))
            # Pixels of the tile may change because of a boundary beside it.
            around = tuple(slice(max(0, part.start - reach), part.stop + reach) for part in tile)
            y, x = np.nonzero(near[around])
            if len(y) == 0:
                continue
            core = tuple(
                slice(
                    max(part.start, first + int(places.min()) - reach),
                    min(part.stop, first + int(places.max()) + reach + 1),
                )
                for part, first, places in zip(tile, (around[0].start, around[1].start), (y, x))
            )
            window = tuple(
                slice(max(0, part.start - MARGIN), min(side, part.stop + MARGIN))
                for part, side in zip(core, labels.shape)
            )
            inner = tuple(
                slice(part.start - seen.start, part.stop - seen.start)
                for part, seen in zip(core, window)
            )
            yield window, core, inner
