"""Clusters in balls: thresholds, peaks of histograms and nearest centers."""

import pytest
import torch

from rpe_d2.ops import ball_clustering
from rpe_d2.ops.ball_clustering import cluster_by_threshold, histogram_peaks, nearest_center
from rpe_d2.ops.spectral_clustering import require_scikit_learn, spectral_labels


def balls(num_balls=5, size=20, dim=3, radius=0.2):
    """Returns points in balls whose centers are at least 3 apart, and the ball of each."""
    centers = 3 * torch.arange(num_balls)[:, None] * torch.ones(dim) / dim**0.5
    labels = torch.arange(num_balls).repeat_interleave(size)[torch.randperm(num_balls * size)]
    noise = torch.rand(len(labels), dim) * 2 * radius / dim**0.5 - radius / dim**0.5
    return centers[labels] + noise, labels, centers


def same_partition(labels, others):
    pairs = {(int(a), int(b)) for a, b in zip(labels, others)}
    return len(pairs) == len(set(labels.tolist())) == len(set(others.tolist()))


def slow_threshold(x, bandwidth):
    """Returns the clusters, with sets of points."""
    free, clusters = list(range(len(x))), []
    while free:
        center, selected = x[free[0]], None
        for _ in range(10):
            near = [i for i in free if float((x[i] - center).norm()) <= bandwidth]
            if near == selected:
                break
            selected = near
            center = sum(x[i] for i in near) / len(near)
        clusters.append(selected)
        free = [i for i in free if i not in selected]
    return clusters


@pytest.mark.parametrize("dim", [1, 4])
def test_thresholds_find_balls(dim):
    x, truth, _ = balls(dim=dim)
    labels, centers = cluster_by_threshold(x, 1.0, 100)
    assert same_partition(labels, truth) and labels[0] == 0
    for number, center in enumerate(centers):
        assert torch.allclose(center, x[labels == number].mean(dim=0), atol=1e-5)


def test_thresholds_are_those_of_sets():
    x = torch.rand(60, 2, dtype=torch.float64)
    labels, centers = cluster_by_threshold(x, 0.2, 100)
    expected = slow_threshold(x, 0.2)
    assert len(centers) == len(expected)
    for number, cluster in enumerate(expected):
        assert torch.nonzero(labels == number).flatten().tolist() == cluster


def test_the_number_of_clusters_is_bounded_and_garbage_is_left_out():
    x, truth, _ = balls()
    labels, centers = cluster_by_threshold(x, 1.0, 2)
    assert len(centers) == 2 and (labels == -1).sum() == 60
    x[0] = float("nan")
    x[1] = float("inf")
    labels, centers = cluster_by_threshold(x, 1.0, 100)
    assert labels[:2].tolist() == [-1, -1] and same_partition(labels[2:], truth[2:])
    labels, centers = cluster_by_threshold(x[:0], 1.0, 100)
    assert labels.shape == (0,) and centers.shape == (0, 3)


@pytest.mark.parametrize("dim", [1, 3])
def test_peaks_of_the_histogram_are_the_balls(dim):
    x, truth, centers = balls(dim=dim)
    peaks = histogram_peaks(x, 0.5, 1.5, 100)
    assert len(peaks) == len(centers)
    assert same_partition(nearest_center(x, peaks), truth)
    assert len(histogram_peaks(x, 0.5, 1.5, 2)) == 2
    assert histogram_peaks(x[:0], 0.5, 1.5, 2).shape == (0, dim)


def test_a_full_bin_suppresses_its_neighbors():
    tags = torch.tensor([0.1] * 5 + [0.4] * 3 + [2.1] * 4 + [2.6]).view(-1, 1)
    assert histogram_peaks(tags, 0.25, 1.0, 9).flatten().tolist() == pytest.approx([0.1, 2.1])
    expected = [0.1, 2.1, 0.4, 2.6]
    assert histogram_peaks(tags, 0.25, 0.2, 9).flatten().tolist() == pytest.approx(expected)
    nan = torch.tensor([[float("nan")]])
    assert histogram_peaks(torch.cat([nan, tags]), 0.25, 1.0, 9).isfinite().all()


def test_the_nearest_center_is_that_of_all_distances(monkeypatch):
    monkeypatch.setattr(ball_clustering, "_BLOCK_ELEMENTS", 64)
    x, centers = torch.randn(50, 3), torch.randn(7, 3)
    distance = (x[:, None] - centers).norm(dim=2)
    assert torch.equal(nearest_center(x, centers), distance.argmin(dim=1))
    limited = nearest_center(x, centers, 0.8)
    assert torch.equal(limited == -1, distance.amin(dim=1) > 0.8)
    assert (nearest_center(x, centers[:0]) == -1).all()


@pytest.mark.parametrize("bandwidth, clusters", [(0.0, 5), (float("nan"), 5), (1.0, 0)])
def test_wrong_values_are_one_line(bandwidth, clusters):
    with pytest.raises(ValueError, match="allowed: > 0, finite"):
        cluster_by_threshold(torch.zeros(3, 2), bandwidth, clusters)
    with pytest.raises(ValueError, match=r"allowed: floating point \(N, D\)"):
        histogram_peaks(torch.zeros(3), 0.5, 0.5, 2)


@pytest.mark.parametrize("size", [20, 300])  # 300 points of a ball are more than the graph has
def test_spectral_clustering_finds_balls(size):
    pytest.importorskip("sklearn")
    x, truth, _ = balls(num_balls=3, size=size)
    assert same_partition(spectral_labels(x, 3), truth)
    assert torch.equal(spectral_labels(x, 3), spectral_labels(x, 3))
    assert spectral_labels(x, 1).unique().tolist() == [0]
    assert spectral_labels(x[:2], 5).tolist() == [0, 1]
    assert spectral_labels(x[:0], 5).shape == (0,)
    with pytest.raises(ValueError, match="num_clusters is 0; allowed: 1 or more"):
        spectral_labels(x, 0)


def test_without_scikit_learn_one_line_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="x needs scikit-learn, which is not installed: pip"):
        require_scikit_learn("x")
