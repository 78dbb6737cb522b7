"""Properties of frames as tensors: colors of Lab, and optical flow."""

import cv2
import numpy as np
import pytest

from rpe_d2.utils.frame_properties import join_lab, split_lab
from rpe_d2.utils.optical_flow import flow_positions, warp


def test_lab_is_opencvs_up_to_rounding():
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    lightness, colors = split_lab(picture)
    expected = cv2.cvtColor(picture, cv2.COLOR_RGB2Lab).astype(np.float32).transpose(2, 0, 1)
    assert lightness.dtype == colors.dtype == np.float32
    assert lightness.shape == (1, 40, 50) and colors.shape == (2, 40, 50)
    assert np.abs(255 * lightness - expected[:1]).max() < 1.5
    assert np.abs(128 * colors + 128 - expected[1:]).max() < 1.5
    assert np.abs(join_lab(lightness, colors).astype(int) - picture).max() <= 1


def test_gray_has_no_color():
    lightness, colors = split_lab(np.full((3, 4, 3), 128, np.uint8))
    assert np.abs(colors).max() < 1e-3 and 0.5 < lightness.mean() < 0.6


def test_flow_undoes_a_shift():
    random = np.random.default_rng(0)
    scene = cv2.GaussianBlur(random.integers(0, 256, (80, 96, 3)).astype(np.float32), (0, 0), 2)
    scene = (255 * (scene - scene.min()) / np.ptp(scene)).astype(np.uint8)
    key, frame = scene[:64, :80], scene[3:67, 5:85]
    positions = flow_positions(key, frame)
    warped = warp(key.astype(np.float32).transpose(2, 0, 1), positions).transpose(1, 2, 0)
    before, after = (np.abs(image - frame.astype(float))[8:-8, 8:-8] for image in (key, warped))
    assert after.mean() < 0.2 * before.mean()
    with pytest.raises(ValueError, match="the frames have 20 x 11 pixels; allowed for optical flo"):
        flow_positions(key[:11, :20], frame[:11, :20])
