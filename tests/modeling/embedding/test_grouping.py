import pytest
import torch
from torch.nn import functional as F

from rpe_d2.modeling import EmbeddingMaps, MeanShiftLayer, PixelGrouping
from rpe_d2.modeling.embedding.labels import pixel_labels
from rpe_d2.modeling.embedding.mean_shift_layer import evenly
from rpe_d2.modeling.embedding.quality_head import best_iou
from rpe_d2.modeling.masks import suppress_overlaps
from tests.helpers.models import CLASSES, SQUARES, perfect_maps, small_cfg, square_instances


def groups_of(*overrides, **options):
    cfg = small_cfg(*overrides)
    maps, grid, size = perfect_maps(**options)
    return PixelGrouping(cfg)(maps, 0, size, MeanShiftLayer(cfg)), grid


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("MODEL.RPE.VOTES", False, "MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH", 0.0),
        ("MODEL.RPE.VOTES", False, "MODEL.RPE.SPLIT_COMPONENTS", True),
        ("MODEL.MEAN_SHIFT.MAX_KEYS", 100),
        ("MODEL.MEAN_SHIFT.BANDWIDTH_MODE", "learned"),
        ("MODEL.MEAN_SHIFT.RELATIVE_BANDWIDTH", 0.2),
    ],
)
def test_perfect_maps_give_every_instance_with_its_class(overrides):
    groups, grid = groups_of(*overrides)
    assert len(groups.soft_masks) == len(SQUARES)
    iou = best_iou(groups.soft_masks, grid, 0.5)
    assert iou.min() > 0.99
    masks = groups.soft_masks > 0.5
    found = {
        (int(grid[mask].mode().values), int(votes.argmax()))
        for mask, votes in zip(masks, groups.class_probabilities)
    }
    assert found == set(enumerate(CLASSES))
    assert groups.agreement.min() > 0.9


def test_components_merge_touching_instances_of_one_class():
    groups, grid = groups_of("MODEL.RPE.GROUPING", "components")
    assert len(groups.soft_masks) == len(SQUARES) - 1
    largest = groups.soft_masks[0] > 0.5
    assert set(grid[largest].unique().tolist()) == {0, 1}


def test_disconnected_parts_stay_together_unless_split():
    """One instance seen on both sides of an occluder: its votes agree."""
    maps, grid, size = perfect_maps(noise=0.0)
    logits = maps.logits.clone()
    logits[:, :, :, 9:12] = torch.tensor([0.0, 0.0, 0.0, 10.0]).view(1, 4, 1, 1)  # cuts two squares
    maps = maps._replace(logits=logits)
    for split, count in ((False, 4), (True, 6)):
        cfg = small_cfg("MODEL.RPE.SPLIT_COMPONENTS", split)
        groups = PixelGrouping(cfg)(maps, 0, size, MeanShiftLayer(cfg))
        assert len(groups.soft_masks) == count


def test_tiny_groups_are_dropped_and_the_largest_kept():
    assert len(groups_of("MODEL.RPE.MIN_AREA", 100)[0].soft_masks) == 3
    groups, _ = groups_of("MODEL.RPE.MAX_GROUPS", 2)
    assert len(groups.soft_masks) == 2
    assert (groups.soft_masks > 0.5).flatten(1).sum(dim=1).min() >= 380


@pytest.mark.parametrize("grouping", ["mean_shift", "components"])
@pytest.mark.parametrize("split", [False, True])
def test_no_foreground_gives_no_groups(grouping, split):
    cfg = small_cfg("MODEL.RPE.GROUPING", grouping, "MODEL.RPE.SPLIT_COMPONENTS", split)
    maps, _, size = perfect_maps()
    logits = torch.zeros_like(maps.logits)
    logits[:, -1] = 20
    groups = PixelGrouping(cfg)(maps._replace(logits=logits), 0, size, MeanShiftLayer(cfg))
    assert groups.soft_masks.shape == (0, 40, 48)
    assert groups.class_probabilities.shape == (0, 3)


def test_padding_is_no_foreground():
    cfg = small_cfg()
    maps, grid, _ = perfect_maps()
    groups = PixelGrouping(cfg)(maps, 0, (44, 96), MeanShiftLayer(cfg))
    assert len(groups.soft_masks) == 2  # the lower squares lie in what is declared padding
    assert groups.soft_masks[:, 22:].max() == 0


def test_best_iou_by_hand():
    grid = torch.tensor([[0, 0, -1, -1], [1, 1, 1, -2]])
    masks = torch.tensor(
        [[[1.0, 1, 1, 0], [0, 0, 0, 1]], [[0, 0, 0, 0], [0, 1, 1, 1]], [[0, 0, 1, 1], [0, 0, 0, 0]]]
    )
    assert torch.allclose(best_iou(masks, grid, 0.5), torch.tensor([2 / 3, 2 / 3, 0.0]))
    soft = masks * 0.6
    soft[0, 0, 2] = 0.4
    for threshold, expected in ((0.3, 2 / 3), (0.5, 1.0)):
        assert float(best_iou(soft[:1], grid, threshold)) == pytest.approx(expected)


