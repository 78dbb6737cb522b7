"""Error kinds of TIDE: against plain loops, and their definitions one by one."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from pycocotools.coco import COCO

from rpe_d2.evaluation.coco_scores import instance_scores
from rpe_d2.evaluation.error_analysis import (
    ERROR_KINDS,
    error_analysis,
    with_true_classes,
    with_true_scores,
)
from tests.reference.error_kinds import analyze

SIZE = (20, 24)


def rectangle(y0, x0, y1, x1):
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def coco_files(images, crowds=()):
    """Returns the ground truth and the results of images in the form of the reference."""
    annotations, results = [], []
    for number, image in enumerate(images):
        objects = [(*each, 0) for each in image["objects"]]
        objects += [(mask, label, 1) for where, mask, label in crowds if where == number]
        for mask, label, crowd in objects:
            rle = encode(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "iscrowd": crowd,
                    "area": float(mask.sum()),
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "segmentation": rle,
                }
            )
        for mask, label, score in image["predictions"]:
            rle = encode(mask)
            box = mask_util.toBbox(rle).tolist()
            result = {"image_id": number, "category_id": label, "score": score, "bbox": box}
            results.append({**result, "segmentation": rle})
    truth = COCO()
    truth.dataset = {
        "images": [{"id": n, "height": SIZE[0], "width": SIZE[1]} for n in range(len(images))],
        "annotations": annotations,
        "categories": [{"id": label, "name": str(label)} for label in (1, 2, 3)],
    }
    truth.createIndex()
    return truth, results


def encode(mask):
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {**rle, "counts": rle["counts"].decode()}


def random_images(seed, count=6):
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        objects = [(random_rectangle(rng), int(rng.integers(1, 4))) for _ in range(rng.integers(5))]
        predictions = [(random_rectangle(rng), int(rng.integers(1, 4))) for _ in range(3)]
        for mask, label in objects:
            for shift in rng.integers(0, 4, size=rng.integers(4)):
                moved = np.roll(mask, shift, axis=int(rng.integers(2)))
                predictions.append((moved, label if rng.random() < 0.7 else label % 3 + 1))
        scores = rng.permutation(1000)[: len(predictions)] / 1000 + rng.random() / 1000
        images.append(
            {
                "objects": objects,
                "predictions": [(*p, float(s)) for p, s in zip(predictions, scores)],
            }
        )
    return images


def random_rectangle(rng):
    y, x = rng.integers(0, 12), rng.integers(0, 14)
    return rectangle(y, x, y + rng.integers(3, 8), x + rng.integers(3, 10))


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])  # the masks are rectangles
def test_equal_to_plain_loops(iou_type):
    seen = dict.fromkeys(ERROR_KINDS, 0)
    for seed in range(25):
        images = random_images(seed)
        truth, results = coco_files(images)
        expected = analyze(images)
        found = error_analysis(truth, results, iou_type=iou_type)
        assert found.pop("counts") == expected["counts"], seed
        assert found == pytest.approx({k: v for k, v in expected.items() if k != "counts"})
        seen = {name: seen[name] + expected["counts"][name] for name in seen}
        scores = instance_scores(truth, results, 100, iou_type)
        assert found["AP50"] == pytest.approx(scores["AP50"])
    assert min(seen.values()) >= 10, seen


TARGET = rectangle(2, 2, 12, 12)
ONE_ERROR = {
    "classification": (TARGET, 2),
    "localization": (rectangle(2, 2, 12, 6), 1),
    "both": (rectangle(2, 2, 12, 6), 2),
    "background": (rectangle(15, 15, 19, 19), 1),
}


@pytest.mark.parametrize("kind", list(ONE_ERROR))
def test_one_error(kind):
    """The object of the first image is found in the second one, with a lower score."""
    images = [
        {"objects": [(TARGET, 1)], "predictions": [(*ONE_ERROR[kind], 0.9)]},
        {"objects": [(TARGET, 1), (rectangle(14, 2, 19, 8), 2)], "predictions": [(TARGET, 1, 0.8)]},
    ]
    analysis = error_analysis(*coco_files(images))
    lost = 2 if kind in ("both", "background") else 1  # that of class 2 is missed, too
    assert analysis["counts"] == {**dict.fromkeys(ERROR_KINDS, 0), kind: 1, "missed": lost}
    assert analysis[kind] >= 0
    if kind in ("classification", "localization"):
        assert analysis["AP50"] + analysis[kind] == pytest.approx(50)  # all but class 2


def test_a_duplicate():
    near = rectangle(2, 2, 12, 11)
    predictions = [(TARGET, 1, 0.9), (near, 1, 0.8), (rectangle(14, 2, 19, 8), 1, 0.7)]
    objects = [(TARGET, 1), (rectangle(14, 2, 19, 8), 1)]
    analysis = error_analysis(*coco_files([{"objects": objects, "predictions": predictions}]))
    assert analysis["counts"] == {**dict.fromkeys(ERROR_KINDS, 0), "duplicate": 1}
    assert analysis["AP50"] + analysis["duplicate"] == pytest.approx(100)
    assert analysis["duplicate"] > 10


def test_perfect_predictions_and_none():
    objects = [(TARGET, 1), (rectangle(14, 2, 19, 8), 2)]
    perfect = [{"objects": objects, "predictions": [(*each, 0.5) for each in objects]}]
    analysis = error_analysis(*coco_files(perfect))
    assert analysis.pop("counts") == dict.fromkeys(ERROR_KINDS, 0)
    assert analysis.pop("AP50") == pytest.approx(100)
    assert set(analysis.values()) == {0}
    analysis = error_analysis(*coco_files([{"objects": objects, "predictions": []}]))
    assert analysis["counts"]["missed"] == 2
    assert analysis["AP50"] == 0 and analysis["missed"] == 100
    analysis = error_analysis(*coco_files([{"objects": [], "predictions": []}]))
    assert np.isnan(analysis["AP50"]) and np.isnan(analysis["missed"])


def test_crowds_and_predictions_in_them_are_left_out():
    images = [{"objects": [(TARGET, 1)], "predictions": [(TARGET, 1, 0.9)]}]
    images[0]["predictions"].append((rectangle(14, 14, 18, 18), 1, 0.95))
    crowd = (0, rectangle(13, 13, 20, 24), 1)
    analysis = error_analysis(*coco_files(images, [crowd]))
    assert analysis["AP50"] == pytest.approx(100)
    assert sum(analysis["counts"].values()) == 0
    assert error_analysis(*coco_files(images))["counts"]["background"] == 1


def test_true_classes_and_true_scores():
    other, crowd = rectangle(14, 2, 19, 8), rectangle(13, 13, 20, 24)
    half = rectangle(2, 2, 12, 7)  # of TARGET
    predictions = [(half, 2, 0.9), (other, 2, 0.1), (TARGET, 1, 0.2), (crowd, 1, 0.3)]
    objects = [(TARGET, 1), (other, 2)]
    images = [{"objects": objects, "predictions": predictions}]
    truth, results = coco_files(images, [(0, crowd, 2)])
    before = [dict(result) for result in results]
    classes = [result["category_id"] for result in with_true_classes(truth, results)]
    assert classes == [1, 2, 1, 1]  # nothing but a crowd is under the last one
    scores = [result["score"] for result in with_true_scores(truth, results)]
    assert scores == pytest.approx([0, 1, 1, 0])
    both = with_true_scores(truth, with_true_classes(truth, results))
    assert [result["score"] for result in both] == pytest.approx([0.5, 1, 1, 0])
    assert results == before
