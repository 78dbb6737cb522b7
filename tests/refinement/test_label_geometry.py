"""Geometry of label maps against brute force."""

import numpy as np
import pytest

from rpe_d2.refinement.label_geometry import (
    boundary_distance,
    boundary_pixels,
    color_labels,
    compact_labels,
    nearest_labels,
)


def distances(mask: np.ndarray) -> np.ndarray:
    """Distance of each pixel to the nearest pixel of a mask."""
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(~mask)


def test_boundary_pixels_have_a_neighbor_with_another_label(labels):
    height, width = labels.shape
    expected = np.zeros(labels.shape, bool)
    for y in range(height):
        for x in range(width):
            for other in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= other[0] < height and 0 <= other[1] < width:
                    expected[y, x] |= labels[other] != labels[y, x]
    assert (boundary_pixels(labels) == expected).all()


def test_the_distance_is_a_half_beside_a_boundary_and_grows_by_one_per_pixel():
    labels = np.zeros((5, 9), int)
    labels[:, 4:] = 7
    expected = np.array([3.5, 2.5, 1.5, 0.5, 0.5, 1.5, 2.5, 3.5, 4.5])
    np.testing.assert_allclose(boundary_distance(labels), np.tile(expected, (5, 1)), atol=1e-6)


def test_the_distance_is_infinite_without_a_boundary():
    assert np.isinf(boundary_distance(np.full((4, 6), 3))).all()


def test_the_distance_is_that_to_the_nearest_boundary_pixel(labels):
    expected = distances(boundary_pixels(labels)) + 0.5
    np.testing.assert_allclose(boundary_distance(labels), expected, rtol=1e-6)


@pytest.mark.parametrize("separation", [1, 2, 5, 16, 40])
def test_labels_of_one_color_are_farther_apart_than_the_separation(labels, separation):
    _, indices = np.unique(labels, return_inverse=True)
    indices = indices.reshape(labels.shape)
    colors, count = color_labels(indices, separation)
    assert colors.shape == (indices.max() + 1,) and set(colors) == set(range(count))
    for first in range(len(colors)):
        far = distances(indices == first)
        for second in range(first):
            if colors[first] == colors[second]:
                assert far[indices == second].min() > separation


def test_the_number_of_colors_does_not_grow_with_the_number_of_labels():
    counts = []
    for side in (4, 12):
        labels = np.arange(side * side).reshape(side, side).repeat(20, 0).repeat(20, 1)
        counts.append(color_labels(labels, 16)[1])
    assert counts[1] <= counts[0] + 3 <= 12 + 3


def test_one_label_has_one_color():
    assert color_labels(np.zeros((3, 4), int), 5)[1] == 1


def test_the_nearest_label_of_a_color(labels):
    _, indices = np.unique(labels, return_inverse=True)
    indices = indices.reshape(labels.shape)
    colors, count = color_labels(indices, 10)
    random = np.random.default_rng(0)
    where = random.random(labels.shape) < 0.05
    wanted = random.integers(0, count, where.sum())
    found, far = nearest_labels(indices, colors[indices], where, wanted)
    every = np.stack([distances(indices == label) for label in range(len(colors))])
    for (y, x), color, label, distance in zip(np.argwhere(where), wanted, found, far):
        nearest = every[colors == color][:, y, x].min()
        assert colors[label] == color
        # The transform that returns labels is exact to about one percent.
        assert distance == pytest.approx(nearest, rel=0.02, abs=0.05)
        assert every[label, y, x] == pytest.approx(nearest, rel=0.05, abs=0.1)


def test_a_color_that_does_not_occur_is_infinitely_far():
    labels = np.zeros((3, 3), int)
    where = np.eye(3, dtype=bool)
    found, far = nearest_labels(labels, labels, where, np.array([1, 0, 1]))
    assert np.isinf(far[[0, 2]]).all() and far[1] == 0 and (found == 0).all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int64"])
def test_compact_labels_are_those_of_numpy(dtype):
    random = np.random.default_rng(0)
    info = np.iinfo(dtype)
    for labels in (
        random.integers(max(-5, info.min), 90, (20, 30)).astype(dtype),
        random.choice([info.min, 0, 3, info.max], (20, 30)).astype(dtype),
        np.full((1, 1), info.max, dtype),
    ):
        values, indices = compact_labels(labels)
        expected, inverse = np.unique(labels, return_inverse=True)
        assert values.dtype == labels.dtype and (values == expected).all()
        assert (indices == inverse.reshape(labels.shape)).all()
