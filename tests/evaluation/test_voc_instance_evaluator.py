"""AP^r by hand, against a slow implementation, and on two processes."""

import json
from functools import partial

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import launch
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from pycocotools.coco import COCO

from rpe_d2.data import register_voc
from rpe_d2.evaluation import InstanceSegmentationEvaluator, VOCInstanceEvaluator
from tests.helpers import voc_tree
from tests.helpers.ranks import write_and_exit
from tests.reference import voc_ap as reference
from tests.reference.voc_ap import Detection, Truth

SIZE = (24, 32)
NAME = "voc_ap_test"
LABELS = ("a", "b", "c")


def square(x0, y0, x1, y1):
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def encoded(mask) -> dict:
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def dataset_dicts(truths, images) -> list:
    records = [
        {"file_name": f"{n}.png", "image_id": n, "height": SIZE[0], "width": SIZE[1]}
        for n in images
    ]
    for record in records:
        record["annotations"] = [
            {
                "bbox": mask_util.toBbox(encoded(truth.mask)).tolist(),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": truth.label,
                "iscrowd": int(truth.crowd),
                "difficult": truth.difficult,
                "segmentation": encoded(truth.mask),
            }
            for truth in truths
            if truth.image == record["image_id"]
        ]
    return records


@pytest.fixture
def register():
    """A function that registers ground truth: ``register(truths, images=(1,))``."""

    def put(truths, images=(1,)):
        remove()
        DatasetCatalog.register(NAME, partial(dataset_dicts, truths, images))
        MetadataCatalog.get(NAME).set(thing_classes=list(LABELS))

    def remove():
        if NAME in DatasetCatalog.list():
            DatasetCatalog.remove(NAME)
            MetadataCatalog.pop(NAME)

    yield put
    remove()


def output_of(detections, size=SIZE) -> dict:
    masks = np.array([d.mask for d in detections]).reshape(-1, *size)
    return {
        "instances": Instances(
            size,
            pred_masks=torch.from_numpy(masks),
            pred_boxes=Boxes(torch.zeros(len(masks), 4)),
            scores=torch.tensor([d.score for d in detections], dtype=torch.float64),
            pred_classes=torch.tensor([d.label for d in detections], dtype=torch.int64),
        )
    }


def evaluated(detections, images=(1,), **options) -> dict:
    evaluator = VOCInstanceEvaluator(NAME, **options)
    for image in images:
        pred = [d for d in detections if d.image == image]
        evaluator.process([{"image_id": image}], [output_of(pred)])
    return evaluator.evaluate()["voc_segm"]


def matches(metrics, **expected) -> bool:
    pred = {name: metrics[name] for name in expected}
    return pred == pytest.approx(expected, nan_ok=True)


def test_perfect_detections_and_no_detections(register):
    one, other = square(0, 0, 10, 10), square(12, 0, 22, 10)
    register([Truth(1, 0, one), Truth(1, 2, other)])
    metrics = evaluated([Detection(1, 0, 0.9, one), Detection(1, 2, 0.8, other)])
    assert matches(metrics, AP50=100, AP70=100, AP50_07=100, AP70_07=100, APvol=100)
    assert matches(
        metrics, **{"AP50-a": 100, "AP50-b": np.nan, "APvol-b": np.nan, "AP70_07-c": 100}
    )
    assert matches(evaluated([]), AP50=0, AP70_07=0, APvol=0, **{"AP50-b": np.nan})
    # A class without ground truth has no score, even if it is detected.
    assert matches(evaluated([Detection(1, 1, 0.9, one)]), AP50=0, **{"AP50-b": np.nan})
    register([])
    assert matches(evaluated([Detection(1, 1, 0.9, one)]), AP50=np.nan, APvol=np.nan)


def test_area_and_eleven_points(register):
    squares = [square(8 * n, 0, 8 * n + 8, 8) for n in range(4)]
    far = square(0, 20, 4, 24)
    register([Truth(1, 0, mask) for mask in squares])
    # In order of score: correct, false, correct, correct. One of four is missed. The envelope of
    # the precision is 1 up to recall 1/4, then 3/4 up to 3/4.
    pred = [
        Detection(1, 0, 0.9, squares[0]), Detection(1, 0, 0.8, far),
        Detection(1, 0, 0.7, squares[1]), Detection(1, 0, 0.6, squares[2]),
    ]  # fmt: skip
    metrics = evaluated(pred)
    assert matches(metrics, AP50=100 * (1 + 0.75 + 0.75) / 4)
    # Eleven points: 0, .1, .2 at 1; .3 to .7 at 3/4; .8 to 1 at 0.
    assert matches(metrics, AP50_07=100 * (3 + 5 * 0.75) / 11)


def test_the_recall_of_three_of_ten_is_three_tenths(register):
    masks = [square(3 * n, 0, 3 * n + 3, 3) for n in range(10)]
    register([Truth(1, 0, mask) for mask in masks])
    pred = [Detection(1, 0, 0.9 - n / 10, mask) for n, mask in enumerate(masks[:3])]
    assert matches(evaluated(pred), AP50=30, AP50_07=100 * 4 / 11)


