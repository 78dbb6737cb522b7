"""Which of the proposed changes of a label map are made, so that no object is harmed."""

import itertools
from typing import NamedTuple, Tuple

import numpy as np

from .label_geometry import region_means
from .proposals import Proposal

__all__ = ["Accepted", "accept_changes", "change_regions"]


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


def change_regions(
    given: np.ndarray, proposed: np.ndarray, gain: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Divides the changes into connected regions of one given and one proposed label.

    Args:
        given, proposed: (H, W) integers from 0.
        gain: (H, W) float32, how much more probable the proposed label is.

    Returns:
        Regions (H, W) integers, 0 where nothing changes, and the mean gain (R + 1,) of each.
    """
    from skimage.measure import label as connected_regions  # slow to import

    changed = given != proposed
    pairs = np.zeros(given.shape, np.int64)
    pairs[changed] = given[changed] * (int(proposed.max()) + 1) + proposed[changed] + 1
    regions = connected_regions(pairs, background=0, connectivity=1)
    means = region_means(regions, gain)
    means[0] = 0.0
    return regions, means


def accept_changes(
    given: np.ndarray, proposal: Proposal, least_gain: float, background: int, may_split: bool
) -> Accepted:
    """Makes the changes that are more probable than what was given.

    Args:
        given: (H, W) integers from 0.
        proposal: what is proposed.
        least_gain: a region changes if the mean of its gain is larger.
        background: the label that is no object, or -1.
        may_split: whether objects may vanish, and fall into more parts than they had.
    """
    regions, gains = change_regions(given, proposal.labels, proposal.best - proposal.given)
    accepted = gains > least_gain
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
    return Accepted(labels, int(accepted.sum()), int(len(gains) - 1 - accepted.sum()))


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
