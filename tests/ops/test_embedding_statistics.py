"""What embeddings say about orientation, distance, position and size."""

import math

import pytest
import torch
from torch.nn import functional as F

from rpe_d2.ops.embedding_statistics import (
    angle_colors,
    kernel_row,
    orientation_correlation,
    plane_angles,
    variance_explained,
)


def test_angles_in_the_plane_of_largest_variance():
    true = torch.linspace(-3, 3, 60).view(6, 10)
    plane = torch.linalg.qr(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))[0]
    x = torch.einsum("dk,khw->dhw", plane, torch.stack([true.cos(), true.sin()])) + 0.7
    angles = plane_angles(x, torch.ones(6, 10, dtype=torch.bool))
    # The same angles but for an offset and a reflection.
    lengths = [
        torch.polar(torch.ones(60), (angles + s * true).flatten()).mean().abs() for s in (1, -1)
    ]
    assert max(lengths) > 0.99
    assert plane_angles(x, torch.zeros(6, 10, dtype=torch.bool)).abs().max() == 0
    with pytest.raises(ValueError, match="x has shape .1, 6, 10.; allowed"):
        plane_angles(x[:1], torch.ones(6, 10, dtype=torch.bool))


def test_doubled_colors_are_those_of_opposite_angles():
    angles = torch.linspace(0, math.pi, 20).view(4, 5)
    single, doubled = angle_colors(angles), angle_colors(angles, doubled=True)
    assert single.shape == (3, 4, 5) and 0 <= single.min() and single.max() <= 1
    torch.testing.assert_close(
        doubled, angle_colors(angles + math.pi, doubled=True), atol=1e-5, rtol=0
    )
    assert (single - angle_colors(angles + math.pi)).abs().max() > 0.9


def test_orientations_on_a_circle_and_on_a_moebius_strip():
    orientations = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * math.pi
    # An angle that turns twice as fast as the edge returns to itself after a half turn.
    single, doubled = orientation_correlation(0.3 - 2 * orientations, orientations)
    assert single > 0.99 and doubled < 0.1
    # With a sign of its own at each edge, only the doubled angle is a function of the edge.
    flipped = orientations + math.pi * (torch.arange(2000) % 2)
    single, doubled = orientation_correlation(flipped, orientations)
    assert doubled > 0.99 and single < 0.1
    noise = torch.rand(2000, generator=torch.Generator().manual_seed(1)) * 6.28
    assert max(orientation_correlation(noise, orientations)) < 0.1


def test_variance_explained_by_hand():
    x = F.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    linear = x @ torch.tensor([2.0, -1.0, 0.5]) + 3
    assert variance_explained(x, linear) == pytest.approx(1)
    noise = torch.randn(200, generator=torch.Generator().manual_seed(1))
    noise = noise * (linear - linear.mean()).norm() / (noise - noise.mean()).norm()
    assert variance_explained(x, linear + noise) == pytest.approx(0.5, abs=0.1)
    assert math.isnan(variance_explained(x, torch.ones(200)))
    assert math.isnan(variance_explained(x[:4], linear[:4]))


def test_the_row_of_the_kernel():
    x = F.normalize(torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)), dim=0)
    row = kernel_row(x, 2, 3, 0.4)
    assert row[2, 3] == pytest.approx(1, abs=1e-5)
    expected = math.exp((float(x[:, 0, 1] @ x[:, 2, 3]) - 1) / 0.16)
    assert row[0, 1] == pytest.approx(expected, rel=1e-4)
