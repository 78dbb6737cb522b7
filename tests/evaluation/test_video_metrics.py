"""Measures of propagated colors and masks, against loops and closed forms."""

import math

import cv2
import numpy as np
import pytest

from rpe_d2.evaluation.color_metrics import delta_e, psnr, saturation_kept
from rpe_d2.evaluation.video_metrics import (
    color_metrics,
    colors_of,
    mask_similarity,
    quantized,
)
from rpe_d2.utils.frame_properties import split_lab


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)


def test_psnr_against_a_loop():
    random = np.random.default_rng(1)
    pred, target = random.integers(0, 256, (2, 2, 4, 5), dtype=np.uint8)
    total = 0
    for channel in range(2):
        for i in range(4):
            for j in range(5):
                total += (int(pred[channel, i, j]) - int(target[channel, i, j])) ** 2
    assert psnr(pred, target) == pytest.approx(10 * math.log10(255**2 / (total / 40)))
    assert psnr(target, target) == pytest.approx(10 * math.log10(255**2 * 12))
    assert psnr(target // 2 + 3, target // 2) == pytest.approx(20 * math.log10(255 / 3))


def test_saturation_against_a_loop():
    random = np.random.default_rng(2)
    pred, target = random.integers(0, 256, (2, 2, 4, 5), dtype=np.uint8)

    def chroma(colors):
        return sum(
            math.hypot(int(colors[0, i, j]) - 128, int(colors[1, i, j]) - 128)
            for i in range(4)
            for j in range(5)
        )

    assert saturation_kept(pred, target) == pytest.approx(chroma(pred) / chroma(target))
    gray = np.full_like(target, 128)
    assert saturation_kept(gray, target) == 0 and math.isnan(saturation_kept(target, gray))


def test_delta_e_of_published_pairs():
    """Sharma, Wu and Dalal, Color Research and Application 2005, table 1, pairs 7 and 8.

    Their lightness is 50, and a and b are whole numbers.
    """
    lightness = np.full((1, 1), 127.5)
    for first, second, expected in (((0, 0), (-1, 2), 2.3669), ((-1, 2), (0, 0), 2.3669)):
        pair = [128 + np.array(color).reshape(2, 1, 1) for color in (first, second)]
        assert delta_e(*pair, lightness) == pytest.approx(expected, abs=1e-4)


def test_colors_are_those_of_opencv_with_8_bits(picture):
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(int)
    assert np.array_equal(colors_of(picture), lab[:, :, 1:].transpose(2, 0, 1))
    # Conversions with and without rounding differ by a level at most.
    assert np.abs(quantized(split_lab(picture)[1]).astype(int) - colors_of(picture)).max() <= 1


def test_all_measures_of_a_frame(picture):
    colors = (colors_of(picture).astype(np.float32) - 128) / 128
    assert color_metrics(colors, picture) == {
        "psnr": pytest.approx(58.92, abs=0.01),
        "delta_e": 0.0,
        "saturation": pytest.approx(1),
    }
    shifted = color_metrics(np.clip(colors + 2 / 128, -1, 1), picture)
    assert shifted["psnr"] == pytest.approx(20 * math.log10(255 / 2), abs=0.3)
    assert 0 < shifted["delta_e"] < 3
    assert color_metrics(colors * 0, picture)["saturation"] == 0


def test_masks_against_a_loop():
    random = np.random.default_rng(3)
    pred, target = random.integers(0, 4, (2, 6, 8))
    target[target == 3] = 0  # a label that is in the prediction alone
    expected = {}
    for label in (1, 2, 3):
        inside = either = 0
        for i in range(6):
            for j in range(8):
                found, true = pred[i, j] == label, target[i, j] == label
                inside += found and true
                either += found or true
        expected[label] = inside / either
    assert mask_similarity(pred, target) == pytest.approx(expected)
    assert expected[3] == 0
    assert mask_similarity(target, target) == {1: 1.0, 2: 1.0}
    assert mask_similarity(np.zeros((2, 2), int), np.zeros((2, 2), int)) == {}
