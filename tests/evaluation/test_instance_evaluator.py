"""Additions to Detectron2's COCO metrics, by hand on squares."""

import json
import math

import pytest
from detectron2.data import MetadataCatalog
from detectron2.engine import launch
from detectron2.utils import comm

from rpe_d2.evaluation import InstanceSegmentationEvaluator
from tests.helpers.ranks import write_and_exit
from tests.helpers.squares import (
    LARGE,
    MEDIUM,
    NOWHERE,
    SMALL,
    change_data,
    predictions,
    upper_part,
)

# Class per category id. Image 1 has objects of the first class, image 2 of the second.
CLASSES = {1: 0, 2: 1}
NEIGHBOR = (30, 10, 50, 30)  # touches the small square


@pytest.fixture(autouse=True)
def classes(dataset):
    MetadataCatalog.get(dataset).thing_dataset_id_to_contiguous_id = CLASSES


def output_of(image_id, boxes, scores):
    output = predictions(boxes, scores)
    output["instances"].pred_classes[:] = CLASSES[image_id]
    return output


def evaluate(dataset, outputs, detections_per_image=100, touching_instances=False):
    evaluator = InstanceSegmentationEvaluator(
        dataset, None, detections_per_image, touching_instances
    )
    evaluator.reset()
    for image_id, output in outputs.items():
        evaluator.process([{"image_id": image_id}], [output])
    return evaluator.evaluate()


def test_average_recall_by_hand(dataset):
    """Image 1: large square, ten misses, small square. Image 2: a miss, 37/60 of the medium one."""
    first = output_of(1, [LARGE, *[NOWHERE] * 10, SMALL], [0.9, *[0.8] * 10, 0.7])
    second = output_of(2, [NOWHERE, upper_part(MEDIUM, 0.62)], [0.9, 0.5])
    pred = evaluate(dataset, {1: first, 2: second})
    segm = pred["segm"]
    # The medium square is matched at IoU .5, .55 and .6. Means are over classes with that size.
    assert segm["AR1"] == pytest.approx((50 + 0) / 2)
    assert segm["AR10"] == pytest.approx((50 + 30) / 2)
    assert segm["AR"] == pytest.approx((100 + 30) / 2)
    assert segm["ARs"] == segm["ARl"] == 100
    assert segm["ARm"] == pytest.approx(30)
    # Precision 1 up to recall .5, then 2/12. The precision of the second class is 1/2.
    assert segm["AP50"] == pytest.approx(50 * ((51 + 50 * 2 / 12) / 101 + 1 / 2))
    # Annotated boxes are 9 pixels wider than masks: IoU .96 (large), .69 (small), .54 (medium).
    bbox = pred["bbox"]
    assert bbox["AR1"] == pytest.approx((50 + 0) / 2)
    assert bbox["AR10"] == pytest.approx((50 + 10) / 2)
    assert bbox["AR"] == pytest.approx(((100 + 40) / 2 + 10) / 2)
    assert [bbox[name] for name in ("ARs", "ARm", "ARl")] == pytest.approx([40, 10, 100])


def test_all_detections_of_the_model_are_evaluated(dataset):
    output = output_of(1, [*[NOWHERE] * 150, SMALL], [*[0.9] * 150, 0.1])
    for limit, recall in ((100, 0), (150, 0), (151, 50)):
        segm = evaluate(dataset, {1: output}, limit)["segm"]
        assert segm["AR"] == pytest.approx(recall / 2)  # no detections of the other class
        assert segm["AR10"] == 0
        assert (segm["AP"] > 0) == (recall > 0)


def add_neighbor(content):
    small = content["annotations"][0]
    x0, y0, x1, y1 = NEIGHBOR
    polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
    content["annotations"].append({**small, "id": 5, "segmentation": [polygon]})


def test_no_detections_have_zero_metrics(dataset):
    change_data(dataset, add_neighbor)
    nothing = {1: output_of(1, [], []), 2: output_of(2, [], [])}
    pred = evaluate(dataset, nothing, touching_instances=True)
    names = "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR", "ARs", "ARm", "ARl"
    assert pred == {
        "bbox": dict.fromkeys(names, 0),
        "segm": dict.fromkeys(names, 0),
        "segm_touching": {"AP": 0, "AP50": 0, "AP75": 0, "AR": 0, "count": 2},
    }


def test_no_detections_and_no_ground_truth_have_nan_metrics(dataset):
    def without_medium(content):
        content["annotations"] = content["annotations"][:2]

    change_data(dataset, without_medium)
    segm = evaluate(dataset, {1: output_of(1, [], [])})["segm"]
    assert {name for name, value in segm.items() if math.isnan(value)} == {"APm", "ARm"}


def test_models_without_masks_have_no_mask_metrics(dataset):
    for boxes in ([], [SMALL]):
        output = output_of(1, boxes, [0.9] * len(boxes))
        output["instances"].remove("pred_masks")
        assert list(evaluate(dataset, {1: output}, touching_instances=True)) == ["bbox"]


FIRST = {1: output_of(1, [LARGE, NOWHERE, SMALL], [0.9, 0.8, 0.7])}
SECOND = {2: output_of(2, [upper_part(MEDIUM, 0.62)], [0.5])}
# Outputs of two processes: one image each; both images on one; no detections, on one image.
SHARES = [[FIRST, SECOND], [{**FIRST, **SECOND}, {}], [{}, {2: output_of(2, [], [])}]]


def _evaluate_on_rank(path, out):
    MetadataCatalog.get("squares").set(json_file=path, thing_dataset_id_to_contiguous_id=CLASSES)
    results = [evaluate("squares", share[comm.get_rank()]) for share in SHARES]
    write_and_exit(results, [{}] * len(SHARES), out)


def test_two_processes_give_the_numbers_of_one(dataset, tmp_path):
    alone = evaluate(dataset, {**FIRST, **SECOND})
    assert alone["segm"]["ARm"] == pytest.approx(30)
    out = tmp_path / "out.json"
    path = MetadataCatalog.get(dataset).json_file
    launch(_evaluate_on_rank, 2, dist_url="auto", args=(path, str(out)))
    split, in_one, nothing = json.loads(out.read_text())
    assert split == in_one == alone
    assert list(nothing) == ["bbox", "segm"] and set(nothing["segm"].values()) == {0}
