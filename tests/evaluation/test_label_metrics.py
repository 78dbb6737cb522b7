"""Measures of label maps: plain loops, values of other packages, corner cases and large maps."""

import json
import time
from functools import partial

import numpy as np
import pytest

from rpe_d2.evaluation.label_metrics import label_metrics, label_overlaps, mean_label_metrics
from tests.conftest import ROOT
from tests.reference.label_metrics import metrics as slow_metrics

GOLDEN = ROOT / "tests" / "golden" / "label_metrics.json"
approx = partial(pytest.approx, abs=1e-12)


def random_labels(seed, size=(24, 30), count=5, noise=2):
    """Returns a true map of rectangles and a prediction with moved, merged and lost ones."""
    rng = np.random.default_rng(seed)
    target, pred = np.zeros(size, np.uint16), np.zeros(size, np.uint16)
    for number in range(rng.integers(count + 1)):
        y, x = rng.integers(0, size[0] - 6), rng.integers(0, size[1] - 6)
        height, width = rng.integers(3, 9, size=2)
        target[y : y + height, x : x + width] = 3 * number + 2
        if rng.random() < 0.85:
            dy, dx = rng.integers(0, noise + 1, size=2)
            label = 7 if rng.random() < 0.2 else 20 + number
            pred[y + dy : y + height, x : x + width + dx] = label
    if rng.random() < 0.5:
        pred[-4:, -4:] = 1
    return pred, target


def test_equal_to_plain_loops():
    for seed in range(80):
        pred, target = random_labels(seed)
        found, expected = label_metrics(pred, target), slow_metrics(pred, target)
        assert {k: v for k, v in found.items() if k in expected} == approx(expected), seed
        assert all(np.isnan(v) for k, v in found.items() if k not in expected)


def test_equal_to_other_packages():
    """The file holds values of stardist, cellpose and torchmetrics and the command to make it."""
    golden = json.loads(GOLDEN.read_text())
    for seed, values in golden["values"].items():
        found = label_metrics(*random_labels(int(seed), (80, 90), 12))
        assert {k: found[k] for k in values} == pytest.approx(values, abs=1e-6), seed
    assert len(golden["values"]) >= 10


def test_perfect_missing_and_empty():
    labels = np.zeros((8, 8), np.int32)
    labels[1:4, 1:4], labels[5:, 5:] = 4, 9
    perfect = label_metrics(labels > 0, labels > 0)
    assert {perfect[k] for k in ("S", "F1@0.95", "PQ", "SQ", "AJI", "AJI+", "SBD")} == {1}
    for pred, target in ((labels, 0 * labels), (0 * labels, labels)):
        found = label_metrics(pred, target)
        assert {found[k] for k in ("S", "F1@0.5", "PQ", "SQ", "RQ", "AJI", "AJI+", "SBD")} == {0}
        assert found["|DiC|"] == 2
    empty = label_metrics(0 * labels, 0 * labels)
    assert np.isnan([empty[k] for k in ("S", "PQ", "SQ", "AJI", "AJI+", "SBD")]).all()
    assert empty["pred"] == empty["true"] == empty["DiC"] == 0
    assert np.isnan(label_metrics(np.zeros((0, 4), int), np.zeros((0, 4), int))["S"])


def test_an_iou_of_exactly_one_half():
    target = np.ones((2, 10), np.uint8)
    pred = np.repeat([[1, 2]], 5, axis=1).repeat(2, axis=0)  # two halves
    found = label_metrics(pred, target)
    assert found["S@0.5"] == 1 / 2 and found["S@0.55"] == 0
    assert found["RQ"] == found["PQ"] == 0  # above 0.5 only
    assert found["AJI"] == found["AJI+"] == 10 / 30
    assert found["SBD"] == approx(2 * 10 / 30)


def test_one_prediction_over_two_objects_is_chosen_twice_by_aji_only():
    target = np.array([[1] * 6 + [2] * 4])
    found = label_metrics(np.ones_like(target), target)
    assert found["AJI"] == approx(10 / 20) and found["AJI+"] == approx(6 / 14)


def test_names_of_objects_and_symmetries():
    pred, target = random_labels(5, (60, 60), 9)
    found = label_metrics(pred, target)
    names = np.random.default_rng(0).permutation(70_000)[: int(pred.max()) + 1] + 1
    renamed = np.where(pred > 0, names[pred], 0).astype(np.uint32)
    assert label_metrics(renamed, target) == approx(found)
    assert label_metrics(pred.T, target.T) == approx(found)
    swapped = label_metrics(target, pred)
    for name in ("S", "F1@0.5", "PQ", "AJI+", "SBD"):
        assert swapped[name] == approx(found[name])


def test_mean_over_images_leaves_empty_images_out():
    one = np.ones((3, 3), int)
    metrics = [
        label_metrics(one, one),
        label_metrics(0 * one, one),
        label_metrics(0 * one, 0 * one),
    ]
    mean = mean_label_metrics(metrics)
    assert mean["S"] == mean["AJI"] == 0.5
    assert mean["pred"] == 1 and mean["true"] == 2 and mean["|DiC|"] == approx(1 / 3)
    assert mean_label_metrics([]) == {}


def test_many_objects_take_seconds():
    """20,000 objects on four megapixels: a matrix of all pairs would have 3 GB."""
    side, cell = 2000, 14
    grid = np.arange(side) // cell
    target = (grid[:, None] * (grid.max() + 1) + grid + 1).astype(np.uint32)
    pred = np.roll(target, 2, axis=1)
    start = time.process_time()
    found = label_metrics(pred, target)
    assert time.process_time() - start < 20
    assert found["true"] > 20_000
    # Every object overlaps the next one, so that all of them are one group.
    overlaps = label_overlaps(pred, target)
    assert len(overlaps.common) < 3 * found["true"]
    assert 0.99 < found["S@0.7"] <= 1 and found["S@0.8"] < 0.01


@pytest.mark.parametrize(
    "pred, target, message",
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"pred has shape \(2, 3\)"),
        (np.zeros((2, 3)), np.zeros((2, 3), int), "pred has type float64; allowed: integers"),
        (np.zeros((2, 3), int), np.full((2, 3), -1), "target has the label -1; allowed: 0 or more"),
    ],
)
def test_wrong_input(pred, target, message):
    with pytest.raises(ValueError, match=message):
        label_metrics(pred, target)
