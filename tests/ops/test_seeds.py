"""The greedy choice of seeds, against plain loops."""

import math

import torch

from rpe_d2.ops.seeds import diverse_seeds, spatial_seeds


def slow_diverse_seeds(x, seediness, max_seeds, alpha, min_score):
    chosen = []
    for _ in range(max_seeds):
        scores = []
        for p in range(len(x)):
            apart = [1 - 2 / (1 + math.exp(float(((x[p] - x[q]) ** 2).sum()))) for q in chosen]
            scores.append(0.0 if p in chosen else float(seediness[p]) * min([1.0, *apart]) ** alpha)
        best = max(range(len(x)), key=lambda p: scores[p])
        if scores[best] < min_score:
            break
        chosen.append(best)
    return chosen


def test_diverse_seeds_are_those_of_loops():
    x = torch.randn(40, 3, dtype=torch.float64)
    seediness = torch.rand(40, dtype=torch.float64)
    for count, alpha, min_score in ((6, 0.3, 0.2), (40, 1.0, 0.4), (5, 0.0, 0.0)):
        seeds = diverse_seeds(x, seediness, count, diversity=alpha, min_score=min_score)
        assert seeds.tolist() == slow_diverse_seeds(x, seediness, count, alpha, min_score)


def test_look_alikes_get_one_seed():
    x = torch.tensor([[0.0], [0.0], [5.0], [5.0], [9.0]])
    seediness = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.1])
    assert diverse_seeds(x, seediness, 9).tolist() == [0, 2]
    assert diverse_seeds(x[:0], seediness[:0], 9).shape == (0,)


def slow_spatial_seeds(positions, precision, seediness, min_pixels):
    candidates = [i for i in range(len(positions)) if float(seediness[i]) > 0.5]
    free, seeds = set(candidates), []
    while free:
        best = max(free, key=lambda i: float(seediness[i]))
        square = (positions[candidates] - positions[best]) ** 2
        phi = torch.exp(-(square * precision[best]).sum(dim=1))
        mask = {i for i, value in zip(candidates, phi.tolist()) if value > 0.5}
        if len(mask) >= min_pixels and 2 * len(mask & free) > len(mask):
            seeds.append(best)
        free -= mask | {best}
    return seeds


def test_spatial_seeds_are_those_of_loops():
    for num_bandwidths in (1, 2):
        positions = torch.rand(80, 2, dtype=torch.float64)
        bandwidths = 0.3 + 0.2 * torch.rand(80, num_bandwidths, dtype=torch.float64)
        seediness = torch.rand(80, dtype=torch.float64)
        precision = (10 * bandwidths).exp().expand(80, 2)
        for min_pixels in (1, 2):
            seeds = spatial_seeds(positions, bandwidths, seediness, 99, min_pixels=min_pixels)
            expected = slow_spatial_seeds(positions, precision, seediness, min_pixels)
            assert seeds.tolist() == expected and len(expected) > 1


def test_the_number_of_spatial_seeds_is_bounded():
    positions = torch.arange(20.0)[:, None].expand(20, 2)  # far from each other
    bandwidths, seediness = torch.full((20, 1), 0.4), torch.linspace(0.3, 0.9, 20)
    assert spatial_seeds(positions, bandwidths, seediness, 3).tolist() == [19, 18, 17]
    assert len(spatial_seeds(positions, bandwidths, seediness, 99)) == int((seediness > 0.5).sum())
    assert spatial_seeds(positions, bandwidths, 0 * seediness, 3).shape == (0,)
    # Masks of one pixel are too small, and not tried forever.
    assert spatial_seeds(positions, bandwidths, seediness, 1, min_pixels=2).shape == (0,)
