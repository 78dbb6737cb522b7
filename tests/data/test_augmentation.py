"""Quarter turns of images, masks, boxes and points."""

import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T

from rpe_d2 import add_rpe_config
from rpe_d2.data import ImageMapper, build_train_mapper, resizing_of_tests
from rpe_d2.data.augmentation import (
    QuarterTurnTransform,
    RandomGamma,
    RandomObjectCrop,
    RandomQuarterTurn,
    RandomScale,
    RandomScaledCrop,
    additional_augmentations,
)


@pytest.mark.parametrize("quarters", range(4))
def test_boxes_and_masks_turn_with_the_picture(quarters):
    picture = np.zeros((5, 8, 3), np.uint8)
    picture[1:3, 2:7] = 9
    turn = QuarterTurnTransform(quarters, 5, 8)
    turned = turn.apply_image(picture)
    assert np.array_equal(turn.apply_segmentation(picture[..., 0]), turned[..., 0])
    rows, columns = np.nonzero(turned[..., 0])
    tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert turn.apply_box(np.array([[2, 1, 7, 3]]))[0].tolist() == tight
    back = turn.inverse()
    assert np.array_equal(back.apply_image(turned), picture)
    points = np.array([[2.0, 1.0], [0.25, 4.5]])
    assert np.array_equal(back.apply_coords(turn.apply_coords(points)), points)


def test_all_four_turns_occur():
    np.random.seed(0)
    turn = RandomQuarterTurn()
    picture = np.arange(6).reshape(2, 3)
    seen = {turn.get_transform(picture).apply_image(picture).tobytes() for _ in range(50)}
    assert len(seen) == 4


def test_augmentations_are_chosen_by_the_config():
    cfg = get_cfg()
    add_rpe_config(cfg)
    assert additional_augmentations(cfg) == []
    cfg.INPUT.QUARTER_TURNS, cfg.INPUT.COLOR_JITTER = True, 0.2
    names = [type(augmentation).__name__ for augmentation in additional_augmentations(cfg)]
    assert names == ["RandomQuarterTurn", "RandomContrast", "RandomBrightness", "RandomSaturation"]
    picture = np.full((4, 4, 3), 100, np.uint8)
    jittered = T.AugInput(picture)
    T.AugmentationList(additional_augmentations(cfg))(jittered)
    assert jittered.image.dtype == np.uint8 and 50 < jittered.image.mean() < 150
    cfg.INPUT.SCALE_JITTER, cfg.INPUT.ROTATION, cfg.INPUT.GAMMA = [0.7, 1.5], 15.0, 0.2
    names = [type(augmentation).__name__ for augmentation in additional_augmentations(cfg)]
    assert names[:3] == ["RandomScale", "RandomRotation", "RandomQuarterTurn"]
    assert names[-1] == "RandomGamma"


def test_a_scale_replaces_the_resizing_to_a_side(tmp_path):
    """Training, evaluation and prediction resize by the same factor, whatever the image's size."""
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.INPUT.SCALE, cfg.INPUT.SCALE_JITTER = 0.5, [0.9, 1.1]
    for height, width in ((40, 60), (100, 60)):
        picture = np.zeros((height, width, 3), np.uint8)
        path = str(tmp_path / f"{height}.png")
        cv2.imwrite(path, picture)
        item = {"file_name": path, "height": height, "width": width}
        evaluated = ImageMapper(cfg, is_train=False)(dict(item))["image"].shape
        assert evaluated == (3, height // 2, width // 2)
        predicted = T.AugInput(picture)
        T.AugmentationList([resizing_of_tests(cfg)])(predicted)
        assert predicted.image.shape[:2] == evaluated[1:]
        trained = [ImageMapper(cfg, is_train=True)(dict(item))["image"].shape for _ in range(20)]
        heights = np.array(trained)[:, 1] / height
        assert 0.44 < heights.min() < heights.max() < 0.56
    cfg.INPUT.SCALE = 0.0
    assert ImageMapper(cfg, is_train=False)(dict(item))["image"].shape == (3, 1333, 800)


@pytest.mark.parametrize("scale, side", [(0.5, 32), (0.0, 90)])
def test_crops_of_all_scales_become_inputs_of_one_size(tmp_path, scale, side):
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.INPUT.SCALE, cfg.INPUT.SCALE_JITTER = scale, [0.8, 1.25]
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [64, 64]
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (90,), "none"
    # The value of a pixel is its column, so that the step between columns tells the factor.
    picture = np.tile(np.arange(120, dtype=np.uint8)[:, None], (100, 1, 3))
    path = str(tmp_path / "columns.png")
    cv2.imwrite(path, picture)
    item = {"file_name": path, "height": 100, "width": 120}
    factors = []
    for mapper in (ImageMapper(cfg, is_train=True), build_train_mapper("DatasetMapper", cfg)):
        for _ in range(30):
            image = mapper(dict(item))["image"]
            assert np.abs(np.array(image.shape[1:]) - side).max() <= 1, image.shape
            columns = image[0, 0].numpy().astype(float)
            factors.append((len(columns) - 1) / (columns[-1] - columns[0]))
    factors = np.array(factors) / (scale or side / 64)
    assert 0.77 < factors.min() < 0.88 and 1.14 < factors.max() < 1.32
    # A crop is not larger than its image.
    transform = RandomScaledCrop((64, 400), 1.0, 1.0).get_transform(picture)
    assert transform.apply_image(picture).shape == (64, 120, 3)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("COLOR_JITTER", 1.0, "COLOR_JITTER is 1.0; allowed: 0 to below 1"),
        ("GAMMA", -0.1, "GAMMA is -0.1; allowed: 0 to below 1"),
        ("SCALE_JITTER", [1.5, 0.7], "SCALE_JITTER is .1.5, 0.7.; allowed: .. or two factors"),
        ("SCALE_JITTER", [0.7], "SCALE_JITTER is .0.7.; allowed: .. or two factors"),
    ],
)
def test_values_out_of_range_are_named(key, value, message):
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.INPUT[key] = value
    with pytest.raises(ValueError, match=f"INPUT.{message}"):
        additional_augmentations(cfg)


