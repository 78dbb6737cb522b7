"""Back-propagation through the loops moves whole modes, as in the authors' 1-D demonstration."""

import pytest
import torch

from tests.helpers.points_on_a_line import LOOPS, points_on_a_line, shift, train


def find_modes(values):
    """Returns (center, fraction of points) of dense runs of values with a fifth of all points.

    Points with fewer than 4 % of all points within 0.1 are between modes. A gap of 0.4 ends a run.
    """
    density = ((values[:, None] - values[None, :]).abs() < 0.1).float().mean(dim=1)
    dense = values[density >= 0.04].sort().values
    runs = torch.tensor_split(dense, torch.nonzero(dense.diff() > 0.4).squeeze(1) + 1)
    modes = [(run.mean().item(), len(run) / len(values)) for run in runs]
    return [mode for mode in modes if mode[1] >= 0.2]


@pytest.fixture(
    params=[(300, 0), (300, 2), pytest.param((1000, 0), marks=pytest.mark.slow)],
    ids=lambda param: f"{param[0]} points a group, seed {param[1]}",
)
def values(request):
    num_points, seed = request.param
    return points_on_a_line(num_points, seed)


def test_shifting_alone_finds_three_modes(values):
    modes = find_modes(shift(values, LOOPS))
    assert len(modes) == 3
    for mode, target in zip(modes, (3.0, 4.0, 5.0)):
        assert mode == pytest.approx((target, 1 / 3), abs=0.1)


def test_training_through_the_loops_finds_two_modes(values):
    modes = find_modes(shift(train(values, LOOPS), LOOPS))
    assert len(modes) == 2
    assert modes[0] == pytest.approx((3.0, 1 / 3), abs=0.12)
    assert modes[1] == pytest.approx((5.0, 2 / 3), abs=0.12)


def test_training_without_loops_leaves_mass_short_of_the_target(values):
    trained = train(values, 0)
    middle = trained[len(values) // 3 : 2 * len(values) // 3]
    assert middle.median().item() == pytest.approx(4.8, abs=0.06)
    # Points move independently, so the middle group keeps a spread that the loops would remove.
    assert 0.2 < ((trained > 4.55) & (trained < 4.9)).float().mean() < 0.4