def test_thresholds_are_inclusive(register):
    whole = square(0, 0, 10, 10)
    register([Truth(1, 0, whole)])
    for width, passed in ((5, 5), (6, 6), (7, 7), (3, 3)):
        metrics = evaluated([Detection(1, 0, 0.9, square(0, 0, width, 10))])
        assert matches(
            metrics, AP50=100 * (width >= 5), AP70=100 * (width >= 7), APvol=100 * passed / 9
        )


def test_a_second_detection_is_false(register):
    one, other = square(0, 0, 10, 10), square(12, 0, 22, 10)
    register([Truth(1, 0, one), Truth(1, 0, other)])
    pred = [
        Detection(1, 0, 0.9, one), Detection(1, 0, 0.8, square(0, 0, 10, 9)),
        Detection(1, 0, 0.7, other),
    ]  # fmt: skip
    assert matches(evaluated(pred), AP50=100 * (1 + 2 / 3) / 2)


def test_only_the_volume_assigns_to_remaining_instances(register):
    # Both detections overlap the left square most. The second one also overlaps the right one.
    left, right = square(0, 0, 10, 10), square(10, 0, 20, 10)
    register([Truth(1, 0, left), Truth(1, 0, right)])
    pred = [Detection(1, 0, 0.9, left), Detection(1, 0, 0.8, square(0, 0, 15, 10))]
    metrics = evaluated(pred)
    assert matches(metrics, AP50=50, AP70=50)
    # Its IoU with the right square is 50 / 200 = .25, so it is correct at .1 and .2.
    assert matches(metrics, APvol=(2 * 100 + 7 * 50) / 9)


def test_difficult_instances_are_ignored(register):
    easy, hard = square(0, 0, 10, 10), square(12, 0, 22, 10)
    register([Truth(1, 0, easy), Truth(1, 0, hard, difficult=True)])
    pred = [
        Detection(1, 0, 0.9, hard), Detection(1, 0, 0.8, hard), Detection(1, 0, 0.7, easy)
    ]  # fmt: skip
    assert matches(evaluated(pred), AP50=100, APvol=100)
    counted = evaluated(pred, ignore_difficult=False)
    assert matches(counted, AP50=100 * (1 + 2 / 3) / 2)
    assert matches(evaluated([]), AP50=0)
    assert matches(evaluated([], ignore_difficult=False), AP50=0)
    register([Truth(1, 0, hard, difficult=True)])
    assert matches(evaluated(pred), AP50=np.nan)


def test_crowds_are_ignored(register):
    one, crowd = square(0, 0, 10, 10), square(12, 0, 32, 24)
    register([Truth(1, 0, one), Truth(1, 0, crowd, crowd=True)])
    pred = [
        Detection(1, 0, 0.9, square(14, 2, 18, 8)), Detection(1, 0, 0.8, one),
        Detection(1, 1, 0.9, square(14, 2, 18, 8)),
    ]  # fmt: skip
    assert matches(evaluated(pred), AP50=100, APvol=100)


def random_case(seed):
    rng = np.random.default_rng(seed)
    images = range(1, 7)

    def box():
        x, y = rng.integers(0, 24), rng.integers(0, 16)
        return square(x, y, x + rng.integers(3, 12), y + rng.integers(3, 12))

    truths = [
        Truth(int(rng.integers(1, 7)), int(rng.integers(2)), box(), rng.random() < 0.2, False)
        for _ in range(24)
    ]
    truths += [Truth(int(rng.integers(1, 7)), 0, box(), crowd=True) for _ in range(2)]
    scores = rng.permutation(60) / 60
    detections = []
    for score in scores[:40]:  # shifted ground truth of any class
        truth = truths[rng.integers(len(truths))]
        mask = np.roll(truth.mask, rng.integers(-2, 3, 2), (0, 1))
        label = truth.label if rng.random() < 0.8 else int(rng.integers(3))
        detections.append(Detection(truth.image, label, float(score), mask))
    for score in scores[40:]:
        label = int(rng.integers(3))
        detections.append(Detection(int(rng.integers(1, 7)), label, float(score), box()))
    return truths, detections, images


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_the_definition(register, seed):
    truths, detections, images = random_case(seed)
    register(truths, images)
    metrics = evaluated(detections, images)
    expected = reference.voc_ap(truths, detections, range(3))
    for number, label in enumerate(LABELS):
        expected = {name.replace(f"-{number}", f"-{label}"): v for name, v in expected.items()}
    assert set(metrics) == set(expected) and 0 < expected["APvol"] < 100
    assert matches(metrics, **expected)


