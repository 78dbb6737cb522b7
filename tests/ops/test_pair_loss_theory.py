"""The pair loss against what can be computed by hand: its bounds, optima and slopes."""

import math

import pytest
import torch
from torch.nn import functional as F

from rpe_d2.ops.pair_loss import FORMS, spherical_pair_loss
from rpe_d2.ops.sphere import loss_lower_bound
from tests.helpers.pair_loss import BLOCK, example


def simplex(num_groups):
    """Q unit vectors in R^Q whose cosines are all -1/(Q-1)."""
    return F.normalize(torch.eye(num_groups, dtype=torch.float64) - 1 / num_groups, dim=1)


class TestTheory:
    def test_positive_term_in_closed_form(self):
        embeddings, labels, _ = example(2 * BLOCK)
        loss = spherical_pair_loss(embeddings, labels, negative_weight=0.0)
        unit = F.normalize(embeddings, dim=1)
        groups = labels.unique().tolist()
        means = [unit[labels == q].mean(dim=0) for q in groups]
        expected = sum((1 - m @ m) for m in means) / (2 * len(groups) ** 2)
        assert abs(loss.item() - expected.item()) < 1e-12

    @pytest.mark.parametrize("num_groups, dim", [(1, 2), (2, 3), (4, 2), (5, 3), (9, 3), (12, 16)])
    @pytest.mark.parametrize("margin", [0.0, 0.1, 0.4])
    def test_lower_bound_holds_after_optimization(self, num_groups, dim, margin):
        bound = loss_lower_bound(num_groups, margin)
        labels = torch.cat([torch.arange(num_groups), torch.randint(0, num_groups, (30,))])
        x = torch.randn(len(labels), dim, dtype=torch.float64, requires_grad=True)
        start = spherical_pair_loss(x, labels, margin).item()
        optimizer = torch.optim.Adam([x], lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            loss = spherical_pair_loss(x, labels, margin)
            assert loss.item() >= bound - 1e-12
            loss.backward()
            optimizer.step()
        assert loss.item() < start or num_groups == 1
        if dim >= num_groups - 1 and margin <= (num_groups - 2) / max(2 * (num_groups - 1), 1):
            assert loss.item() < bound + 0.02  # the bound is attainable here

    @pytest.mark.parametrize("num_groups", [2, 3, 5, 10])
    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_simplex_attains_the_lower_bound(self, num_groups, share):
        margin = share * (num_groups - 2) / (2 * (num_groups - 1))
        labels = torch.randint(0, num_groups, (200,))
        labels[:num_groups] = torch.arange(num_groups)
        loss = spherical_pair_loss(simplex(num_groups)[labels], labels, margin)
        assert loss.item() == pytest.approx(loss_lower_bound(num_groups, margin), abs=1e-12)
        assert loss.item() > 0 or num_groups == 2 or share == 1.0

    def test_simplex_is_not_optimal_above_that_margin(self):
        """The range of margins in the docstring is tight."""
        labels = torch.arange(5)
        loss = spherical_pair_loss(simplex(5), labels, 0.375 + 0.01)
        assert loss.item() == pytest.approx(0, abs=1e-12) and loss_lower_bound(5, 0.385) == 0

    @pytest.mark.parametrize("form", FORMS)
    def test_cross_polytope_has_zero_loss_at_one_half(self, form):
        vertices = torch.cat([torch.eye(4), -torch.eye(4)]).double()
        labels = torch.arange(8).repeat(20)
        loss = spherical_pair_loss(vertices[labels], labels, margin=0.5, form=form)
        assert loss.item() == pytest.approx(0, abs=1e-15)
        loss = spherical_pair_loss(vertices[labels], labels, margin=0.45, form=form)
        assert loss.item() > 1e-4

    @pytest.mark.parametrize("form", FORMS)
    def test_slope_by_similarity(self, form):
        """dl/ds is -1, -(1-s) or -s for positive pairs, and 1 or s - margin for negative ones."""
        angle = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
        pair = torch.stack(
            [torch.tensor([1.0, 0.0]).double(), torch.stack([angle.cos(), angle.sin()])]
        )
        s = (1 + math.cos(1.1)) / 2
        ds = -math.sin(1.1) / 2
        for labels, margin, expected in (
            ([0, 0], 0.5, {"linear": -1, "squared_hinge": s - 1, "released": -s}[form] / 2),
            ([0, 1], 0.5, 1 if form == "linear" else s - 0.5),
            ([0, 1], 0.8, 0),
        ):
            loss = spherical_pair_loss(
                pair, torch.tensor(labels), margin, form, normalization="per_term"
            )
            (slope,) = torch.autograd.grad(loss, angle, retain_graph=True)
            assert slope.item() == pytest.approx(expected * ds, abs=1e-12)
