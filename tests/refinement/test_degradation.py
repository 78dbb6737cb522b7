"""The errors of other models, made from true labels."""

import numpy as np
import pytest

from rpe_d2.refinement.degradation import DEGRADATIONS, degrade_labels
from tests.refinement.conftest import scene


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_labels_change_near_their_boundaries_only(name):
    labels = scene(1, size=128)
    changed = 0
    for seed in range(5):
        before = labels.copy()
        degraded = DEGRADATIONS[name](labels, np.random.default_rng(seed), 4.0)
        assert (labels == before).all()
        assert degraded.shape == labels.shape and degraded.dtype == labels.dtype
        assert set(np.unique(degraded)) <= set(np.unique(labels))
        share = (degraded != labels).mean()
        assert share < 0.15
        changed += share > 0
    assert changed >= 3


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_maps_without_objects_and_of_one_object(name):
    random = np.random.default_rng(0)
    for value in (0, 3):
        labels = np.full((20, 30), value, np.int32)
        degraded = DEGRADATIONS[name](labels, random, 3.0)
        assert set(np.unique(degraded)) <= {0, value}


def test_shrink_removes_and_grow_adds_pixels_of_objects_only():
    labels = scene(2)
    random = np.random.default_rng(0)
    smaller = DEGRADATIONS["shrink"](labels, random, 4.0)
    larger = DEGRADATIONS["grow"](labels, random, 4.0)
    assert ((smaller == labels) | (smaller == 0)).all() and (smaller > 0).sum() < (labels > 0).sum()
    assert ((larger == labels) | (labels == 0)).all() and (larger > 0).sum() > (labels > 0).sum()


def test_blocks_have_one_label():
    degraded = DEGRADATIONS["blocky"](scene(0), np.random.default_rng(0), 4.0)
    blocks = degraded.reshape(24, 4, 24, 4).transpose(0, 2, 1, 3).reshape(24, 24, 16)
    assert (blocks == blocks[..., :1]).all()


def test_the_same_random_numbers_give_the_same_labels_and_some_stay_unchanged():
    labels = scene(0)
    results = [degrade_labels(labels, np.random.default_rng(seed)) for seed in range(40)]
    again = [degrade_labels(labels, np.random.default_rng(seed)) for seed in range(40)]
    assert all((a == b).all() for a, b in zip(results, again))
    unchanged = sum((result == labels).all() for result in results)
    assert 1 <= unchanged <= 15