def test_ids_of_a_coco_file(register, tmp_path):
    """Category ids have gaps, VOC's "ignore" is set, and detections are in another order."""
    one, hard = square(0, 0, 10, 10), square(12, 0, 22, 10)
    annotation = {"image_id": 5, "iscrowd": 0, "area": 100, "bbox": [0, 0, 10, 10]}
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 5, "height": SIZE[0], "width": SIZE[1], "file_name": "5.png"}],
        "annotations": [
            {**annotation, "id": 1, "category_id": 7, "segmentation": encoded(one)},
            {**annotation, "id": 2, "category_id": 7, "segmentation": encoded(hard), "ignore": 1},
        ],
        "categories": [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth.dataset))
    MetadataCatalog.get(NAME).set(
        json_file=str(path), image_root="x", thing_dataset_id_to_contiguous_id={3: 0, 7: 1}
    )
    try:
        pred = [Detection(5, 1, 0.9, hard), Detection(5, 1, 0.8, one)]
        metrics = evaluated(pred, images=(5,))
        assert matches(metrics, AP50=100, **{"AP50-a": np.nan, "AP50-b": 100})
    finally:
        MetadataCatalog.pop(NAME)


def test_masks_of_another_size_and_no_masks(register):
    register([Truth(1, 0, square(0, 0, 10, 10))])
    evaluator = VOCInstanceEvaluator(NAME)
    pred = Detection(1, 0, 0.9, np.ones((6, 9), bool))
    evaluator.process([{"image_id": 1}], [output_of([pred], size=(6, 9))])
    with pytest.raises(ValueError, match=r"mask in image 1 is \[6, 9\] .* the image, \[24, 32\]"):
        evaluator.evaluate()
    evaluator.reset()
    output = output_of([Detection(1, 0, 0.9, square(0, 0, 10, 10))])
    output["instances"].remove("pred_masks")
    evaluator.process([{"image_id": 1}], [output])
    assert evaluator.evaluate() == {}


def voc_output(record, moved=0) -> dict:
    masks = mask_util.decode([a["segmentation"] for a in record["annotations"]])
    masks = np.roll(masks.transpose(2, 0, 1).astype(bool), moved, axis=2)
    pred = [
        Detection(0, a["category_id"], 0.9 - n / 10, mask)
        for n, (a, mask) in enumerate(zip(record["annotations"], masks))
    ]
    return output_of(pred, size=voc_tree.SIZE)


def test_void_is_background_and_difficult_is_kept_from_files(tmp_path):
    """On the miniature of VOC, after the COCO evaluator has written its own ground-truth file."""
    with voc_tree.unregistered_afterwards():
        register_voc(str(voc_tree.write_tree(tmp_path)))
        InstanceSegmentationEvaluator("voc_2012_val", str(tmp_path / "out"), 100)
        records = DatasetCatalog.get("voc_2012_val")
        evaluator = VOCInstanceEvaluator("voc_2012_val")
        for record in records:
            outputs = voc_output(record)
            difficult = [a["difficult"] for a in record["annotations"]]
            kept = torch.tensor([not flag for flag in difficult])
            outputs["instances"] = outputs["instances"][kept]
            evaluator.process([record], [outputs])
        metrics = evaluator.evaluate()["voc_segm"]
        assert matches(metrics, AP50=100, APvol=100, **{"AP50-person": 100, "AP50-cat": np.nan})
        counted = VOCInstanceEvaluator("voc_2012_val", ignore_difficult=False)
        counted._results = evaluator._results
        # Two of three people are detected, not the difficult one.
        assert matches(counted.evaluate()["voc_segm"], **{"AP50-person": 100 * 2 / 3})

        # The aeroplane's mask with its void band has an IoU of 18 x 14 / (20 x 16).
        evaluator.reset()
        whole = np.zeros(voc_tree.SIZE, bool)
        whole[4:20, 4:24] = True
        output = output_of([Detection(0, 0, 0.9, whole)], size=voc_tree.SIZE)
        evaluator.process([records[0]], [output])
        iou = 18 * 14 / (20 * 16)
        assert matches(
            evaluator.evaluate()["voc_segm"], **{"APvol-aeroplane": 100 * int(iou * 10) / 9}
        )


def _evaluate_on_rank(root, out):
    """Evaluates one image per process, or both on one process."""
    register_voc(root)
    rank, world_size = comm.get_rank(), comm.get_world_size()
    evaluator = VOCInstanceEvaluator("voc_2012_val")
    for moved, record in list(enumerate(DatasetCatalog.get("voc_2012_val")))[rank::world_size]:
        evaluator.process([record], [voc_output(record, 2 + moved)])
    metrics = evaluator.evaluate()
    write_and_exit(metrics, None, out)


def test_two_processes_give_the_numbers_of_one(tmp_path):
    root = str(voc_tree.write_tree(tmp_path / "data"))
    with voc_tree.unregistered_afterwards():
        _evaluate_on_rank(root, str(tmp_path / "one.json"))
    launch(_evaluate_on_rank, 2, dist_url="auto", args=(root, str(tmp_path / "two.json")))
    one, two = ((tmp_path / name).read_text() for name in ("one.json", "two.json"))
    assert one == two
    assert 0 < json.loads(one)["voc_segm"]["APvol"] < 100
