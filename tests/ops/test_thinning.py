import cv2
import numpy as np
import pytest
from scipy.ndimage import label

from rpe_d2.ops.thinning import thin
from tests.reference.boundary_matching import slow_thin

EIGHT = np.ones((3, 3), int)


def random_masks():
    """Returns noise of all densities, and smooth blobs, which need many rounds."""
    generator = np.random.default_rng(0)
    for number in range(40):
        height, width = generator.integers(1, 28, 2)
        noise = generator.random((height, width))
        if number % 2:
            noise = cv2.GaussianBlur(noise, (0, 0), 2)
            yield noise > np.median(noise)
        else:
            yield noise < generator.random()


def test_like_the_published_algorithm_pixel_by_pixel():
    for mask in random_masks():
        np.testing.assert_array_equal(thin(mask), slow_thin(mask))


def test_lines_stay_connected_and_are_thinned_to_the_end():
    for mask in random_masks():
        thinned = thin(mask)
        assert thinned.dtype == bool and not (thinned & ~mask).any()
        assert label(thinned, EIGHT)[1] == label(mask, EIGHT)[1]
        np.testing.assert_array_equal(thin(thinned), thinned)


def test_known_shapes():
    bar = np.zeros((7, 20), bool)
    bar[2:5, 2:18] = True
    middle = np.flatnonzero(thin(bar).any(axis=1))
    assert middle.tolist() == [3]  # three rows are thinned to the middle one

    ring = np.zeros((9, 9), bool)
    ring[1:8, 1:8] = True
    ring[3:6, 3:6] = False
    assert label(~thin(ring))[1] == 2  # still closed

    for shape in ("empty", "point", "diagonal", "cross"):
        mask = np.zeros((9, 9), bool)
        if shape == "point":
            mask[4, 4] = True
        elif shape == "diagonal":
            mask[np.arange(9), np.arange(9)] = True
        elif shape == "cross":
            mask[4], mask[:, 4] = True, True
        np.testing.assert_array_equal(thin(mask), mask)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (1, 1), (1, 30), (30, 1)])
def test_sizes(size):
    full = np.ones(size, bool)
    before = full.copy()
    assert thin(full).shape == size
    np.testing.assert_array_equal(thin(full), slow_thin(full) if full.size else full)
    np.testing.assert_array_equal(full, before)
