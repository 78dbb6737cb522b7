"""Touching instances and their metrics, by hand on squares."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from pycocotools.coco import COCO

from rpe_d2.evaluation.touching import subset_metrics, touching_annotations

SIZE = (60, 80)


def rle(x0, y0, x1, y1):
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    return mask_util.encode(mask)


def truth_of(*boxes, crowds=()):
    annotations = [
        {
            "id": 10 + index,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": int(index in crowds),
            "area": (box[2] - box[0]) * (box[3] - box[1]),
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "segmentation": rle(*box),
        }
        for index, box in enumerate(boxes)
    ]
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": 1, "height": SIZE[0], "width": SIZE[1], "file_name": "1.png"}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "square"}],
    }
    truth.createIndex()
    return truth


def results_of(*scored):
    return [
        {"image_id": 1, "category_id": 1, "score": score, "segmentation": rle(*box)}
        for box, score in scored
    ]


A = (10, 10, 20, 20)


@pytest.mark.parametrize(
    "other, touches",
    [
        ((20, 10, 30, 20), True),  # shares an edge
        ((21, 10, 30, 20), True),  # one column between them
        ((22, 10, 30, 20), False),  # two columns between them
        ((21, 21, 30, 30), True),  # diagonal
        ((0, 21, 9, 30), True),  # antidiagonal
        ((10, 22, 20, 30), False),
        ((12, 12, 15, 15), True),  # inside
    ],
)
def test_distance(other, touches):
    assert touching_annotations(truth_of(A, other)) == ({10, 11} if touches else set())


def test_hidden_instances_touch_and_crowds_are_ignored():
    covered, cover, far = (12, 12, 15, 15), A, (40, 40, 50, 50)
    assert touching_annotations(truth_of(covered, cover, far)) == {10, 11}
    assert touching_annotations(truth_of(A, (20, 10, 30, 20), crowds=(1,))) == set()
    assert touching_annotations(truth_of()) == set()


def test_metrics_count_only_the_subset():
    touching, neighbor, alone = A, (20, 10, 30, 20), (40, 40, 50, 50)
    truth = truth_of(touching, neighbor, alone)
    counted = touching_annotations(truth)
    # One of two is detected. The detection of the third is ignored despite its best score.
    pred = results_of((alone, 0.9), (touching, 0.8))
    metrics = subset_metrics(truth, pred, counted, 100)
    assert metrics["AR"] == pytest.approx(50)
    assert metrics["AP"] == pytest.approx(100 * 51 / 101)  # precision 1 up to recall 0.5
    assert metrics["count"] == 2
    # A detection without any overlap is a false positive.
    wrong = subset_metrics(truth, results_of(((60, 5, 70, 15), 0.9), (A, 0.8)), counted, 100)
    assert wrong["AP"] == pytest.approx(50 * 51 / 101) and wrong["AR"] == pytest.approx(50)
    assert np.isnan(subset_metrics(truth, pred, set(), 100)["AP"])


@pytest.mark.parametrize(
    "others",
    [
        [((40, 40, 50, 48), 0.9)],  # IoU .8, no match at .85, .9 and .95
        [((40, 40, 50, 45), 0.9)],  # IoU .5
        [((40, 40, 50, 50), 0.95), ((40, 40, 50, 48), 0.9)],  # a duplicate
    ],
)
def test_inexact_detections_of_instances_outside_the_subset_are_ignored(others):
    truth = truth_of(A, (20, 10, 30, 20), (40, 40, 50, 50))
    counted = touching_annotations(truth)
    metrics = subset_metrics(truth, results_of(*others, (A, 0.8)), counted, 100)
    for name in ("AP", "AP50", "AP75"):
        assert metrics[name] == pytest.approx(100 * 51 / 101)
    assert metrics["AR"] == pytest.approx(50)


def test_other_inexact_detections_are_false_positives():
    truth = truth_of(A, (20, 10, 30, 20), (40, 40, 50, 50))
    counted = touching_annotations(truth)
    # IoU .4 with the third one: false at every threshold.
    metrics = subset_metrics(truth, results_of(((40, 40, 50, 44), 0.9), (A, 0.8)), counted, 100)
    assert metrics["AP"] == pytest.approx(50 * 51 / 101)
    # IoU .8 with the second one: correct at .5 to .8, false at .85, .9 and .95.
    metrics = subset_metrics(truth, results_of(((20, 10, 30, 18), 0.9), (A, 0.8)), counted, 100)
    assert metrics["AP"] == pytest.approx(70 + 30 * 51 / 101 / 2)
    assert metrics["AR"] == pytest.approx(85)


def test_crowds_are_treated_as_in_cocoeval():
    """A detection with .8 of its area in a crowd is false at larger thresholds."""
    crowd = (40, 40, 60, 60)
    truth = truth_of(A, (20, 10, 30, 20), crowd, crowds=(2,))
    pred = results_of(((40, 38, 50, 48), 0.9), (A, 0.8))
    metrics = subset_metrics(truth, pred, touching_annotations(truth), 100)
    assert metrics["AP75"] == pytest.approx(100 * 51 / 101)
    assert metrics["AP"] == pytest.approx(70 * 51 / 101 + 30 * 51 / 101 / 2)