def test_scale_and_gamma_change_what_they_say():
    np.random.seed(0)
    picture = np.full((10, 20, 3), 51, np.uint8)
    sizes = {RandomScale(0.5, 2.0).get_transform(picture).new_h for _ in range(100)}
    assert 5 <= min(sizes) < 8 and 15 < max(sizes) <= 20
    for _ in range(20):
        transform = RandomGamma(0.8, 1.2).get_transform(picture)
        (value,) = np.unique(transform.apply_image(picture))
        assert 255 * 0.2**1.2 - 1 <= value <= 255 * 0.2**0.8 + 1
        assert transform.apply_image(np.array([0, 255], np.uint8)).tolist() == [0, 255]
        mask = np.array([[0, 1]], np.uint8)
        assert np.array_equal(transform.apply_segmentation(mask), mask)


def test_crops_hold_one_object_and_its_surroundings():
    sem_seg = np.zeros((60, 80), np.uint8)
    sem_seg[10:30, 20:30] = 1
    sem_seg[10:30, 30:40] = 2  # touches the first one
    sem_seg[50:58, 60:78] = 1
    sem_seg[0, 0] = 2  # too small
    sem_seg[31:33, 20:40] = 255
    image = np.stack([sem_seg] * 3, axis=2)
    seen = set()
    np.random.seed(0)
    for _ in range(60):
        crop = RandomObjectCrop(1.2).get_transform(image, sem_seg)
        labels, pixels = crop.apply_segmentation(sem_seg), crop.apply_image(image)
        assert labels.shape == pixels.shape[:2] and labels.dtype == sem_seg.dtype
        (kept,) = set(np.unique(labels)) - {0, 255}
        box = crop.x0, crop.y0, crop.w, crop.h
        seen.add((int(kept), *box))
        given = sem_seg[crop.y0 : crop.y0 + crop.h, crop.x0 : crop.x0 + crop.w]
        assert np.array_equal(labels, np.where(np.isin(given, (kept, 255)), given, 0))
    # 1.2 times the longer side, shifted into the image.
    assert seen == {(1, 13, 8, 24, 24), (2, 23, 8, 24, 24), (1, 58, 38, 22, 22)}
    empty = np.zeros_like(sem_seg)
    assert isinstance(RandomObjectCrop().get_transform(image, empty), T.NoOpTransform)
    assert isinstance(RandomObjectCrop().get_transform(image, None), T.NoOpTransform)


@pytest.mark.parametrize("name", ["ImageMapper", "DatasetMapper"])
def test_objects_are_cropped_before_images_are_resized(name):
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.INPUT.OBJECT_CROP = 1.5
    mapper = build_train_mapper(name, cfg)
    first, second = mapper.augmentations.augs[:2]
    assert isinstance(first, RandomObjectCrop) and isinstance(second, T.ResizeShortestEdge)
    assert first.context == 1.5 and first.ignore_value == 255
