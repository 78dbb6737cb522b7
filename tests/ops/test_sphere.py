import math

import pytest
import torch
from torch.nn import functional as F

from rpe_d2.ops.sphere import loss_lower_bound, min_margin

TAMMES = {4: 0.3333, 5: 0.5, 6: 0.5, 7: 0.6051, 8: 0.6306, 9: 0.6667, 10: 0.7022, 11: 0.7236}
TAMMES[12] = 0.7236


def spread_points(num_points, dim, steps=600):
    """Minimizes the largest cosine by gradient descent, and returns the best of 8 starts."""
    x = torch.randn(8, num_points, dim, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=0.05)
    best = 1.0
    for step in range(steps):
        unit = F.normalize(x, dim=2)
        cosine = unit @ unit.transpose(1, 2) - 3 * torch.eye(num_points)
        best = min(best, cosine.detach().amax(dim=(1, 2)).min().item())
        sharpness = 5 * 100 ** (step / steps)
        loss = (cosine * sharpness).flatten(1).logsumexp(dim=1).sum() / sharpness
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best


@pytest.mark.parametrize("num_groups", range(3, 60))
def test_circle(num_groups):
    value, exact = min_margin(num_groups, 2)
    assert exact and value == pytest.approx((1 + math.cos(2 * math.pi / num_groups)) / 2)


@pytest.mark.parametrize("num_groups, expected", TAMMES.items())
def test_sphere_in_three_dimensions(num_groups, expected):
    value, exact = min_margin(num_groups, 3)
    assert exact and round(value, 4) == expected


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 64])
def test_simplex(dim):
    for num_groups in range(2, dim + 2):
        value, exact = min_margin(num_groups, dim)
        assert exact
        assert value == pytest.approx((num_groups - 2) / (2 * (num_groups - 1)))


@pytest.mark.parametrize("dim", [2, 3, 8, 64])
def test_cross_polytope(dim):
    for num_groups in range(dim + 2, 2 * dim + 1):
        assert min_margin(num_groups, dim) == (pytest.approx(0.5), True)


def test_one_group_and_one_dimension():
    assert min_margin(1, 1) == (0.0, True) and min_margin(1, 5) == (0.0, True)
    assert min_margin(2, 1) == (0.0, True)
    assert min_margin(3, 1) == (1.0, True)


@pytest.mark.parametrize("num_groups, dim", [(15, 3), (23, 3), (25, 3), (9, 4), (65, 32), (500, 8)])
def test_not_exact_beyond_the_known_cases(num_groups, dim):
    value, exact = min_margin(num_groups, dim)
    assert not exact and 0.5 <= value < 1


@pytest.mark.parametrize(
    "num_groups, dim",
    [(5, 2), (4, 3), (7, 3), (10, 3), (12, 3), (14, 3), (15, 3), (24, 3), (30, 3), (60, 3)]
    + [(9, 4), (24, 4), (40, 4), (5, 8), (20, 8), (60, 8), (70, 16)],
)
def test_no_arrangement_beats_the_value(num_groups, dim):
    value, exact = min_margin(num_groups, dim)
    result = (1 + spread_points(num_groups, dim)) / 2
    assert result > value - 1e-9
    # Descent comes close, so a value that is far too small would fail too.
    assert result < value + (0.02 if exact else 0.1)


@pytest.mark.parametrize(
    "num_groups, dim, known, slack",
    [
        (16, 5, 0.6, 1e-9),  # Clebsch
        (27, 6, 0.625, 1e-9),  # the lines on a cubic surface
        (120, 4, (1 + math.cos(math.pi / 5)) / 2, 0.02),  # 600-cell
        (24, 4, 0.75, 0.1),  # 24-cell
        (240, 8, 0.75, 0.1),  # roots of E8
        (196560, 24, 0.75, 0.2),  # shortest vectors of the Leech lattice
    ],
)
def test_lower_bound_respects_famous_arrangements(num_groups, dim, known, slack):
    value, _ = min_margin(num_groups, dim)
    assert known - slack <= value <= known + 1e-9


