"""Every number by hand, on squares."""

import json
import math
import os
import sys

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import launch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from rpe_d2.evaluation import MaskProposalEvaluator

SIZE = (240, 320)
SMALL, MEDIUM, LARGE = (10, 10, 30, 30), (50, 50, 110, 110), (100, 20, 300, 220)  # x0, y0, x1, y1
NOWHERE = (200, 230, 210, 240)


def square_mask(box):
    mask = np.zeros(SIZE, dtype=np.uint8, order="F")
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 1
    return mask


@pytest.fixture
def dataset(tmp_path):
    """Image 1: a small and a large square; image 2: a medium one, and a crowd."""
    annotations = []
    for image_id, box, crowd in ((1, SMALL, 0), (1, LARGE, 0), (2, MEDIUM, 0), (2, LARGE, 1)):
        rle = mask_util.encode(square_mask(box))
        rle["counts"] = rle["counts"].decode()
        x0, y0, x1, y1 = box
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": image_id,
                "bbox": [x0 - 5, y0, x1 - x0 + 9, y1 - y0],  # looser than the mask
                "area": float((x1 - x0) * (y1 - y0)),
                "iscrowd": crowd,
                "segmentation": rle,
            }
        )
    images = [
        {"id": i, "height": SIZE[0], "width": SIZE[1], "file_name": f"{i}.png"} for i in (1, 2)
    ]
    categories = [{"id": i, "name": str(i)} for i in (1, 2)]
    path = tmp_path / "truth.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    MetadataCatalog.get("squares").json_file = str(path)
    yield "squares"
    MetadataCatalog.remove("squares")


def predictions(boxes, scores, kind="instances"):
    instances = Instances(SIZE)
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor(scores, dtype=torch.float32)
    if kind == "instances":
        masks = [torch.from_numpy(square_mask(box)).bool() for box in boxes]
        instances.pred_boxes, instances.scores = Boxes(tensor), scores
        instances.pred_classes = torch.zeros(len(boxes), dtype=torch.long)
        instances.pred_masks = (
            torch.stack(masks) if masks else torch.zeros(0, *SIZE, dtype=torch.bool)
        )
        return {"instances": instances}
    instances.proposal_boxes, instances.objectness_logits = Boxes(tensor), scores
    if kind == "masks":
        instances.proposal_masks = torch.full((len(boxes), 112, 112), 255, dtype=torch.uint8)
    return {"proposals": instances}


def evaluate(dataset, first, second=None):
    evaluator = MaskProposalEvaluator(dataset, distributed=False)
    evaluator.process([{"image_id": 1}], [first])
    if second is not None:
        evaluator.process([{"image_id": 2}], [second])
    return evaluator.evaluate()


def area_under(curve):
    """Mean over a log axis of a step function of n, by a fine sum over the evaluator's 31 nodes."""
    nodes = sorted({round(10 ** (3 * i / 30)) for i in range(31)})
    total = 0.0
    for left, right in zip(nodes, nodes[1:]):
        total += (curve(left) + curve(right)) / 2 * (math.log10(right) - math.log10(left))
    return total / 3


@pytest.mark.parametrize("kind", ["instances", "masks", "boxes"])
def test_every_number_by_hand(dataset, kind):
    """The large square first, then a miss, then the small one; the image with the medium one has no proposals."""
    found = evaluate(dataset, predictions([LARGE, NOWHERE, SMALL], [0.9, 0.8, 0.7], kind))
    name = "proposals_segm_of_filled_boxes" if kind == "boxes" else "proposals_segm"
    assert list(found) == [name, "proposals_bbox"]
    for metrics in found.values():
        assert metrics["AR@1"] == pytest.approx(100 / 3)
        for limit in (10, 100, 1000):
            assert metrics[f"AR@{limit}"] == pytest.approx(200 / 3)
            assert metrics[f"ARs@{limit}"] == 100
        assert metrics["ARs@1"] == 0 and metrics["ARl@1"] == 100
        assert metrics["ARm@1"] == metrics["ARm@1000"] == 0
        for limit in (10, 20, 30, 60):
            assert metrics[f"R50@{limit}"] == pytest.approx(200 / 3)
        expected = area_under(lambda n: 100 / 3 if n < 3 else 200 / 3)
        assert metrics["AUC"] == pytest.approx(expected)
        # Precision 1 up to recall 1/3 (34 of 101 points), then 2/3 up to recall 2/3 (33 points), then 0.
        for threshold in ("AP", "AP50", "AP75"):
            assert metrics[threshold] == pytest.approx(100 * (34 + 33 * 2 / 3) / 101)


