"""Boundary AP and Boundary IoU against slow references and by hand."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import launch
from detectron2.evaluation import SemSegEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from PIL import Image
from pycocotools.coco import COCO

from rpe_d2.evaluation import BoundaryAPEvaluator
from rpe_d2.evaluation.boundary_ap_evaluator import BoundaryCOCOeval, boundary_areas
from rpe_d2.evaluation.mask_boundaries import boundary_rle, boundary_width, mask_boundary
from rpe_d2.utils.label_maps import read_label_map
from tests.helpers.ranks import write_and_exit
from tests.reference import boundaries as reference

SIZE = (60, 80)


def blobs(seed: int, size=SIZE, threshold=0.52) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.random((size[0] // 5 + 1, size[1] // 5 + 1))
    return np.kron(coarse, np.ones((5, 5)))[: size[0], : size[1]] > threshold


@pytest.mark.parametrize("width", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "mask",
    [
        blobs(0),
        blobs(1, threshold=0.1),
        np.ones((9, 4), bool),
        np.zeros((5, 6), bool),
        np.eye(7, dtype=bool),
    ],
)
def test_boundaries_are_the_definition(mask, width):
    expected = reference.mask_boundary(mask, width)
    assert np.array_equal(mask_boundary(mask, width), expected)
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert np.array_equal(mask_util.decode(boundary_rle(rle, width)), expected)


def test_width_is_two_percent_of_the_diagonal():
    assert boundary_width((300, 400)) == 10
    assert boundary_width((10, 10)) == 1
    assert boundary_width((300, 400), 0.005) == 2  # 2.5 is rounded to even


def encoded(mask) -> dict:
    return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))


def coco(annotations) -> COCO:
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": 1, "height": SIZE[0], "width": SIZE[1], "file_name": "1.png"}],
        "annotations": [
            {
                "id": number,
                "image_id": 1,
                "category_id": category,
                "iscrowd": crowd,
                "area": int(mask.sum()),
                "bbox": mask_util.toBbox(encoded(mask)).tolist(),
                "segmentation": encoded(mask),
            }
            for number, (mask, category, crowd) in enumerate(annotations, start=1)
        ],
        "categories": [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}],
    }
    truth.createIndex()
    return truth


def square(x0, y0, x1, y1):
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize("width", [None, 1, 2])
def test_overlaps_are_the_definition(width):
    truths = [square(5, 5, 30, 30), blobs(3), square(40, 0, 80, 20)]
    pred = [square(6, 7, 31, 30), blobs(3), square(44, 3, 80, 22), square(0, 50, 4, 60)]
    scores = [0.2, 0.9, 0.5, 0.7]
    truth = coco([(mask, 3, 0) for mask in truths])
    results = truth.loadRes(
        [
            {"image_id": 1, "category_id": 3, "score": score, "segmentation": encoded(mask)}
            for mask, score in zip(pred, scores)
        ]
    )
    evaluation = BoundaryCOCOeval(truth, results, width)
    evaluation._prepare()
    overlaps = evaluation.computeIoU(1, 3)
    for row, index in enumerate([1, 3, 2, 0]):
        for column, mask in enumerate(truths):
            masks = (pred[index] & mask).sum() / (pred[index] | mask).sum()
            boundaries = reference.boundary_iou(pred[index], mask, width or 2)
            assert overlaps[row, column] == pytest.approx(min(masks, boundaries))


def register(json_file=None, map_file=None):
    if json_file:
        MetadataCatalog.get("boundary_test").set(
            json_file=json_file, thing_dataset_id_to_contiguous_id={3: 0, 7: 1}
        )
    if map_file:
        item = {"file_name": "picture.png", "sem_seg_file_name": map_file}
        DatasetCatalog.register("boundary_semantic_test", lambda: [item])
        MetadataCatalog.get("boundary_semantic_test").set(
            stuff_classes=["background", "square", "never"],
            evaluator_type="sem_seg",
            ignore_label=255,
        )


def unregister():
    for name in ("boundary_test", "boundary_semantic_test"):
        if name in MetadataCatalog.list():
            MetadataCatalog.pop(name)
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)


@pytest.fixture
def instance_data(tmp_path):
    """Registers two squares of 40 x 40 pixels. Category ids are not contiguous."""
    truth = coco([(square(0, 0, 40, 40), 3, 0), (square(40, 10, 80, 50), 7, 0)])
    for annotation in truth.dataset["annotations"]:
        annotation["segmentation"]["counts"] = annotation["segmentation"]["counts"].decode()
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth.dataset))
    register(json_file=str(path))
    yield "boundary_test"
    unregister()


def instances(*masks_and_classes) -> Instances:
    masks = torch.tensor(np.array([mask for mask, _ in masks_and_classes]).reshape(-1, *SIZE))
    return Instances(
        SIZE,
        pred_masks=masks,
        pred_boxes=Boxes(torch.zeros(len(masks), 4)),
        scores=torch.ones(len(masks)),
        pred_classes=torch.tensor([label for _, label in masks_and_classes], dtype=torch.int64),
    )


def test_average_precision_by_hand(instance_data):
    evaluator = BoundaryAPEvaluator(instance_data)
    pred = instances((square(0, 0, 40, 40), 0), (square(41, 10, 80, 50), 1))
    evaluator.process([{"image_id": 1}], [{"instances": pred}])
    metrics = evaluator.evaluate()
    assert list(metrics) == ["segm_boundary", "segm_boundary_2px", "segm_boundary_1px"]
    # The second detection lacks a column. Its mask IoU is 0.975, and its boundary IoU is smaller
    # the thinner the boundaries are.
    assert metrics["segm_boundary"]["AP50"] == pytest.approx(100)
    for suffix, width in (("", 2), ("_2px", 2), ("_1px", 1)):
        iou = reference.boundary_iou(square(41, 10, 80, 50), square(40, 10, 80, 50), width)
        passed = sum(iou >= threshold for threshold in np.arange(0.5, 1, 0.05))
        assert 0 < passed < 10
        expected = (100 + 100 * passed / 10) / 2
        assert metrics[f"segm_boundary{suffix}"]["AP"] == pytest.approx(expected)
        assert metrics[f"segm_boundary{suffix}"]["APm"] == pytest.approx(expected)
        assert np.isnan(metrics[f"segm_boundary{suffix}"]["APl"])


def test_no_detections(instance_data):
    evaluator = BoundaryAPEvaluator(instance_data)
    evaluator.process([{"image_id": 1}], [{"instances": instances()}])
    assert evaluator.evaluate()["segm_boundary"]["AP"] == 0


def test_semantic_areas_are_the_definition():
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 3, (6, 8)), np.ones((10, 10), int))
    truth[:4, 20:] = 255
    pred = np.roll(truth, 2, axis=1)
    pred[pred == 255] = 1
    areas = boundary_areas(pred, truth, 4, 255)
    seen = np.where(truth == 255, 255, pred)
    for number, width in enumerate((boundary_width(truth.shape), 2, 1)):
        for label in range(4):
            one = reference.mask_boundary(seen == label, width)
            other = reference.mask_boundary(truth == label, width)
            expected = [(one & other).sum(), (one | other).sum(), other.sum()]
            assert areas[number, :, label].tolist() == expected


def test_an_ignored_label_among_the_classes_is_no_class():
    truth = np.kron([[0, 1], [2, 0]], np.ones((10, 10), int))
    areas = boundary_areas(np.ones_like(truth), truth, 3, 0)
    assert not areas[:, :, 0].any() and (areas[:, 2, 1:] > 0).all()


@pytest.fixture
def semantic_data(tmp_path):
    truth = np.zeros(SIZE, np.uint8)
    truth[10:50, 10:50] = 1
    truth[0, 0] = 255
    Image.fromarray(truth).save(tmp_path / "map.png")
    register(map_file=str(tmp_path / "map.png"))
    yield "boundary_semantic_test", truth
    unregister()


def test_semantic_maps(semantic_data):
    name, truth = semantic_data
    evaluator = BoundaryAPEvaluator(name)
    scores = torch.zeros(3, *SIZE)
    scores[1] = torch.from_numpy((truth == 1).astype(np.float32)) * 2 - 1
    item = {"file_name": "picture.png"}
    evaluator.process([item], [{"sem_seg": scores}])
    metrics = evaluator.evaluate()
    assert list(metrics) == ["sem_seg_boundary", "sem_seg_boundary_2px", "sem_seg_boundary_1px"]
    for values in metrics.values():
        assert values["mIoU"] == values["IoU-background"] == values["IoU-square"] == 100
        assert np.isnan(values["IoU-never"])
    evaluator.process([item], [{"sem_seg": scores.roll(4, dims=2)}])
    assert evaluator.evaluate()["sem_seg_boundary_1px"]["IoU-square"] < 80
    evaluator.reset()
    assert np.isnan(evaluator.evaluate()["sem_seg_boundary"]["mIoU"])


def test_a_class_that_does_not_occur_is_excluded_from_the_mean(semantic_data):
    name, truth = semantic_data
    scores = torch.zeros(3, *SIZE)
    scores[1] = torch.from_numpy((truth == 1).astype(np.float32)) * 2 - 1
    scores[2, 30:, 60:] = 1
    boundaries = BoundaryAPEvaluator(name)
    semantic = SemSegEvaluator(name, sem_seg_loading_fn=read_label_map)
    for evaluator in (boundaries, semantic):
        evaluator.reset()
        evaluator.process([{"file_name": "picture.png"}], [{"sem_seg": scores}])
    values = boundaries.evaluate()["sem_seg_boundary"]
    assert np.isnan(values["IoU-never"]) and values["IoU-background"] < 100
    assert values["mIoU"] == (values["IoU-background"] + values["IoU-square"]) / 2
    pred = semantic.evaluate()["sem_seg"]
    assert pred["mIoU"] == (pred["IoU-background"] + pred["IoU-square"]) / 2


def _evaluate_on_rank(json_file, map_file, out):
    """Evaluates instances and label maps, one output per process or both on one process."""
    register(json_file, map_file)
    rank, world_size = comm.get_rank(), comm.get_world_size()
    shifted = torch.zeros(3, *SIZE)
    shifted[1, 12:52, 10:50] = 1
    outputs = {
        "boundary_test": [
            {"instances": instances((square(0, 0, 40, 40), 0))},
            {"instances": instances((square(41, 10, 80, 50), 1))},
        ],
        "boundary_semantic_test": [{"sem_seg": shifted}, {"sem_seg": shifted.roll(3, dims=1)}],
    }
    item = {"file_name": "picture.png", "image_id": 1}
    metrics = []
    for name, pred in outputs.items():
        evaluator = BoundaryAPEvaluator(name)
        for output in pred[rank::world_size]:
            evaluator.process([item], [output])
        metrics.append(evaluator.evaluate())
    write_and_exit(metrics, [None, None], out)


def test_two_processes_give_the_numbers_of_one(instance_data, semantic_data, tmp_path):
    files = (
        MetadataCatalog.get(instance_data).json_file,
        DatasetCatalog.get(semantic_data[0])[0]["sem_seg_file_name"],
    )
    unregister()
    _evaluate_on_rank(*files, str(tmp_path / "one.json"))
    launch(_evaluate_on_rank, 2, dist_url="auto", args=(*files, str(tmp_path / "two.json")))
    one, two = ((tmp_path / name).read_text() for name in ("one.json", "two.json"))
    assert one == two and "sem_seg_boundary_1px" in one
