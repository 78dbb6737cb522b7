"""Operators on values that no network should produce: NaN, zeros, padding, positions far apart."""

import math
import time

import pytest
import torch
from torch.nn import functional as F

from rpe_d2.ops.clustering import cluster_embeddings
from rpe_d2.ops.mean_shift import mean_shift
from rpe_d2.ops.pair_loss import FORMS, spherical_pair_loss
from rpe_d2.ops.propagation import spatial_propagation


class TestClustering:
    @pytest.mark.parametrize(
        "num_points", [5000, 8000, pytest.param(20000, marks=pytest.mark.slow)]
    )
    def test_the_order_of_many_scattered_points_does_not_matter(self, num_points):
        for seed in range(6):
            generator = torch.Generator().manual_seed(seed)
            x = F.normalize(torch.randn(num_points, 8, generator=generator), dim=1)
            positions = torch.rand(num_points, 2, generator=generator) * 800
            labels = cluster_embeddings(x, 0.5, positions, 12.0)
            order = torch.randperm(num_points, generator=generator)
            assert torch.equal(
                cluster_embeddings(x[order], 0.5, positions[order], 12.0), labels[order]
            )

    @pytest.mark.parametrize("broken", [float("nan"), float("inf")])
    def test_a_broken_position_changes_nothing_else(self, broken):
        x = F.normalize(torch.randn(300, 8), dim=1)
        positions = torch.randint(0, 90, (300, 2)).float()
        expected = cluster_embeddings(x[1:], 0.8, positions[1:], 30.0)
        positions[0, 1] = broken
        labels = cluster_embeddings(x, 0.8, positions, 30.0)
        assert (labels[1:] != labels[0]).all()
        pairs = torch.stack([labels[1:], expected], dim=1).unique(dim=0)
        assert len(pairs) == len(pairs[:, 0].unique()) == len(pairs[:, 1].unique())

    @pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
    def test_vectors_without_direction_are_one_cluster(self, value):
        x = torch.eye(8).repeat(4, 1)
        x[5::8] = value
        labels = cluster_embeddings(x, 0.9)
        assert len(labels.unique()) == 8 and len(labels[5::8].unique()) == 1

    def test_zeros_take_no_longer_than_other_points(self):
        start = time.perf_counter()
        assert cluster_embeddings(torch.zeros(65536, 8), 0.9).eq(0).all()
        assert time.perf_counter() - start < 5  # one point a round took hours

    def test_an_infinite_distance_sets_no_limit(self):
        groups = torch.arange(8).repeat_interleave(torch.arange(40, 32, -1))
        x, positions = torch.eye(8)[groups], torch.rand(len(groups), 2) * 900
        for distance in (math.inf, torch.tensor(math.inf), torch.full((len(x),), math.inf)):
            assert torch.equal(cluster_embeddings(x, 0.5, positions, distance), groups)

    @pytest.mark.parametrize("value", [0.0, -1.0])
    def test_distances_that_are_not_positive_are_refused(self, value):
        x = F.normalize(torch.randn(5, 8), dim=1)
        with pytest.raises(ValueError, match=f"max_distance has the value {value:g}; allowed: > 0"):
            cluster_embeddings(x, 0.5, torch.zeros(5, 2), torch.full((5,), value))

    def test_no_points_and_none_with_a_direction(self):
        assert cluster_embeddings(torch.zeros(0, 4), 0.9).shape == (0,)
        assert cluster_embeddings(torch.full((3, 4), float("nan")), 0.9).tolist() == [0, 0, 0]


class TestMeanShift:
    @pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
    @pytest.mark.parametrize("with_keys", [False, True])
    def test_masked_rows_may_hold_anything(self, garbage, with_keys):
        x = F.normalize(torch.randn(2, 20, 4, dtype=torch.float64), dim=-1)
        positions = torch.rand(2, 20, 2, dtype=torch.float64) * 30
        mask = torch.ones(2, 20, dtype=torch.bool)
        mask[1, 12:] = False
        valid = torch.ones_like(mask) if with_keys else mask
        results = []
        for filling in (0.0, garbage):
            keys, key_positions = x.clone(), positions.clone()
            keys[~mask], key_positions[~mask] = filling, filling
            keys.requires_grad_()
            options = dict(spatial_bandwidth=8.0, shift_positions=True, mask=mask, tolerance=1e-9)
            if with_keys:
                options.update(keys=keys, key_positions=key_positions)
                moved, where = mean_shift(x, 0.5, 3, positions=positions, **options)
            else:
                moved, where = mean_shift(keys, 0.5, 3, positions=key_positions, **options)
            (gradient,) = torch.autograd.grad(moved[valid].sum() + where[valid].sum(), keys)
            assert (gradient[~mask] == 0).all()
            results.append((moved[valid], where[valid], gradient))
        for value, expected in zip(*results):
            assert torch.equal(value, expected)

    @pytest.mark.parametrize("key", ["bandwidth", "spatial_bandwidth"])
    def test_bandwidths_that_give_nan_are_refused(self, key):
        options = {"bandwidth": 0.5, "positions": torch.zeros(5, 2)}
        for value in (0.0, 1e-30, math.nan):
            with pytest.raises(ValueError, match=f"{key} is {value}; allowed"):
                mean_shift(torch.eye(5), num_loops=1, **{**options, key: value})
        assert mean_shift(torch.eye(5), num_loops=1, **{**options, key: 1e-9}).isfinite().all()


class TestPairLoss:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_broken_positions_do_not_end_the_repulsion(self, value):
        positions = torch.tensor([[0.0, 0.0], [1.0, value]])
        with pytest.raises(ValueError, match="positions contain NaN or infinity"):
            spherical_pair_loss(
                torch.eye(2), torch.arange(2), positions=positions, negative_radius=5.0
            )

    @pytest.mark.parametrize("side", [100, 8192, 100_000])
    def test_pairs_at_exactly_the_radius_repel_however_far_others_are(self, side):
        """Two pixels 5 px apart, and a third that moves the center away from them."""
        x = torch.eye(3)
        positions = torch.tensor([[0.0, 0.0], [3.0, 4.0], [side, side]])
        labels = torch.tensor([0, 1, 2])
        options = dict(margin=0.0, normalization="per_term", positions=positions)
        assert spherical_pair_loss(x, labels, negative_radius=5.0, **options) == 0.5
        assert spherical_pair_loss(x, labels, negative_radius=4.999, **options) == 0

    @pytest.mark.parametrize("form", FORMS)
    def test_it_is_never_negative(self, form):
        for seed in range(200):
            x = torch.randn(1, 7, generator=torch.Generator().manual_seed(seed))
            assert spherical_pair_loss(x, torch.zeros(1, dtype=torch.long), form=form) >= 0


class TestPropagation:
    @pytest.mark.parametrize(
        "value, name", [("nan", "NaN"), ("inf", "infinite values"), ("-inf", "infinite values")]
    )
    def test_gates_that_are_not_finite_are_refused_by_their_kind(self, value, name):
        gates = torch.zeros(1, 1, 12, 4, 4)
        gates[0, 0, 3, 1, 1] = float(value)
        with pytest.raises(ValueError, match=f"gates contain {name}; allowed: finite numbers"):
            spatial_propagation(torch.zeros(1, 1, 4, 4), gates)
