"""Which of the proposed changes of a label map are made, so that no object is harmed."""

import itertools
from typing import Callable, NamedTuple, Tuple

import numpy as np

from .proposals import Proposal

__all__ = ["Accept", "Accepted", "accept_changes", "change_regions", "region_features"]

# Pixels near a boundary are at most this far from it. Larger distances than the second number are
# not distinguished.
_NEAR, _FARTHEST = 2.0, 32.0

Accept = Callable[[np.ndarray], np.ndarray]


class Accepted(NamedTuple):
    """A label map with the accepted changes.

    Attributes:
        labels: (H, W) integers.
        regions_changed, regions_kept: numbers of connected regions of one given and one proposed
            label, which were changed, or kept their given label.
    """

    labels: np.ndarray
    regions_changed: int
    regions_kept: int


def change_regions(given: np.ndarray, proposed: np.ndarray) -> np.ndarray:
    """Divides the changes into connected regions of one given and one proposed label.

    Args:
        given, proposed: (H, W) integers from 0.

    Returns:
        (H, W) integers, 0 where nothing changes.
    """
    from skimage.measure import label as connected_regions  # slow to import

    changed = given != proposed
    pairs = np.zeros(given.shape, np.int64)
    pairs[changed] = given[changed] * (int(proposed.max()) + 1) + proposed[changed] + 1
    return connected_regions(pairs, background=0, connectivity=1)


def region_features(
    given: np.ndarray, proposal: Proposal, regions: np.ndarray, background: int
) -> np.ndarray:
    """Describes each region of changes, its object and the image.

    Args:
        given: (H, W) integers from 0.
        proposal: what is proposed.
        regions: (H, W), result of :func:`change_regions`.
        background: the label that is no object, or -1.

    Returns:
        (R, F) float32 in the order of ``REGION_FEATURES``: the means over the region of the gain
        (how much more probable the new label is), of the new label's probability, of one minus the
        trust, and of the distance to the given boundary; the logarithm of its area. For its object
        and for the image: the number of changed pixels relative to that of pixels within 2 pixels
        of a boundary, their mean gain, and the mean trust near the boundaries. The object of a
        region is the new one, or the given one where that is the background.
    """
    count = int(max(given.max(), proposal.labels.max())) + 1
    flat = regions.ravel()
    changed = flat > 0
    inside = flat[changed] - 1
    number = int(flat.max(initial=0))
    areas = np.maximum(1, np.bincount(inside, minlength=number))

    def means(values: np.ndarray) -> np.ndarray:
        return np.bincount(inside, values.ravel()[changed], number) / areas

    gain = proposal.best - proposal.given
    new = proposal.labels.ravel()[changed]
    objects = np.where(new != background, new, given.ravel()[changed])
    object_of_region = np.zeros(number, np.int64)
    object_of_region[inside] = objects
    near = proposal.distance <= _NEAR
    near_objects, near_trust = given[near], proposal.trust[near]
    band = np.maximum(1, np.bincount(near_objects, minlength=count))
    pixels = np.bincount(objects, minlength=count)
    changed_gain = gain.ravel()[changed]
    of_objects = (
        pixels / band,
        np.bincount(objects, changed_gain, count) / np.maximum(1, pixels),
        np.bincount(near_objects, near_trust, count) / band,
    )
    of_image = (
        len(inside) / max(1, len(near_trust)),
        changed_gain.mean() if len(inside) else 0.0,
        near_trust.mean() if len(near_trust) else 1.0,
    )
    features = [
        means(gain),
        means(proposal.best),
        means(1 - proposal.trust),
        np.log(areas),
        means(np.minimum(proposal.distance, _FARTHEST)),
        *(values[object_of_region] for values in of_objects),
        *(np.full(number, value) for value in of_image),
    ]
    return np.stack(features, axis=1).astype(np.float32)


def accept_changes(
    given: np.ndarray, proposal: Proposal, accept: Accept, background: int, may_split: bool
) -> Accepted:
    """Makes the changes that are probably right.

    Args:
        given: (H, W) integers from 0.
        proposal: what is proposed.
        accept: decides by the features (R, F) of regions, (R,) bool.
        background: the label that is no object, or -1.
        may_split: whether objects may vanish, and fall into more parts than they had.
    """
    regions = change_regions(given, proposal.labels)
    taken = accept(region_features(given, proposal, regions, background))
    accepted = np.concatenate([[False], taken])
    labels = np.where(accepted[regions], proposal.labels, given)
    # First pixels are taken back that are apart from their object, and then whatever harms one.
    number = _parts(given, int(given.max()) + 1).number if not may_split else None
    for attempt in itertools.count() if not may_split else ():
        harmed, apart = _harmed(number, labels, background)
        if not len(harmed):
            break
        touched = labels != given
        if attempt == 0 and (touched & apart).any():
            touched &= apart
        else:
            touched &= np.isin(given, harmed) | np.isin(labels, harmed)
        accepted[np.unique(regions[touched])] = False
        labels = np.where(accepted[regions], proposal.labels, given)
    return Accepted(labels, int(accepted.sum()), int(len(taken) - accepted.sum()))


def _harmed(
    before: np.ndarray, labels: np.ndarray, background: int
) -> Tuple[np.ndarray, np.ndarray]:
    """Returns the objects that are in more connected parts than before, or have vanished.

    Args:
        before: (N,) number of connected parts that each object had.
        labels: (H, W) integers.
        background: the label that is no object, or -1.

    Returns:
        The objects, and the smaller parts (H, W) bool of those that are in more parts.
    """
    after = _parts(labels, len(before))
    harmed = (after.number > before) | ((before > 0) & (after.number == 0))
    if background >= 0:
        harmed[background] = False
    return np.flatnonzero(harmed), harmed[labels] & ~after.is_largest[after.regions]


class _Parts(NamedTuple):
    """The connected parts (H, W) of a label map, and the number (N,) of parts of each label."""

    regions: np.ndarray
    number: np.ndarray
    is_largest: np.ndarray


def _parts(labels: np.ndarray, count: int) -> _Parts:
    from skimage.measure import label as connected_regions  # slow to import

    regions = connected_regions(labels, background=-1, connectivity=2) - 1
    areas = np.bincount(regions.ravel())
    label = np.empty(len(areas), labels.dtype)
    label[regions.ravel()] = labels.ravel()
    order = np.lexsort((-areas, label))
    is_largest = np.zeros(len(areas), bool)
    is_largest[order[np.unique(label[order], return_index=True)[1]]] = True
    return _Parts(regions, np.bincount(label, minlength=count), is_largest)
