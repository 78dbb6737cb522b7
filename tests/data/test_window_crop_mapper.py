"""Patches of one window: what is positive and negative in them, and what they show."""

import numpy as np
import pytest
import torch

from rpe_d2.data import WindowCropMapper, load_shapes
from tests.helpers.configs import small_cfg_with

SIDE = 56
TEXT = f"INPUT: {{DATASET_MAPPER_NAME: WindowCropMapper, CROP: {{SIZE: [{SIDE}, {SIDE}]}}}}"


def mapper_of(*texts, is_train=True, **changes):
    cfg = small_cfg_with("INPUT: {RANDOM_FLIP: none}", TEXT, *texts)
    return WindowCropMapper(cfg, is_train=is_train, **changes)


@pytest.fixture(scope="module")
def record():
    """An image whose smallest object is 7 pixels wide."""
    return load_shapes("val")[0]


def test_patches_have_one_canonical_object_or_none(record):
    np.random.seed(0)
    mapper, positive = mapper_of(), 0
    for _ in range(60):
        item = mapper(record)
        targets = item["instances"]
        assert item["image"].shape == (3, SIDE, SIDE) and targets.image_size == (SIDE, SIDE)
        assert len(targets) <= 1 and targets.gt_masks.tensor.shape[1:] == (SIDE, SIDE)
        if not len(targets):
            continue
        positive += 1
        box = targets.gt_boxes.tensor[0]
        sides = box[2:] - box[:2]
        # The window starts at a whole pixel of the image; a canonical object has 32 pixels.
        octaves = torch.log2(sides.max() / SIDE * 224 / 128).abs()
        shift = ((box[:2] + box[2:]) / 2 - SIDE / 2).abs().max() / SIDE
        assert octaves < 0.25 + 0.12 and shift < 16 / 224 + 0.06
        covered = targets.gt_masks.tensor.sum() / sides.prod()
        assert 0.1 < covered <= 1.05
    assert 15 < positive < 45


def test_negative_windows_are_beyond_a_tolerance_of_every_object(record):
    np.random.seed(0)
    mapper = mapper_of()
    boxes = np.array([[10.0, 10, 40, 30], [60, 60, 70, 90], [5, 80, 100, 120]])
    for _ in range(100):
        x, y, side = mapper._negative_window(boxes, 128, 128)
        for x0, y0, x1, y1 in boxes:
            shift = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) / side
            octaves = abs(np.log2(side * 128 / 224 / max(x1 - x0, y1 - y0)))
            assert shift >= 32 / 224 or octaves >= 1
        assert 0 <= x <= 128 and 0 <= y <= 128 and SIDE / 4 <= side <= 128


def test_a_patch_shows_its_window(record):
    """Inside the image it is the resized crop, and outside it is padding."""
    mapper = mapper_of(pad_value=77)
    image = mapper.reader(record["file_name"])
    window = (64.0, 50.0, 28.0)  # enlarged twice
    item = {**record, "annotations": [], "window": window}
    crop = super(WindowCropMapper, mapper).__call__(item)["image"].numpy().transpose(1, 2, 0)
    small = crop.reshape(28, 2, 28, 2, 3).mean((1, 3))
    assert np.abs(small - image[36:64, 50:78]).mean() < 6
    item["window"] = (0.0, 128.0, 28.0)  # centered on the lower left corner
    crop = super(WindowCropMapper, mapper).__call__(item)["image"].numpy().transpose(1, 2, 0)
    assert (crop[:, :28] == 77).all() and (crop[28:] == 77).all()
    small = crop[:28, 28:].reshape(14, 2, 14, 2, 3).mean((1, 3))
    assert np.abs(small - image[114:, :14]).mean() < 6


def test_images_without_objects_and_crowds_are_negative(record):
    crowd = [{**record["annotations"][0], "iscrowd": 1}]
    for annotations in ([], crowd):
        for _ in range(5):
            item = mapper_of()({**record, "annotations": annotations})
            assert len(item["instances"]) == 0


def test_resizing_is_left_out_and_tests_see_whole_images(record):
    mapper = mapper_of("INPUT: {SCALE_JITTER: [0.5, 2.0], RANDOM_FLIP: horizontal, GAMMA: 0.1}")
    assert mapper(record)["image"].shape == (3, SIDE, SIDE)
    assert len(mapper.augmentations.augs) == 2  # flip and gamma
    item = mapper_of("INPUT: {MIN_SIZE_TEST: 64}", is_train=False)(record)
    assert item["image"].shape == (3, 64, 64)


def test_a_wrong_size_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"INPUT.CROP.SIZE is \[0.9, 0.5\]; allowed with INPUT"):
        mapper_of("INPUT: {CROP: {SIZE: [0.9, 0.5]}}")
