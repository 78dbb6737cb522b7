"""Scores of propagated properties, against closed forms."""

import math

import pytest
import torch

from rpe_d2.evaluation import FramePairEvaluator


def scores(items, outputs):
    evaluator = FramePairEvaluator("pairs", distributed=False)
    for item, output in zip(items, outputs):
        evaluator.process([item], [output])
    return evaluator.evaluate()["frame_pairs"]


def pair(kind, key, target, occluded=None):
    hidden = torch.zeros(target.shape[-2:], dtype=torch.bool) if occluded is None else occluded
    return {
        "property_kind": kind,
        "key_property": key,
        "target_property": target,
        "occluded": hidden,
    }


def test_psnr_of_colors_is_in_levels_of_8_bits():
    target = torch.zeros(2, 4, 6)
    key = target + 8 / 128  # 8 levels everywhere
    occluded = torch.zeros(4, 6, dtype=torch.bool)
    occluded[:, :2] = True
    prediction = target.clone()
    prediction[:, :, :2] += 4 / 128  # 4 levels in a third of the pixels
    found = scores([pair("ab", key, target, occluded)], [{"property": prediction}])
    assert found["psnr_copy"] == pytest.approx(20 * math.log10(255 / 8), abs=1e-4)
    assert found["psnr"] == pytest.approx(10 * math.log10(255**2 / (16 / 3)), abs=1e-4)
    assert found["psnr_occluded"] == pytest.approx(20 * math.log10(255 / 4), abs=1e-4)
    assert found["psnr_occluded_copy"] == pytest.approx(20 * math.log10(255 / 8), abs=1e-4)
    assert found["pairs"] == 1 and "J" not in found


def test_the_mean_over_pairs_is_that_of_their_psnr_and_finite():
    target = torch.zeros(3, 2, 2)
    items = [pair("rgb", target + shift / 255, target) for shift in (1, 10)]
    found = scores(items, [{"property": target}] * 2)
    assert found["psnr"] == pytest.approx(10 * math.log10(12 * 255**2))
    assert found["psnr_copy"] == pytest.approx(20 * math.log10(255) - 10, abs=1e-4)
    assert math.isnan(found["psnr_occluded"])


def test_masks_have_an_iou():
    target = torch.zeros(3, 4, 4)
    target[0, :2], target[1, :, :2] = 1, 1
    key = target.clone()
    key[0] = 0
    key[0, 1:3] = 1  # a third overlaps
    found = scores([pair("masks", key, target)], [{"property": target * 0.6}])
    assert found["J"] == 100 and found["J_copy"] == pytest.approx(100 * (1 / 3 + 1) / 2)


def test_an_output_without_property_is_named():
    target = torch.zeros(2, 2, 2)
    with pytest.raises(ValueError, match="output for pairs has no property, found sem_seg"):
        scores([pair("ab", target, target)], [{"sem_seg": target}])
