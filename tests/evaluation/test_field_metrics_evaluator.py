"""Measures of label maps for instances that overlap, with scores and crowds."""

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from rpe_d2.evaluation import FieldMetricsEvaluator
from rpe_d2.evaluation.label_metrics import label_metrics
from tests.helpers.squares import LARGE, MEDIUM, SIZE, SMALL, square_mask


def output_of(boxes, scores):
    instances = Instances(SIZE)
    masks = np.array([square_mask(box) for box in boxes], bool).reshape(-1, *SIZE)
    instances.pred_masks = torch.from_numpy(masks)
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
    return {"instances": instances}


def labels_of(*boxes):
    labels = np.zeros(SIZE, int)
    for number, box in enumerate(boxes, start=1):
        labels[square_mask(box) > 0] = number
    return labels


def test_scores_decide_and_crowds_are_ignored(dataset):
    """Image 1 of the dataset has SMALL and LARGE; image 2 has MEDIUM and the crowd LARGE."""
    evaluator = FieldMetricsEvaluator(dataset, 0.5, distributed=False)
    crowd = square_mask(LARGE) > 0
    evaluator.process([{"image_id": 1}], [output_of([LARGE, SMALL, MEDIUM], [0.9, 0.8, 0.2])])
    evaluator.process([{"image_id": 2}], [output_of([MEDIUM, LARGE], [0.6, 0.9])])
    found = evaluator.evaluate()["labels"]
    images = [
        label_metrics(labels_of(SMALL, LARGE), labels_of(SMALL, LARGE)),
        label_metrics(np.where(crowd, 0, labels_of(MEDIUM)), np.where(crowd, 0, labels_of(MEDIUM))),
    ]
    assert found["S"] == pytest.approx(100 * np.mean([image["S"] for image in images]))
    assert found["true"] == sum(image["true"] for image in images)
    assert found["pred"] == found["true"] and found["|DiC|"] == 0
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [output_of([], [])])
    assert evaluator.evaluate()["labels"]["S"] == 0


def test_without_masks_or_images_there_are_no_metrics(dataset):
    evaluator = FieldMetricsEvaluator(dataset, 0.5, distributed=False)
    assert evaluator.evaluate() == {}
    instances = Instances(SIZE)
    instances.scores = torch.ones(1)
    evaluator.process([{"image_id": 1}], [{"instances": instances}])
    assert evaluator.evaluate() == {}
