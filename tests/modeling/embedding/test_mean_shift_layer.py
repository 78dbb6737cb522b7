"""Choice of the keys of mean shift, and the kernel values that it is based on."""

import pytest
import torch
from torch.nn import functional as F

from rpe_d2.modeling import MeanShiftLayer
from rpe_d2.modeling.embedding.mean_shift_layer import stratified_sample


@pytest.mark.parametrize("count", [1, 99, 100, 101, 110, 140, 199, 256, 1000, 4096])
def test_sampled_keys_are_distinct_and_evenly_spread(count):
    index = stratified_sample(torch.arange(0, 2 * count, 2), 100)
    assert len(index) == len(index.unique()) == min(count, 100) and (index % 2 == 0).all()
    if count > 100:
        assert index.diff().max() <= 2 * (2 * count // 100 + 1)
        columns = (index // 2) % 8  # in an image 8 cells wide
        assert len(columns.unique()) == 8


@pytest.mark.parametrize("spatial, relative", [(0.0, 0.0), (2.0, 0.0), (2.0, 0.2)])
def test_the_largest_kernel_value_by_hand(spatial, relative):
    layer = MeanShiftLayer(
        spatial_bandwidth=spatial, relative_bandwidth=relative, shift_positions=bool(spatial)
    )
    x = F.normalize(torch.randn(200, 8), dim=1)
    # As far from the corner as in large images, where squares of positions have few digits left.
    positions = 2000 + torch.rand(200, 2) * 60
    sizes = 5 + torch.rand(200) * 60
    largest = layer._largest_kernel(x, positions, sizes, x[:30], positions[:30])
    exponents = (x.double() @ x[:30].double().T - 1) / float(layer.bandwidth) ** 2
    if spatial:
        sigma = (relative * sizes).clamp(min=spatial).double()
        distances = torch.cdist(positions.double(), positions[:30].double()).square()
        exponents = exponents - distances / (2 * sigma[:, None] ** 2)
    assert torch.allclose(largest.double(), exponents.exp().amax(dim=1), rtol=1e-3)


def test_isolated_points_have_keys_as_well():
    """Six points far from a crowd of 5,000, which a stratified sample alone would leave out."""
    layer = MeanShiftLayer(max_keys=40)
    crowd, isolated = torch.rand(5000, 2) * 8, 100 + torch.rand(6, 2)
    positions = torch.cat([crowd[:2500], isolated, crowd[2500:]])
    x = F.normalize(torch.ones(5006, 8), dim=1)
    candidates = torch.ones(5006, dtype=torch.bool)
    keys = layer.choose_keys(x, positions, torch.zeros(5006), candidates)
    assert len(keys.unique()) == len(keys) <= 40
    assert (positions[keys, 0] > 50).any()
    candidates[2500:2506] = False
    keys = layer.choose_keys(x, positions, torch.zeros(5006), candidates)
    assert not (positions[keys, 0] > 50).any()