@pytest.mark.parametrize(
    "overrides, named",
    [
        (("MODEL.RPE.GROUPING", "magic"), "MODEL.RPE.GROUPING"),
        (("MODEL.MEAN_SHIFT.BANDWIDTH_MODE", "auto"), "MODEL.MEAN_SHIFT.BANDWIDTH_MODE"),
        (("MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH", 0.0), "MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH"),
        (
            ("MODEL.MEAN_SHIFT.TRAIN_LOOPS", 0, "MODEL.MEAN_SHIFT.BANDWIDTH_MODE", "learned"),
            "MODEL.MEAN_SHIFT.TRAIN_LOOPS",
        ),
    ],
)
def test_errors_name_the_key(overrides, named):
    cfg = small_cfg(*overrides)
    with pytest.raises(ValueError, match=named) as error:
        PixelGrouping(cfg)
        MeanShiftLayer(cfg)
    assert "allowed" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("votes", [True, False])
def test_kmeans_is_told_the_number_of_instances(votes):
    cfg = small_cfg("MODEL.RPE.GROUPING", "kmeans", "MODEL.RPE.VOTES", votes)
    maps, grid, size = perfect_maps()
    grouping, shift = PixelGrouping(cfg), MeanShiftLayer(cfg)
    groups = grouping(maps, 0, size, shift, num_instances=len(SQUARES))
    assert len(groups.soft_masks) == len(SQUARES)
    assert best_iou(groups.soft_masks, grid, 0.5).min() > 0.95
    areas = (groups.soft_masks > 0.5).flatten(1).sum(dim=1).tolist()
    assert areas == sorted(areas, reverse=True)
    assert len(grouping(maps, 0, size, shift, num_instances=2).soft_masks) == 2
    with pytest.raises(ValueError, match="true number of instances"):
        grouping(maps, 0, size, shift)


def test_each_scale_groups_anew_and_the_ranking_decides():
    """Two halves of a square vote 8 px apart: one group to a wide kernel, two to a narrow one."""
    cfg = small_cfg("MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH", 4.0)
    maps, grid, size = perfect_maps(noise=0.0)
    votes = maps.votes.clone()
    first = grid == 0  # the square of columns 0-40
    left = torch.arange(grid.shape[1]) < 10
    votes[0, 0][first & left] -= 4
    votes[0, 0][first & ~left] += 4
    maps = maps._replace(votes=votes)

    def count(*scales):
        cfg.MODEL.MEAN_SHIFT.TEST_SCALES = list(scales)
        return PixelGrouping(cfg)(maps, 0, size, MeanShiftLayer(cfg))

    assert len(count(1.0).soft_masks) == 4 and len(count(0.25).soft_masks) == 5
    both = count(1.0, 0.25)
    assert len(both.soft_masks) == len(both.agreement) == len(both.class_probabilities) == 9
    for good, expected in (
        (4, 4),
        (9, 5),
    ):  # the wide kernel's groups are the best, or the narrow one's
        scores = torch.full((9,), 0.5)
        scores[good - 4 : good] = 0.9
        scores[4:9] += 0.1 if good == 9 else 0
        assert len(suppress_overlaps(both.soft_masks, scores, 0.5, 0.5)) == expected


def test_suppression_is_greedy():
    """By falling score; what was suppressed suppresses nothing."""
    masks = torch.zeros(5, 10, 40)
    for mask, (x0, x1) in zip(masks, [(0, 10), (6, 16), (12, 22), (30, 40), (32, 36)]):
        mask[:, x0:x1] = 1
    scores = torch.tensor([0.9, 0.8, 0.7, 0.2, 0.6])
    # 1 overlaps 0 by 0.4 and 2 by 0.4 of its area; 4 lies inside 3 and is the better one.
    assert suppress_overlaps(masks, scores, 0.3, 0.5).tolist() == [0, 2, 4]
    assert suppress_overlaps(masks, scores, 0.5, 0.5).tolist() == [0, 1, 2, 4]
    assert suppress_overlaps(masks, scores, 1.0, 0.5).tolist() == [0, 1, 2, 4, 3]
    assert suppress_overlaps(masks[:0], scores[:0], 0.5, 0.5).tolist() == []
    generator = torch.Generator().manual_seed(0)
    many = (torch.rand(60, 6, 6, generator=generator) > 0.6).float()
    ranks = torch.rand(60, generator=generator)
    expected = []
    for index in torch.argsort(ranks, descending=True).tolist():
        mask = many[index].bool()
        areas = [min(int(mask.sum()), int(many[kept].sum())) for kept in expected]
        common = [int((mask & many[kept].bool()).sum()) for kept in expected]
        if all(c <= 0.4 * a for c, a in zip(common, areas)):
            expected.append(index)
    assert suppress_overlaps(many, ranks, 0.4, 0.5).tolist() == expected


