"""Objects of neighboring planes are linked one to one."""

import numpy as np
import pytest

from rpe_d2.inference.stitching import stitch_planes


def boxes(*places):
    """A plane (8, 30) with an object at columns start to stop for each place, 0 for none."""
    plane = np.zeros((8, 30), np.uint16)
    for number, place in enumerate(places, start=1):
        if place:
            plane[2:6, slice(*place)] = 10 * number
    return plane


def test_labels_follow_objects():
    planes = np.stack(
        [
            boxes((0, 10), (20, 28)),
            boxes((21, 29), (1, 11)),  # the other order
            boxes(),
            boxes((1, 11)),  # after a plane without it, an object is another one
        ]
    )
    first, second, third, fourth = stitch_planes(planes, 0.5)
    assert first[3, 5] == second[3, 5] == 1 and first[3, 25] == second[3, 25] == 2
    assert not third.any() and fourth[3, 5] == 3
    apart = stitch_planes(planes, 0.9)
    assert len(np.unique(apart)) == 6  # an IoU of 9 / 11 is not enough


def test_pairs_are_one_to_one_and_the_largest_iou_first():
    planes = np.stack([boxes((0, 20)), boxes((0, 12), (12, 20))])
    below, above = stitch_planes(planes, 0.3)
    assert above[3, 5] == below[3, 5] == 1 and above[3, 15] == 2
    merged = stitch_planes(planes[::-1], 0.3)
    assert merged[1, 3, 5] == merged[0, 3, 5] and merged[0, 3, 15] not in merged[1]


@pytest.mark.parametrize("seed", range(5))
def test_objects_keep_their_pixels(seed):
    planes = np.random.default_rng(seed).integers(0, 4, (4, 9, 9))
    stitched = stitch_planes(planes, 0.2)
    assert stitched.max() == len(np.unique(stitched)) - 1
    for plane, new in zip(planes, stitched):
        pairs = np.unique(np.stack([plane.ravel(), new.ravel()]), axis=1)
        assert len(pairs.T) == len(np.unique(plane)) == len(np.unique(new))
