import time

import pytest
import torch
from torch.nn import functional as F

from rpe_d2.ops.clustering import cluster_embeddings, split_components
from tests.reference.clustering import adjusted_rand_index, flood_fill, leader_clusters

MAX_SEEDS = 2048  # largest number of seeds per round


def separated_groups(sizes, dim, noise=0.02, dtype=torch.float32):
    """Samples points around random directions whose cosines are below 0.6, in random order."""
    centers = []
    while len(centers) < len(sizes):
        candidate = F.normalize(torch.randn(dim), dim=0)
        if all(candidate @ center < 0.6 for center in centers):
            centers.append(candidate)
    truth = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    truth = truth[torch.randperm(len(truth))]
    x = torch.stack(centers)[truth] + noise * torch.randn(len(truth), dim)
    return F.normalize(x, dim=1).to(dtype), truth


def assert_well_formed(labels, num_points):
    """Checks that labels are 0 to K - 1 in descending order of size."""
    assert labels.shape == (num_points,) and labels.dtype == torch.int64
    if num_points == 0:
        return
    assert labels.min() == 0
    sizes = labels.bincount()
    assert (sizes > 0).all() and (sizes.diff() <= 0).all()


def agreement(first, second):
    return adjusted_rand_index(torch.as_tensor(first).tolist(), torch.as_tensor(second).tolist())


