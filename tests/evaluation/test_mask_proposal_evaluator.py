"""Metrics of proposals, computed by hand on squares."""

import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import launch
from detectron2.modeling import Backbone, ProposalNetwork
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import nn

from rpe_d2.evaluation import MaskProposalEvaluator
from tests.helpers.ranks import write_and_exit
from tests.helpers.squares import (
    LARGE,
    MEDIUM,
    NOWHERE,
    SIZE,
    SMALL,
    change_data,
    predictions,
    upper_part,
)


def evaluate(dataset, first, second=None):
    evaluator = MaskProposalEvaluator(dataset, distributed=False)
    evaluator.process([{"image_id": 1}], [first])
    if second is not None:
        evaluator.process([{"image_id": 2}], [second])
    return evaluator.evaluate()


@pytest.mark.parametrize("kind", ["instances", "masks", "boxes"])
def test_metrics_by_hand(dataset, kind):
    """Image 1: large square, a miss, small square. Image 2: 37 of the 60 rows of the medium one."""
    pred = evaluate(
        dataset,
        predictions([LARGE, NOWHERE, SMALL], [0.9, 0.8, 0.7], kind),
        predictions([upper_part(MEDIUM, 0.62)], [0.6], kind),
    )
    name = "proposals_segm_of_filled_boxes" if kind == "boxes" else "proposals_segm"
    assert list(pred) == [name, "proposals_bbox"]
    for metrics in pred.values():
        # The medium square is matched at IoU .5, .55 and .6, the others at all ten thresholds.
        assert metrics["AR@1"] == pytest.approx(10 * (3 * 2 / 3 + 7 * 1 / 3))
        for limit in (10, 100, 1000):
            assert metrics[f"AR@{limit}"] == pytest.approx(10 * (3 * 1 + 7 * 2 / 3))
            assert metrics[f"ARs@{limit}"] == 100
        assert metrics["ARs@1"] == 0 and metrics["ARl@1"] == 100
        assert metrics["ARm@1"] == metrics["ARm@1000"] == pytest.approx(30)
        for limit in (10, 20, 30, 60):
            assert metrics[f"R50@{limit}"] == 100
        # AR is 13/30 with 1 and 2 proposals, 23/30 from 3 on, and log-linear between 2 and 3.
        two, three = math.log10(2), math.log10(3)
        area = 13 / 30 * two + (13 + 23) / 60 * (three - two) + 23 / 30 * (3 - three)
        assert metrics["AUC"] == pytest.approx(100 * area / 3)
        # The small square is the third proposal of its image, the others are the first.
        assert metrics["AUCs"] == pytest.approx(100 * ((three - two) / 2 + 3 - three) / 3)
        assert metrics["AUCm"] == pytest.approx(30) and metrics["AUCl"] == pytest.approx(100)
        # Precision is 1 up to recall 1/3 (34 of 101 points). At IoU up to .6 it is then 3/4 up to
        # recall 1, and at larger IoU 2/3 up to recall 2/3.
        low, high = (34 + 67 * 3 / 4) / 101, (34 + 33 * 2 / 3) / 101
        assert metrics["AP50"] == pytest.approx(100 * low)
        assert metrics["AP75"] == pytest.approx(100 * high)
        assert metrics["AP"] == pytest.approx(30 * low + 70 * high)


def test_matches_by_iou_threshold(dataset):
    """A proposal of 62 % of the large square matches it at IoU .5, .55 and .6."""
    pred = evaluate(dataset, predictions([upper_part(LARGE, 0.62)], [0.5]), predictions([], []))
    for metrics in pred.values():
        assert metrics["ARl@1"] == pytest.approx(30)
        assert metrics["R50@10"] == pytest.approx(100 / 3)
        assert metrics["AP75"] == 0 and metrics["AP50"] > 0


def test_limits_count_proposals_per_image_in_the_order_of_scores(dataset):
    misses = [NOWHERE] * 25
    pred = evaluate(dataset, predictions([*misses, SMALL], [*[0.9] * 25, 0.1]))["proposals_segm"]
    assert pred["R50@20"] == 0 and pred["R50@30"] == pytest.approx(100 / 3)
    assert pred["AR@10"] == 0 and pred["AR@100"] == pytest.approx(100 / 3)


def test_crowds_are_ignored(dataset):
    without = evaluate(dataset, predictions([SMALL], [0.9]), predictions([MEDIUM], [0.5]))
    inside = (120, 40, 200, 120)
    with_crowd = evaluate(
        dataset, predictions([SMALL], [0.9]), predictions([inside, MEDIUM], [0.8, 0.5])
    )
    assert with_crowd["proposals_segm"]["AP"] == pytest.approx(without["proposals_segm"]["AP"])


def test_no_proposals_at_all(dataset):
    for metrics in evaluate(dataset, predictions([], []), predictions([], [], "masks")).values():
        assert metrics["AR@1000"] == 0 and metrics["AP"] == 0 and metrics["ARm@1"] == 0


def test_only_the_best_thousand_proposals_are_evaluated(dataset):
    for misses, recall in ((999, 100 / 3), (1000, 0)):
        boxes, scores = [*[NOWHERE] * misses, SMALL], [*[0.9] * misses, 0.1]
        for metrics in evaluate(dataset, predictions(boxes, scores, "boxes")).values():
            assert metrics["AR@1000"] == pytest.approx(recall) and metrics["AR@100"] == 0
            assert (metrics["AP"] > 0) == (recall > 0)


