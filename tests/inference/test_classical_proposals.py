"""Selective search and edge boxes on images in which the objects are known."""

import cv2
import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from rpe_d2.inference import classical_proposals
from rpe_d2.inference.classical_proposals import edge_boxes, selective_search

has_ximgproc = pytest.mark.skipif(
    not hasattr(cv2, "ximgproc"), reason="this package of OpenCV has no ximgproc"
)
OBJECTS = torch.tensor([[20.0, 20, 60, 60], [70, 60, 110, 110]])


def areas(found) -> np.ndarray:
    return (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1)


@pytest.fixture
def image() -> np.ndarray:
    image = np.full((128, 144, 3), 40, np.uint8)
    for number, (x0, y0, x1, y1) in enumerate(OBJECTS.int().tolist()):
        image[y0:y1, x0:x1] = ((200, 30, 90), (10, 200, 40))[number]
    noise = np.random.default_rng(0).integers(0, 12, image.shape, dtype=np.uint8)
    return image + noise


@has_ximgproc
def test_selective_search_finds_flat_objects_in_a_repeatable_order(image):
    found = selective_search(image)
    assert found.boxes.dtype == np.float32 and found.boxes.shape == (len(found.scores), 4)
    assert box_iou(OBJECTS, torch.from_numpy(found.boxes)).amax(dim=1).min() > 0.9
    assert (np.diff(found.scores) < 0).all()
    assert (found.boxes >= 0).all() and (found.boxes <= [144, 128, 144, 128]).all()
    again = selective_search(image)
    np.testing.assert_array_equal(found.boxes, again.boxes)
    assert len(selective_search(image, max_proposals=3).boxes) == 3
    assert len(selective_search(image, min_area=2500).boxes) == (areas(found) >= 2500).sum() > 0


@has_ximgproc
def test_edge_boxes_enclose_contours():
    boundaries = torch.zeros(128, 144)
    for x0, y0, x1, y1 in OBJECTS.int().tolist():
        frame = torch.zeros_like(boundaries)
        frame[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1] = 1
        frame[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = 0
        boundaries = torch.maximum(boundaries, frame)
    found = edge_boxes(boundaries, max_proposals=50, min_area=200)
    assert 2 <= len(found.boxes) <= 50 and (np.diff(found.scores) <= 0).all()
    assert box_iou(OBJECTS, torch.from_numpy(found.boxes[:10])).amax(dim=1).min() > 0.75
    assert areas(found).min() >= 200
    nothing = edge_boxes(torch.zeros(40, 50))
    assert nothing.boxes.shape == (0, 4) and nothing.scores.shape == (0,)


def test_a_package_without_the_methods_is_reported(monkeypatch):
    monkeypatch.setattr(classical_proposals.cv2, "ximgproc", None, raising=False)
    for run in (lambda: selective_search(np.zeros((9, 9, 3), np.uint8)), lambda: edge_boxes(None)):
        with pytest.raises(ValueError, match="ximgproc.*opencv-contrib-python-headless") as error:
            run()
        assert "\n" not in str(error.value)
