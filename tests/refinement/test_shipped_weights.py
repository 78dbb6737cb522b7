"""The weights that come with rpe_d2: they sharpen labels, and do no harm to right ones."""

import cv2
import numpy as np
import pytest

import rpe_d2
from rpe_d2.data import load_shapes
from rpe_d2.refinement.degradation import DEGRADATIONS
from rpe_d2.refinement.refine import WEIGHTS
from rpe_d2.utils.images import ImageReader
from rpe_d2.utils.label_maps import decode_labels


def shape_scene(number: int):
    """Returns an image and the true label map of a validation image of the large shapes."""
    item = load_shapes("large_val")[number]
    masks = [annotation["segmentation"] for annotation in item["annotations"]]
    labels = decode_labels(masks, (item["height"], item["width"])).astype(np.int32)
    return ImageReader("RGB").read(item["file_name"]), labels


def mean_iou(labels: np.ndarray, truth: np.ndarray) -> float:
    ious = [
        ((labels == v) & (truth == v)).sum() / ((labels == v) | (truth == v)).sum()
        for v in np.unique(truth[truth > 0])
    ]
    return float(np.mean(ious))


def test_they_are_small():
    assert WEIGHTS.stat().st_size < 12e6


@pytest.mark.parametrize("number", range(3))
def test_right_labels_stay(number):
    image, truth = shape_scene(number)
    assert mean_iou(rpe_d2.refine(image, truth).result, truth) >= 0.99


@pytest.mark.parametrize("name", ["blocky", "shrink", "grow", "mask_grid", "warp"])
def test_wrong_boundaries_are_mended(name):
    image, truth = shape_scene(0)
    given = DEGRADATIONS[name](truth, np.random.default_rng(0), 5.0)
    before = mean_iou(given, truth)
    after = mean_iou(rpe_d2.refine(image, given).result, truth)
    assert 1 - after < 0.5 * (1 - before)


def test_a_disk_grows_to_its_edge():
    """An image of two gray values, which the network has never seen."""
    truth = np.zeros((120, 140), np.uint8)
    cv2.circle(truth, (70, 60), 35, 1, -1)
    image = np.where(truth > 0, 180, 60).astype(np.uint8)
    given = np.zeros_like(truth)
    cv2.circle(given, (71, 59), 32, 1, -1)
    refined = rpe_d2.refine(image, given)
    assert mean_iou(refined.result, truth) > 0.97 > mean_iou(given, truth)