def test_a_relative_bandwidth_holds_large_instances_together_and_small_ones_apart():
    """Two small squares 8 px apart and a large one whose votes scatter as far, all with the same embedding."""
    squares, size = [(0, 0, 8, 8), (8, 0, 16, 8), (24, 0, 88, 64)], (64, 96)
    labels = pixel_labels(square_instances(size, squares, [0, 0, 0]), size)
    grid = labels.instances[1::2, 1::2]
    votes = labels.centers[grid.clamp(min=0)].permute(2, 0, 1).clone()
    middle = torch.arange(grid.shape[1]) < 28
    votes[0][(grid == 2) & middle] -= 4
    votes[0][(grid == 2) & ~middle] += 4
    logits = torch.where(grid >= 0, 10.0, -10.0)
    embeddings = torch.zeros(1, 8, *grid.shape)
    embeddings[:, 0] = 1
    maps = EmbeddingMaps(
        embeddings,
        torch.stack([logits, -logits])[None],
        votes[None],
        labels.sizes[grid.clamp(min=0)][None, None],
        embeddings,
        2,
    )

    def num_groups(*overrides):
        cfg = small_cfg("MODEL.RPE.NUM_CLASSES", 1, *overrides)
        return len(PixelGrouping(cfg)(maps, 0, size, MeanShiftLayer(cfg)).soft_masks)

    sigma = "MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH"
    assert num_groups(sigma, 2.0) == 4  # the large one falls apart
    assert num_groups(sigma, 6.0) == 2  # the small ones melt
    assert num_groups(sigma, 1.0, "MODEL.MEAN_SHIFT.RELATIVE_BANDWIDTH", 0.2) == 3


@pytest.mark.parametrize("count", [1, 99, 100, 101, 110, 140, 199, 256, 1000, 4096])
def test_keys_are_different_and_spread_evenly(count):
    index = evenly(torch.arange(0, 2 * count, 2), 100)
    assert len(index) == len(index.unique()) == min(count, 100) and (index % 2 == 0).all()
    if count > 100:
        assert index.diff().max() <= 2 * (2 * count // 100 + 1)
        columns = (index // 2) % 8  # of a picture 8 cells wide
        assert len(columns.unique()) == 8


@pytest.mark.parametrize("spatial, relative", [(0.0, 0.0), (2.0, 0.0), (2.0, 0.2)])
def test_largest_kernel_by_hand(spatial, relative):
    layer = MeanShiftLayer(
        small_cfg(
            "MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH", spatial,
            "MODEL.MEAN_SHIFT.RELATIVE_BANDWIDTH", relative,
            "MODEL.RPE.VOTES", bool(spatial),
        )
    )  # fmt: skip
    x = F.normalize(torch.randn(200, 8), dim=1)
    # As far from the corner as large pictures reach, where squares have few digits left.
    positions = 2000 + torch.rand(200, 2) * 60
    sizes = 5 + torch.rand(200) * 60
    found = layer._largest_kernel(x, positions, sizes, x[:30], positions[:30])
    exponents = (x.double() @ x[:30].double().T - 1) / float(layer.bandwidth) ** 2
    if spatial:
        sigma = (relative * sizes).clamp(min=spatial).double()
        distances = torch.cdist(positions.double(), positions[:30].double()).square()
        exponents = exponents - distances / (2 * sigma[:, None] ** 2)
    assert torch.allclose(found.double(), exponents.exp().amax(dim=1), rtol=1e-3)


def test_keys_are_also_chosen_where_points_are_few():
    """A crowd of points, and a few far away from it that an even choice leaves out."""
    layer = MeanShiftLayer(small_cfg("MODEL.MEAN_SHIFT.MAX_KEYS", 40))
    crowd, few = torch.rand(5000, 2) * 8, 100 + torch.rand(6, 2)
    positions = torch.cat([crowd[:2500], few, crowd[2500:]])
    x = F.normalize(torch.ones(5006, 8), dim=1)
    everyone = torch.ones(5006, dtype=torch.bool)
    keys = layer.choose_keys(x, positions, torch.zeros(5006), everyone)
    assert len(keys.unique()) == len(keys) <= 40
    assert (positions[keys, 0] > 50).any()
    everyone[2500:2506] = False
    keys = layer.choose_keys(x, positions, torch.zeros(5006), everyone)
    assert not (positions[keys, 0] > 50).any()