def test_overlap_decides_at_every_threshold(dataset):
    """A square that covers 62 % of the large one, and nothing else: found at IoU .5, .55 and .6."""
    x0, y0, x1, y1 = LARGE
    part = (x0, y0, x1, y0 + round(0.62 * (y1 - y0)))
    found = evaluate(dataset, predictions([part], [0.5]), predictions([], []))
    for metrics in found.values():
        assert metrics["ARl@1"] == pytest.approx(30)
        assert metrics["R50@10"] == pytest.approx(100 / 3)
        assert metrics["AP75"] == 0 and metrics["AP50"] > 0


def test_limits_count_proposals_per_image_in_the_order_of_scores(dataset):
    misses = [NOWHERE] * 25
    found = evaluate(dataset, predictions([*misses, SMALL], [*[0.9] * 25, 0.1]))["proposals_segm"]
    assert found["R50@20"] == 0 and found["R50@30"] == pytest.approx(100 / 3)
    assert found["AR@10"] == 0 and found["AR@100"] == pytest.approx(100 / 3)


def test_crowds_neither_count_nor_hurt(dataset):
    without = evaluate(dataset, predictions([SMALL], [0.9]), predictions([MEDIUM], [0.5]))
    inside = (120, 40, 200, 120)
    with_crowd = evaluate(
        dataset, predictions([SMALL], [0.9]), predictions([inside, MEDIUM], [0.8, 0.5])
    )
    assert with_crowd["proposals_segm"]["AP"] == pytest.approx(without["proposals_segm"]["AP"])


def test_no_proposals_at_all(dataset):
    for metrics in evaluate(dataset, predictions([], []), predictions([], [], "masks")).values():
        assert metrics["AR@1000"] == 0 and metrics["AP"] == 0 and metrics["ARm@1"] == 0


def test_masks_relative_to_a_box_are_pasted_into_it(dataset):
    """A left half of 1 in the box of the large square: IoU 1/2 for masks, 1 for boxes."""
    output = predictions([LARGE], [0.5], "masks")
    output["proposals"].proposal_masks[:, :, 56:] = 0
    found = evaluate(dataset, output)
    assert found["proposals_bbox"]["ARl@1"] == 100
    assert found["proposals_segm"]["ARl@1"] in (
        0,
        pytest.approx(10),
    )  # 1/2, give or take a pixel column


def test_perfect_shapes():
    """A data set without a JSON file."""
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


def _evaluate_on_rank(path, out):
    MetadataCatalog.get("squares").json_file = path
    evaluator = MaskProposalEvaluator("squares")
    if comm.get_rank() == 0:  # the other process gets no image at all
        evaluator.process(
            [{"image_id": 1}], [predictions([LARGE, NOWHERE, SMALL], [0.9, 0.8, 0.7])]
        )
        evaluator.process([{"image_id": 2}], [predictions([MEDIUM], [0.5])])
    results = evaluator.evaluate()
    if comm.is_main_process():
        with open(out, "w") as file:
            json.dump(results, file)
    else:
        assert results is None
    comm.synchronize()
    torch.distributed.destroy_process_group()
    # Now and then a thread of torch's gloo backend is still up when the interpreter tears down, which aborts a process
    # that has done its work; the evaluator has no part in that.
    sys.stdout.flush()
    os._exit(0)


def test_two_processes_give_the_numbers_of_one(dataset, tmp_path):
    alone = evaluate(
        dataset,
        predictions([LARGE, NOWHERE, SMALL], [0.9, 0.8, 0.7]),
        predictions([MEDIUM], [0.5]),
    )
    out = tmp_path / "out.json"
    path = MetadataCatalog.get(dataset).json_file
    launch(_evaluate_on_rank, 2, dist_url="auto", args=(path, str(out)))
    assert json.loads(out.read_text()) == alone


@pytest.mark.parametrize("first", [0, 7])
def test_category_ids_of_the_data_may_be_any(first, dataset):
    path = MetadataCatalog.get(dataset).json_file
    with open(path) as file:
        content = json.load(file)
    for item in content["categories"]:
        item["id"] += first - 1
    for item in content["annotations"]:
        item["category_id"] += first - 1
    with open(path, "w") as file:
        json.dump(content, file)
    found = predictions([SMALL, LARGE], [0.9, 0.8]), predictions([MEDIUM], [0.7])
    results = evaluate(dataset, *found)
    assert results["proposals_segm"]["AR@10"] == pytest.approx(100)
