"""Gates that are computed from an image, and the spreading of known values."""

import math

import pytest
import torch

from rpe_d2.ops.image_gates import image_gates, spread_known
from rpe_d2.ops.propagation import DIRECTIONS, spatial_propagation
from tests.reference.propagation import propagate

# From a pixel to the neighbors that each direction comes from: rows and columns.
COMES_FROM = {
    "left to right": [(-1, -1), (0, -1), (1, -1)],
    "right to left": [(-1, 1), (0, 1), (1, 1)],
    "top down": [(-1, -1), (-1, 0), (-1, 1)],
    "down top": [(1, -1), (1, 0), (1, 1)],
}


def test_gates_depend_on_the_difference_to_the_neighbor():
    image = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    gates = image_gates(image, contrast=0.2, reach=0.9)
    assert gates.shape == (2, 1, 12, 4, 5)
    for direction, name in enumerate(DIRECTIONS):
        for number, (row, column) in enumerate(COMES_FROM[name]):
            for i in range(4):
                for j in range(5):
                    if not (0 <= i + row < 4 and 0 <= j + column < 5):
                        continue
                    other = image[:, :, i + row, j + column]
                    distance = (image[:, :, i, j] - other).abs().mean(dim=1)
                    expected = 0.3 * torch.exp(-distance / 0.2)
                    found = gates[:, 0, 3 * direction + number, i, j]
                    torch.testing.assert_close(found, expected)


def test_an_edge_stops_a_pulse_and_a_region_does_not():
    image = torch.zeros(1, 1, 9, 12)
    image[..., 6:] = 1
    gates = image_gates(image, contrast=0.02, reach=0.95)
    pulse = torch.zeros(1, 1, 9, 12)
    pulse[..., 4, 2] = 1
    moved = spatial_propagation(pulse, gates, "mean")[0, 0]
    assert moved[:, 2:6].min() > 0 and moved[:, 6:].max() < 1e-12


def test_unknown_pixels_get_the_weighted_mean_of_known_ones():
    """The reference propagates values and weights pixel by pixel."""
    maps = torch.rand(2, 5, 6, dtype=torch.float64)
    known = torch.rand(5, 6) < 0.2
    known[2, 3] = True
    gates = image_gates(torch.rand(1, 1, 5, 6, dtype=torch.float64), 0.5)
    spread = spread_known(maps, known, gates, num_units=2)
    expected = torch.cat([maps, torch.ones(1, 5, 6)]) * known
    for _ in range(2):
        expected = propagate(expected[None], gates * ~known).mean(dim=0)[0]
    torch.testing.assert_close(spread, torch.where(known, maps, expected[:2] / expected[2]))


def test_regions_get_their_own_values_however_far_away():
    image = torch.zeros(1, 1, 40, 600)
    image[..., 20:, :] = 1
    maps = torch.zeros(1, 40, 600)
    known = torch.zeros(40, 600, dtype=torch.bool)
    known[10, 3] = known[30, 590] = True
    maps[0, 10, 3], maps[0, 30, 590] = 5.0, -2.0
    spread = spread_known(maps, known, image_gates(image, 0.02))
    assert spread.dtype == torch.float32
    assert (spread[0, :20] - 5).abs().max() < 1e-3 and (spread[0, 20:] + 2).abs().max() < 1e-3


def test_constants_stay_and_closed_gates_leave_the_nearest():
    known = torch.zeros(4, 7, dtype=torch.bool)
    known[1, 1] = known[2, 5] = True
    maps = torch.full((1, 4, 7), 3.0)
    gates = image_gates(torch.rand(1, 1, 4, 7), 0.1)
    torch.testing.assert_close(spread_known(maps, known, gates), maps)
    maps[0, 2, 5] = 8.0
    nearest = spread_known(maps, known, torch.zeros_like(gates))
    for i in range(4):
        for j in range(7):
            left, right = math.hypot(i - 1, j - 1), math.hypot(i - 2, j - 5)
            if left != right:
                assert nearest[0, i, j] == (3.0 if left < right else 8.0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: image_gates(x, 0.0), "contrast is 0.0; allowed: above 0"),
        (lambda x: image_gates(x, float("nan")), "contrast is nan; allowed: above 0"),
        (lambda x: image_gates(x, 1.0, 1.0), "reach is 1.0; allowed: above 0 and below 1"),
        (
            lambda x: spread_known(x[0], torch.zeros(3, 3, dtype=torch.bool), image_gates(x, 1.0)),
            "no pixel is known",
        ),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 1, 3, 3))
