"""Edge NMS against a loop over pixels, and on ridges."""

import numpy as np
import pytest
import torch

from rpe_d2.ops.edge_nms import edge_nms, edge_orientation
from tests.reference.edge_nms import edge_nms as slow_edge_nms


def ridge(angle, size=(40, 50), offset=0.0):
    """Returns a Gaussian ridge of height 1 and sigma 2, and distances; its normal has ``angle``."""
    y, x = torch.meshgrid(
        *(torch.arange(side, dtype=torch.float64) - side // 2 for side in size), indexing="ij"
    )
    distance = x * np.cos(angle) + y * np.sin(angle) - offset
    return torch.exp(-(distance**2) / 8), distance


@pytest.mark.parametrize(
    "options", [(4, 1, 5, 1.01), (0, 1, 0, 1.0), (2, 3, 20, 1.1)], ids=["default", "bare", "wide"]
)
def test_agrees_with_a_loop_over_pixels(options):
    maps = torch.rand(2, 1, 13, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = edge_nms(maps, *options)
    for one, expected in zip(result.flatten(0, 1), maps.flatten(0, 1)):
        np.testing.assert_allclose(one, slow_edge_nms(expected.numpy(), *options), atol=1e-12)


@pytest.mark.parametrize("degrees", [0, 20, 45, 70, 90, 110, 135, 160])
def test_a_ridge_becomes_a_line(degrees):
    values, distance = ridge(np.radians(degrees))
    result = edge_nms(values, border=0)[6:-6, 6:-6]
    values, distance = values[6:-6, 6:-6], distance[6:-6, 6:-6]
    assert torch.equal(result[result > 0], values[result > 0])
    assert (distance[result > 0].abs() < 1).all()
    # There are no gaps: the line crosses every row or every column.
    dim = 1 if abs(np.cos(np.radians(degrees))) > 0.7 else 0
    inside = (distance.abs() < 0.6).any(dim=dim)
    assert (result > 0).any(dim=dim)[inside].all()


def test_the_border_is_faded():
    values = torch.ones(1, 12, 14)
    result = edge_nms(values)[0]
    ramp = [0, 0.2, 0.4, 0.6, 0.8]
    assert result[5, :].tolist() == pytest.approx([*ramp, *[1] * 4, *ramp[::-1]])
    assert torch.equal(edge_nms(values, border=0), values)


def test_small_and_empty_maps():
    for size in ((1, 1), (1, 7), (7, 1), (2, 3)):
        assert edge_nms(torch.rand(*size), border=0).isfinite().all()
    assert edge_nms(torch.rand(0, 5, 6)).shape == (0, 5, 6)
    assert not edge_nms(torch.zeros(9, 9)).any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"smoothing": -1}, "smoothing is -1; allowed: 0 or more"),
        ({"radius": 0}, "radius is 0; allowed: 1 or more"),
        ({"tolerance": 0.5}, "tolerance is 0.5; allowed: 1 or more"),
    ],
)
def test_wrong_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        edge_nms(torch.zeros(5, 5), **options)
    with pytest.raises(ValueError, match="boundaries are torch.bool"):
        edge_nms(torch.zeros(5, 5, dtype=torch.bool))


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 135, 170])
def test_orientation_is_the_direction_across_a_straight_ridge(degrees):
    angle = np.radians(degrees)
    boundaries, distance = ridge(angle, (61, 61))
    found = edge_orientation(boundaries)
    assert found.shape == boundaries.shape and found.min() >= 0 and found.max() < np.pi
    inside = slice(20, 41), slice(20, 41)
    on_the_ridge = found[inside][distance[inside].abs() < 1]
    difference = (on_the_ridge - angle + np.pi / 2) % np.pi - np.pi / 2
    assert difference.abs().max() < 0.02
    assert torch.equal(edge_orientation(boundaries[None, None])[0, 0], found)