def test_the_agreement_measure_itself():
    assert adjusted_rand_index([0, 0, 1, 1], [5, 5, 3, 3]) == 1
    assert adjusted_rand_index([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(-0.5)
    assert adjusted_rand_index([0, 0, 1, 1], [0, 0, 0, 1]) < 0.6
    # Example of the index of Hubert and Arabie in scikit-learn's documentation.
    assert adjusted_rand_index([0, 0, 1, 2], [0, 0, 1, 1]) == pytest.approx(4 / 7)
    independent = torch.randint(0, 9, (2, 3000)).tolist()
    assert abs(adjusted_rand_index(*independent)) < 0.01


class TestSeparatedGroups:
    @pytest.mark.parametrize("sizes", [[7], [40, 30], [200, 100, 50, 3, 1], [5] * 30])
    @pytest.mark.parametrize("dim", [8, 32])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_agrees_with_reference_and_truth(self, sizes, dim, dtype):
        x, truth = separated_groups(sizes, dim, dtype=dtype)
        labels = cluster_embeddings(x, 0.85)
        assert_well_formed(labels, len(x))
        assert agreement(labels, truth) == 1.0
        assert agreement(labels, leader_clusters(x.float(), 0.75)) == 1.0
        assert labels.bincount().tolist() == sorted(sizes, reverse=True)

    def test_more_points_than_seeds(self):
        x, truth = separated_groups([3000, 900, 400, 60, 5], 16)
        labels = cluster_embeddings(x, 0.85)
        assert_well_formed(labels, len(x))
        assert agreement(labels, truth) == 1.0

    def test_one_pixel_among_sixty_thousand(self):
        x, truth = separated_groups([60_000, 2, 1], 8)
        labels = cluster_embeddings(x, 0.85)
        assert agreement(labels, truth) == 1.0 and labels.bincount().tolist() == [60_000, 2, 1]

    def test_negative_threshold(self):
        angles = torch.tensor([0.0, 0.2, torch.pi, torch.pi + 0.2])
        x = torch.stack([angles.cos(), angles.sin()], dim=1)
        assert agreement(cluster_embeddings(x, -0.5), [0, 0, 1, 1]) == 1.0

    def test_threshold_decides(self):
        angles = torch.tensor([0.0, 0.5, 0.0, 0.5], dtype=torch.float64)  # radians
        x = torch.stack([angles.cos(), angles.sin()], dim=1)
        cosine = torch.tensor(0.5, dtype=torch.float64).cos().item()
        assert cluster_embeddings(x, cosine - 1e-6).tolist() == [0, 0, 0, 0]
        assert agreement(cluster_embeddings(x, cosine + 1e-6), angles > 0) == 1.0


class TestOrder:
    @pytest.mark.parametrize("num_points", [300, 2 * MAX_SEEDS + 100])
    @pytest.mark.parametrize("with_positions", [False, True])
    @pytest.mark.parametrize("kind", ["separated", "scattered"])
    def test_permutations_permute_the_labels(self, num_points, with_positions, kind):
        if kind == "separated":
            x, _ = separated_groups([num_points // 10] * 10, 16)
        else:
            x = F.normalize(
                torch.randn(num_points, 4), dim=1
            )  # without clusters, all decisions are close
        options = {}
        if with_positions:
            options = dict(positions=torch.randint(0, 90, (len(x), 2)), max_distance=30)
        labels = cluster_embeddings(x, 0.8, **options)
        assert_well_formed(labels, len(x))
        assert labels.max() > 5
        assert torch.equal(labels, cluster_embeddings(x, 0.8, **options))
        for _ in range(4):
            order = torch.randperm(len(x))
            if with_positions:
                moved = dict(options, positions=options["positions"][order])
            else:
                moved = {}
            assert torch.equal(cluster_embeddings(x[order], 0.8, **moved), labels[order])

    def test_equal_sizes_are_numbered_alike_too(self):
        x = torch.eye(40)
        labels = cluster_embeddings(x, 0.5)
        order = torch.randperm(40)
        assert torch.equal(cluster_embeddings(x[order], 0.5), labels[order])

    def test_nothing_global_is_changed(self):
        state = torch.random.get_rng_state()
        x = torch.eye(5, requires_grad=True)
        labels = cluster_embeddings(x, 0.5)
        assert not labels.requires_grad
        assert torch.equal(torch.random.get_rng_state(), state)


def test_every_cluster_lies_around_one_center():
    """The threshold applies to a point and its cluster's center, so clusters are not chains."""
    angles = torch.linspace(0, 3.1, 500, dtype=torch.float64)  # radians, an unbroken chain
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = cluster_embeddings(x, 0.95)
    diameter = 2 * torch.tensor(0.95).acos().item()
    for k in range(int(labels.max()) + 1):
        members = angles[labels == k]
        assert members.max() - members.min() <= diameter + 1e-6
    assert 3.1 / diameter <= labels.max() + 1 <= 3 * 3.1 / diameter


class TestPositions:
    def test_separate_identical_embeddings(self):
        x = F.normalize(torch.ones(60, 5), dim=1)
        positions = torch.rand(60, 2) * 10 + 4000
        positions[20:50, 1] += 100
        far = torch.arange(60).sub(20).clamp(0, 30).gt(0) & (torch.arange(60) < 50)
        far[20] = True
        assert cluster_embeddings(x, 0.9).max() == 0
        labels = cluster_embeddings(x, 0.9, positions, max_distance=30.0)
        assert agreement(labels, far) == 1.0 and labels.max() == 1
        assert cluster_embeddings(x, 0.9, positions, max_distance=300.0).max() == 0

    def test_like_the_reference(self):
        x, truth = separated_groups([60, 40, 20], 8)
        places = torch.randint(0, 3, (120,))
        positions = torch.rand(120, 2) * 4 + 50.0 * places[:, None]
        labels = cluster_embeddings(x, 0.85, positions, max_distance=10.0)
        assert agreement(labels, 3 * truth + places) == 1.0
        assert agreement(labels, leader_clusters(x, 0.75, positions, 10.0)) == 1.0

    def test_a_distance_for_each_point(self):
        """Of points 4 px apart, those with a distance of 5 px join and those with 3 px do not."""
        positions = torch.zeros(20, 2)
        positions[:, 0] = 4 * torch.arange(20)
        x = torch.ones(20, 1)
        distances = torch.where(torch.arange(20) < 2, 5.0, 3.0)
        order = torch.randperm(20)
        labels = torch.empty(20, dtype=torch.long)
        labels[order] = cluster_embeddings(x, 0.9, positions[order], distances[order])
        assert labels[0] == labels[1] == 0 and sorted(labels[2:].tolist()) == list(range(1, 19))
        same = cluster_embeddings(x, 0.9, positions, torch.full((20,), 9.0))
        assert torch.equal(same, cluster_embeddings(x, 0.9, positions, 9.0))
        with pytest.raises(ValueError, match="max_distance has shape"):
            cluster_embeddings(x, 0.9, positions, distances[:5])

    def test_exactly_max_distance_apart_is_near(self):
        x = torch.ones(2, 1)
        positions = torch.tensor([[1000, 2000], [1003, 2004]])
        assert cluster_embeddings(x, 0.9, positions, 5).tolist() == [0, 0]
        assert sorted(cluster_embeddings(x, 0.9, positions, 4.999).tolist()) == [0, 1]

    @pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
    def test_exact_on_a_pixel_grid(self, dtype):
        """Rounding must not decide about pixels that are exactly max_distance apart."""
        corners = torch.cartesian_prod(torch.arange(20), torch.arange(10)) * 17
        lone = torch.tensor([[1000, 1001]])  # gives the mean a fractional part
        positions = torch.cat([corners, corners + torch.tensor([3, 4]), lone]).to(dtype)
        x = torch.ones(401, 1)
        truth = torch.cat([torch.arange(200).repeat(2), torch.tensor([200])])
        assert agreement(cluster_embeddings(x, 0.9, positions, 5), truth) == 1.0
        assert cluster_embeddings(x, 0.9, positions, 4.999).max() == 400

    def test_unused_without_max_distance(self):
        x, _ = separated_groups([30, 20], 8)
        expected = cluster_embeddings(x, 0.8)
        assert torch.equal(cluster_embeddings(x, 0.8, torch.rand(50, 2) * 1e4), expected)


class TestExtremes:
    @pytest.mark.parametrize("options", [{}, dict(positions=torch.zeros(0, 2), max_distance=3.0)])
    def test_no_point(self, options):
        assert_well_formed(cluster_embeddings(torch.zeros(0, 4), 0.9, **options), 0)

    def test_one_point(self):
        assert cluster_embeddings(torch.ones(1, 1), 0.9).tolist() == [0]
        assert cluster_embeddings(torch.ones(1, 1), 0.9, torch.zeros(1, 2), 1.0).tolist() == [0]

    @pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.99, 1.0])
    @pytest.mark.parametrize("num_points", [100, 3 * MAX_SEEDS])
    def test_all_identical(self, threshold, num_points):
        x = F.normalize(torch.randn(1, 32), dim=1).expand(num_points, 32)
        assert (cluster_embeddings(x, threshold) == 0).all()

    @pytest.mark.parametrize("num_points", [64, MAX_SEEDS + 300])
    def test_all_orthogonal(self, num_points):
        """More than 2,048 points need more than one round."""
        labels = cluster_embeddings(torch.eye(num_points), 0.5)
        assert labels.sort().values.tolist() == list(range(num_points))

    def test_many_rounds_end(self):
        x = F.normalize(torch.randn(3 * MAX_SEEDS, 48), dim=1)
        labels = cluster_embeddings(x, 0.95)
        assert labels.sort().values.tolist() == list(range(3 * MAX_SEEDS))

    def test_nothing_near_its_own_center(self):
        """Of five points around the equator, none is within the threshold of their mean."""
        angles = torch.arange(5, dtype=torch.float64) * 2 * torch.pi / 5
        x = torch.stack([angles.cos(), angles.sin()], dim=1)
        assert_well_formed(cluster_embeddings(x, 0.3), 5)


def test_sixty_five_thousand_pixels_in_under_a_second():
    centers = F.normalize(torch.randn(400, 32), dim=1)
    truth = torch.randint(0, 400, (65_536,))
    x = F.normalize(centers[truth] + 0.02 * torch.randn(65_536, 32), dim=1)
    seconds = []
    for _ in range(3):  # best of three, because the machine may be busy
        start = time.perf_counter()
        labels = cluster_embeddings(x, 0.9)
        seconds.append(time.perf_counter() - start)
    assert agreement(labels, truth) == 1.0
    assert min(seconds) < 1.0


class TestSplitComponents:
    @pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 2), (23, 31)])
    @pytest.mark.parametrize("num_labels", [1, 2, 6])
    def test_like_flood_fill(self, shape, num_labels):
        for _ in range(5):
            label_map = torch.randint(-2, num_labels, shape)
            parts = split_components(label_map)
            assert parts.dtype == torch.int64
            assert parts.tolist() == flood_fill(label_map.tolist())

    def test_diagonal_neighbors_touch(self):
        assert split_components(torch.tensor([[3, 5], [5, 3]])).tolist() == [[0, 1], [1, 0]]
        apart = [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
        assert split_components(torch.tensor(apart)).tolist() == [[0, 1, 2], [1, 1, 1], [3, 1, 4]]

    def test_rows_do_not_wrap_around(self):
        label_map = torch.tensor([[-1, -1, 7], [7, -1, -1], [-1, -1, 7]])
        assert split_components(label_map).tolist() == [[-1, -1, 0], [1, -1, -1], [-1, -1, 2]]

    def test_negative_is_no_group(self):
        label_map = torch.tensor([[-1, -5, -5], [2, -1, 2]])
        assert split_components(label_map).tolist() == [[-1, -1, -1], [0, -1, 1]]
        assert (split_components(torch.full((4, 3), -7)) == -1).all()

    def test_raster_order_whatever_the_labels(self):
        label_map = torch.tensor([[9, 9, 4], [9, 0, 4], [8, 0, 4]])
        assert split_components(label_map).tolist() == [[0, 0, 1], [0, 2, 1], [3, 2, 1]]

    @pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
    def test_empty(self, shape):
        assert split_components(torch.zeros(shape, dtype=torch.int64)).shape == shape

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool])
    def test_types(self, dtype):
        label_map = torch.randint(0, 2, (9, 9))
        assert torch.equal(split_components(label_map.to(dtype)), split_components(label_map))


@pytest.mark.parametrize(
    "name, change",
    [
        ("x", dict(x=torch.ones(3))),
        ("x", dict(x=torch.ones(3, 4, dtype=torch.long))),
        ("threshold", dict(threshold=1.1)),
        ("threshold", dict(threshold=float("nan"))),
        ("max_distance", dict(max_distance=0.0, positions=torch.ones(3, 2))),
        ("positions", dict(max_distance=1.0)),
        ("positions", dict(max_distance=1.0, positions=torch.ones(3, 3))),
    ],
)
def test_errors_name_the_argument_in_one_line(name, change):
    with pytest.raises(ValueError, match=f"^{name} (is|are) ") as error:
        cluster_embeddings(**{**dict(x=torch.ones(3, 4), threshold=0.5), **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("label_map", [torch.ones(3, 3), torch.ones(3, dtype=torch.long)])
def test_label_map_must_be_an_integer_map(label_map):
    with pytest.raises(ValueError, match="^label_map is .*; allowed: "):
        split_components(label_map)