def test_metrics_without_ground_truth_are_nan(dataset):
    def keep(count):
        def change(content):
            content["annotations"] = content["annotations"][:count]

        change_data(dataset, change)

    keep(2)  # no medium square
    for metrics in evaluate(dataset, predictions([SMALL], [0.9])).values():
        assert {name for name, value in metrics.items() if math.isnan(value)} == {
            "AUCm",
            *(f"ARm@{limit}" for limit in (1, 10, 100, 1000)),
        }
        assert metrics["AR@1"] == 50
    keep(0)
    for metrics in evaluate(dataset, predictions([SMALL], [0.9])).values():
        assert all(map(math.isnan, metrics.values()))


def test_masks_relative_to_a_box_are_pasted_into_it(dataset):
    """The left 70 of 112 columns of the large square's box have mask IoU .625 and box IoU 1."""
    output = predictions([LARGE], [0.5], "masks")
    output["proposals"].proposal_masks[:, :, 70:] = 0
    pred = evaluate(dataset, output)
    assert pred["proposals_bbox"]["ARl@1"] == 100
    assert pred["proposals_segm"]["ARl@1"] == pytest.approx(30)


class _Pixels(Backbone):
    """A backbone that returns its input."""

    def forward(self, image):
        return {"image": image}


class _Fixed(nn.Module):
    """A generator of fixed proposals in coordinates of the model's input."""

    def __init__(self, proposals):
        super().__init__()
        self.proposals = proposals

    def forward(self, images, features, gt_instances=None):
        return [self.proposals], {}


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_proposals_of_a_resized_image(dataset, kind):
    """The model's input has half the size, so the small square is 10 pixels wide."""
    size = SIZE[0] // 2, SIZE[1] // 2
    boxes = [[side / 2 for side in box] for box in (LARGE, SMALL)]
    pred = predictions(boxes, [0.9, 0.8], kind, size)
    model = ProposalNetwork(
        backbone=_Pixels(),
        proposal_generator=_Fixed(pred["proposals"]),
        pixel_mean=[0, 0, 0],
        pixel_std=[1, 1, 1],
    ).eval()
    item = {"image": torch.zeros(3, *size), "image_id": 1, "height": SIZE[0], "width": SIZE[1]}
    (output,) = model([item])
    for metrics in evaluate(dataset, output).values():
        assert metrics["ARs@10"] == metrics["ARl@10"] == 100
        assert metrics["AR@1"] == pytest.approx(100 / 3)


def test_perfect_shapes():
    """The shapes dataset has no JSON file."""
    records = DatasetCatalog.get("shapes_val")[:100]
    evaluator = MaskProposalEvaluator("shapes_val", distributed=False)
    for record in records:
        masks = np.stack([mask_util.decode(a["segmentation"]) for a in record["annotations"]])
        instances = Instances((128, 128))
        instances.pred_masks = torch.from_numpy(masks).bool()
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in record["annotations"])]
        instances.pred_boxes, instances.scores = Boxes(torch.tensor(boxes)), torch.ones(len(masks))
        evaluator.process([{"image_id": record["image_id"]}], [{"instances": instances}])
    for metrics in evaluator.evaluate().values():
        assert metrics["AR@100"] == 100 and metrics["AP"] == pytest.approx(100)


FIRST = predictions([LARGE, NOWHERE, SMALL], [0.9, 0.8, 0.7])
SECOND = predictions([MEDIUM], [0.5])
# Outputs of two processes: one image each; the same, the second without masks; both on one.
SHARES = [
    [[(1, FIRST)], [(2, SECOND)]],
    [[(1, FIRST)], [(2, predictions([MEDIUM], [0.5], "boxes"))]],
    [[(1, FIRST), (2, SECOND)], []],
]


def _evaluate_on_rank(path, out):
    MetadataCatalog.get("squares").json_file = path
    results = []
    for shares in SHARES:
        evaluator = MaskProposalEvaluator("squares")
        for image_id, output in shares[comm.get_rank()]:
            evaluator.process([{"image_id": image_id}], [output])
        results.append(evaluator.evaluate())
    write_and_exit(results, [None] * len(SHARES), out)


def test_two_processes_give_the_numbers_of_one(dataset, tmp_path):
    alone = evaluate(dataset, FIRST, SECOND)
    out = tmp_path / "out.json"
    path = MetadataCatalog.get(dataset).json_file
    launch(_evaluate_on_rank, 2, dist_url="auto", args=(path, str(out)))
    split, without_masks, in_one = json.loads(out.read_text())
    assert split == in_one == alone
    assert list(without_masks) == ["proposals_segm_of_filled_boxes", "proposals_bbox"]
    assert list(without_masks.values()) == list(alone.values())


@pytest.mark.parametrize("first", [0, 7])
def test_arbitrary_category_ids(first, dataset):
    def change(content):
        for item in content["categories"]:
            item["id"] += first - 1
        for item in content["annotations"]:
            item["category_id"] += first - 1

    change_data(dataset, change)
    pred = predictions([SMALL, LARGE], [0.9, 0.8]), predictions([MEDIUM], [0.7])
    results = evaluate(dataset, *pred)
    assert results["proposals_segm"]["AR@10"] == pytest.approx(100)
