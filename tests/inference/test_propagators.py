"""Copying, optical flow and networks carry a property from frame to frame."""

import numpy as np
import pytest
import torch
from torch import nn

from rpe_d2.inference.propagators import (
    AlignedPropagator,
    NetworkPropagator,
    copy_property,
    flow_property,
)
from rpe_d2.utils.frame_properties import split_lab
from tests.helpers.clips import moving_square


class BrightnessNet(nn.Module):
    """Adds the mean change of the guidance to the property."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def propagate(self, key_property, key_guidance, target_guidance):
        self.guidance = key_guidance
        return key_property + self.factor * (target_guidance - key_guidance).mean()


@pytest.fixture(scope="module")
def frames():
    return moving_square(6, (96, 128))[0]


def test_flow_follows_what_moves_and_a_copy_does_not(frames):
    key, frame = frames[0], frames[5]
    colors, target = split_lab(key)[1], split_lab(frame)[1]
    copied = np.abs(copy_property(colors, key, frame) - target).mean()
    moved = np.abs(flow_property(colors, key, frame) - target).mean()
    assert moved < 0.6 * copied
    # From a frame to itself nothing moves.
    np.testing.assert_allclose(flow_property(colors, key, key), colors, atol=1e-3)


def test_a_network_gets_lightness_for_colors_and_rgb_for_masks(frames):
    key, frame = frames[0], frames[0] // 2
    model = BrightnessNet()
    colors, (lightness, _) = split_lab(key)[1], split_lab(frame)
    found = NetworkPropagator(model, "ab")(colors, key, frame)
    change = (lightness - split_lab(key)[0]).mean()
    assert model.guidance.shape == (1, 96, 128)
    np.testing.assert_allclose(found, colors + change, atol=1e-5)
    masks = np.zeros((5, 96, 128), np.float32)
    found = NetworkPropagator(model, "masks")(masks, key, frame)
    assert model.guidance.shape == (3, 96, 128) and 0.2 < model.guidance.max() <= 1
    expected = (frame / 255 - key / 255).mean()
    np.testing.assert_allclose(found, masks + expected, atol=1e-5)
    assert found.dtype == np.float32 and not model.factor.grad


def test_alignment_warps_the_frame_and_its_property(frames):
    key, frame = frames[0], frames[5]
    seen = []

    def record(values, key_frame, target):
        seen.append((values, key_frame, target))
        return values

    colors = split_lab(key)[1]
    found = AlignedPropagator(record)(colors, key, frame)
    assert np.array_equal(found, flow_property(colors, key, frame))
    (_, aligned, target) = seen[0]
    assert aligned.dtype == np.uint8 and np.array_equal(target, frame)
    difference = [np.abs(image.astype(float) - frame).mean() for image in (aligned, key)]
    assert difference[0] < 0.6 * difference[1]


def test_frames_that_are_too_small_for_flow(frames):
    small = frames[0][:10]
    with pytest.raises(ValueError, match="128 x 10 pixels; allowed for optical flow: 12 x 12"):
        flow_property(split_lab(small)[1], small, small)
