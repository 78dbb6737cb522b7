"""The BSDS evaluator on straight lines, on one and on two processes."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from detectron2.engine import launch
from detectron2.utils import comm

from rpe_d2.evaluation import BSDSBoundaryEvaluator
from rpe_d2.ops.boundary_scores import boundary_scores, count_boundary_matches
from tests.helpers.annotations import save_annotations
from tests.helpers.ranks import write_and_exit

SIZE = (60, 80)  # the tolerance is 0.75 pixels
NUM_THRESHOLDS = 9


def lines(*columns):
    mask = np.zeros(SIZE, bool)
    mask[:, list(columns)] = True
    return mask


ANNOTATIONS = [[lines(10), lines(10, 40)], [lines(20, 50)], [lines(30)]]
PREDICTIONS = [
    0.9 * lines(10) + 0.35 * lines(70),
    0.55 * lines(20, 50) + 0.75 * lines(5),
    0.2 * lines(30),
]


@pytest.fixture
def items(tmp_path):
    return [
        {
            "image_id": index,
            "boundary_file_name": save_annotations(tmp_path / f"{index}.mat", annotations),
        }
        for index, annotations in enumerate(ANNOTATIONS)
    ]


def outputs():
    return [{"boundaries": torch.from_numpy(p).float()} for p in PREDICTIONS]


def evaluate(items, outputs):
    evaluator = BSDSBoundaryEvaluator("lines", NUM_THRESHOLDS, distributed=False)
    evaluator.process(items, outputs)
    return evaluator.evaluate()


def test_scores_in_percent(items):
    pred = evaluate(items, outputs())
    assert list(pred) == ["boundary"]
    pred = pred["boundary"]
    assert list(pred) == ["ODS", "ODS_threshold", "OIS", "AP", "images"]
    counts = [
        count_boundary_matches(p.astype(np.float32), a, NUM_THRESHOLDS)
        for p, a in zip(PREDICTIONS, ANNOTATIONS)
    ]
    scores = boundary_scores(np.stack(counts))
    assert pred["ODS"] == pytest.approx(100 * scores.ods.f_measure)
    assert pred["ODS_threshold"] == pytest.approx(scores.ods.threshold)
    assert pred["AP"] == pytest.approx(100 * scores.ap)
    # By hand, at the best threshold of each image: image 1 has 2 of 3 lines and no false one, image
    # 2 has both of its lines and a false one, and image 3 has its line.
    recall, precision = (2 + 2 + 1) / (3 + 2 + 1), (1 + 2 + 1) / (1 + 3 + 1)
    assert pred["OIS"] == pytest.approx(100 * 2 * recall * precision / (recall + precision))
    assert pred["images"] == 3


def test_a_perfect_model(items):
    items = items[1:]
    pred = evaluate(items, [{"boundaries": torch.from_numpy(a[0])} for a in ANNOTATIONS[1:]])
    assert pred["boundary"]["ODS"] == pred["boundary"]["OIS"] == 100


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_dtypes(dtype, items):
    pred = evaluate(items, [{"boundaries": o["boundaries"].to(dtype)} for o in outputs()])
    assert pred["boundary"]["OIS"] == pytest.approx(evaluate(items, outputs())["boundary"]["OIS"])


def test_invalid_images_are_left_out_with_a_warning(items, tmp_path, caplog):
    expected = evaluate(items[:1], outputs()[:1])["boundary"]
    predicted = outputs()
    predicted[1]["boundaries"] = predicted[1]["boundaries"].T
    items[2]["boundary_file_name"] = str(tmp_path / "none.mat")
    items.append({**items[0], "file_name": "nan.jpg"})
    predicted.append({"boundaries": torch.full(SIZE, math.nan)})
    with caplog.at_level(logging.WARNING):
        pred = evaluate(items, predicted)["boundary"]
    assert pred == expected and pred["images"] == 1
    first, second, third, total = caplog.messages
    assert "1 is left out: 1: the boundary map is 80 x 60 and its ground truth 60 x 80" in first
    assert "none.mat" in second and "nan.jpg" in third
    assert total == "lines: 1 of 4 images are used"


def test_no_images():
    pred = evaluate([], [])["boundary"]
    assert pred.pop("images") == 0 and all(math.isnan(value) for value in pred.values())


def test_missing_keys_are_named(items):
    with pytest.raises(ValueError, match="0 of lines has no boundary_file_name"):
        evaluate([{"image_id": 0}], outputs()[:1])
    with pytest.raises(ValueError, match="output for 0 has no boundaries, found sem_seg"):
        evaluate(items[:1], [{"sem_seg": 1}])
    with pytest.raises(ValueError, match="num_thresholds is 0"):
        BSDSBoundaryEvaluator("lines", 0)


def _evaluate_on_rank(items, out):
    evaluator = BSDSBoundaryEvaluator("lines", NUM_THRESHOLDS)
    rank = comm.get_rank()
    evaluator.process(items[rank::2], outputs()[rank::2])
    results = evaluator.evaluate()
    write_and_exit(results, None, out)


def test_two_processes_give_the_numbers_of_one(items, tmp_path):
    out = tmp_path / "out.json"
    launch(_evaluate_on_rank, 2, dist_url="auto", args=(items, str(out)))
    assert json.loads(out.read_text()) == evaluate(items, outputs())
