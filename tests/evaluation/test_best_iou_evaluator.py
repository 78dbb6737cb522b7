"""Mean best IoU against a plain loop."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from rpe_d2.evaluation import BestIoUEvaluator

SIZE = (12, 16)


def mask_at(y0, x0, y1, x1):
    mask = np.zeros(SIZE, np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


TRUTH = [
    [mask_at(0, 0, 4, 4), mask_at(4, 4, 10, 10)],
    [],
    [mask_at(2, 2, 6, 12)],
]
PRED = [
    [mask_at(0, 0, 4, 2), mask_at(5, 4, 10, 10), mask_at(0, 0, 2, 3)],
    [mask_at(0, 0, 3, 3)],
    [],
]


@pytest.fixture
def dataset(request):
    import pycocotools.mask as mask_util

    name = f"best_iou_{request.node.name}"
    records = []
    for number, masks in enumerate(TRUTH):
        annotations = []
        for mask in masks:
            rle = mask_util.encode(np.asfortranarray(mask))
            annotations.append(
                {
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": 0,
                    "iscrowd": 0,
                    "segmentation": {**rle, "counts": rle["counts"].decode()},
                }
            )
        height, width = SIZE
        records.append(
            {
                "file_name": f"{number}.png",
                "image_id": number,
                "height": height,
                "width": width,
                "annotations": annotations,
            }
        )
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=["thing", "other"])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def predictions(masks):
    instances = Instances(SIZE)
    instances.pred_masks = torch.tensor(np.array(masks).reshape(-1, *SIZE)).bool()
    instances.pred_boxes = Boxes(torch.zeros(len(masks), 4))
    instances.scores = torch.ones(len(masks))
    instances.pred_classes = torch.ones(len(masks), dtype=torch.long)  # a wrong class
    return {"instances": instances}


def test_by_hand(dataset):
    evaluator = BestIoUEvaluator(dataset, distributed=False)
    for number, masks in enumerate(PRED):
        evaluator.process([{"image_id": number}], [predictions(masks)])
    expected = []
    for pred, target in zip(PRED, TRUTH):
        for mask in target:
            iou = [(mask & other).sum() / (mask | other).sum() for other in pred]
            expected.append(max(iou, default=0))
    assert expected == [0.5, 30 / 36, 0]
    metrics = evaluator.evaluate()["best_iou"]
    assert metrics["mean"] == pytest.approx(100 * np.mean(expected))
    assert metrics["above50"] == pytest.approx(100 / 3)
    assert metrics["objects"] == 3
    assert metrics["predictions"] == 4
    assert metrics["predictions_in_empty"] == 1
    assert metrics["overlapping"] == 4  # the first and the third prediction share 2 x 2 pixels
    # At an IoU of .5 two of three objects are found first, which covers the recalls 0 to .66. From
    # .55 to .8 the second prediction of four is the only good one, and covers 0 to .33.
    assert metrics["AP"] == pytest.approx((67 + 6 * 34 / 2) / 101 * 10)


def test_without_predictions_and_without_masks(dataset):
    evaluator = BestIoUEvaluator(dataset, distributed=False)
    assert evaluator.evaluate()["best_iou"]["mean"] == 0
    output = predictions(PRED[0])
    output["instances"].remove("pred_masks")
    evaluator.process([{"image_id": 0}], [output])
    assert evaluator.evaluate() == {}
