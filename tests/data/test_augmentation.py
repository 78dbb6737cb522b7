"""Quarter turns of images, masks, boxes and points."""

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T

from rpe_d2 import add_rpe_config
from rpe_d2.data.augmentation import (
    QuarterTurnTransform,
    RandomQuarterTurn,
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
    cfg.INPUT.COLOR_JITTER = 1.0
    with pytest.raises(ValueError, match="COLOR_JITTER is 1.0"):
        additional_augmentations(cfg)