@pytest.mark.parametrize("num_groups", [30, 100, 1000])
def test_triangles_bound_three_dimensions(num_groups):
    """Fejes Toth: at most as wide as corners of 2 Q - 4 equilateral triangles on the sphere."""
    angle = math.pi / 3 * num_groups / (num_groups - 2)  # angle of a triangle with that area
    side_cosine = math.cos(angle) / (1 - math.cos(angle))
    assert min_margin(num_groups, 3)[0] == pytest.approx((1 + side_cosine) / 2, abs=1e-9)


@pytest.mark.parametrize("num_groups", [10**4, 10**6])
def test_caps_bound_four_dimensions(num_groups):
    """Q disjoint caps whose diameter is the smallest angle cover the sphere of R^4."""
    diameter = math.acos(2 * min_margin(num_groups, 4)[0] - 1)
    share = (diameter - math.sin(diameter)) / (2 * math.pi)
    assert share * num_groups == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 8, 16, 32])
def test_more_groups_need_more_margin(dim):
    values = [min_margin(num_groups, dim)[0] for num_groups in [*range(1, 200), 10**3, 10**6]]
    assert all(a <= b + 1e-12 for a, b in zip(values, values[1:]))
    assert all(0 <= value <= 1 for value in values)


@pytest.mark.parametrize("num_groups", [*range(1, 80), 200, 1000, 10**6])
def test_more_dimensions_need_less_margin(num_groups):
    values = [min_margin(num_groups, dim)[0] for dim in range(1, 40)]
    assert all(a >= b - 1e-12 for a, b in zip(values, values[1:]))


@pytest.mark.parametrize("margin, largest_dim", [(0.1, 3), (0.25, 3), (0.4, 3), (0.4, 20)])
def test_rankin(margin, largest_dim):
    """Below one half, zero loss needs Q <= min(D + 1, floor(1 + 1/(1 - 2 margin)))."""
    for dim in range(1, largest_dim + 1):
        allowed = min(dim + 1, math.floor(1 + 1 / (1 - 2 * margin) + 1e-9))
        feasible = [q for q in range(1, 30) if min_margin(q, dim)[0] <= margin + 1e-12]
        assert max(feasible) == allowed


def test_margin_of_the_toy_allows_two_groups():
    assert min_margin(2, 3)[0] <= 0.1 < min_margin(3, 3)[0]


@pytest.mark.parametrize(
    "num_groups, margin, expected",
    [(1, 0.0, 0.0), (2, 0.0, 0.0), (3, 0.0, 1 / 6), (4, 0.0, 0.25), (10, 0.1, 0.31), (10, 0.5, 0)],
)
def test_loss_lower_bound(num_groups, margin, expected):
    assert loss_lower_bound(num_groups, margin) == pytest.approx(expected)


@pytest.mark.parametrize("num_groups", [2, 3, 5, 20])
def test_loss_lower_bound_vanishes_at_the_margin_of_the_simplex(num_groups):
    value, _ = min_margin(num_groups, num_groups - 1)
    assert loss_lower_bound(num_groups, value) == pytest.approx(0, abs=1e-15)
    assert num_groups == 2 or loss_lower_bound(num_groups, value - 0.01) > 0


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: min_margin(0, 3), "num_groups"),
        (lambda: min_margin(3, 0), "dim"),
        (lambda: loss_lower_bound(0, 0.5), "num_groups"),
        (lambda: loss_lower_bound(3, 1.1), "margin"),
        (lambda: loss_lower_bound(3, -0.1), "margin"),
    ],
)
def test_errors_name_the_argument_in_one_line(call, name):
    with pytest.raises(ValueError, match=f"^{name} is .*; allowed: ") as error:
        call()
    assert "\n" not in str(error.value)
