import pytest
import torch
from torch.nn import functional as F

from rpe_d2.modeling import EmbeddingMaps, MeanShiftLayer, PixelGrouping
from rpe_d2.modeling.embedding_head import cell_centers
from rpe_d2.modeling.pixel_labels import pixel_labels
from rpe_d2.modeling.quality_head import best_iou

from .helpers import small_cfg, square_instances

SQUARES = [(0, 0, 40, 40), (40, 0, 80, 40), (8, 48, 40, 80), (56, 56, 64, 64)]
CLASSES = [0, 0, 1, 2]


def perfect_maps(stride=2, size=(80, 96), noise=0.05):
    """What a perfect network would predict for SQUARES: noisy instance embeddings, sure classes, exact votes."""
    generator = torch.Generator().manual_seed(0)
    labels = pixel_labels(square_instances(size, SQUARES, CLASSES), size)
    grid = labels.instances[stride // 2 :: stride, stride // 2 :: stride]
    directions = torch.eye(8)[:4]
    embeddings = directions[grid.clamp(min=0)].permute(2, 0, 1)
    embeddings = embeddings + noise * torch.randn(embeddings.shape, generator=generator)
    classes = labels.class_map(3, 3)[stride // 2 :: stride, stride // 2 :: stride]
    logits = 10.0 * F.one_hot(classes, 4).permute(2, 0, 1)
    votes = labels.centers[grid.clamp(min=0)].permute(2, 0, 1)
    own = cell_centers(grid.shape, stride, torch.device("cpu"))
    votes = torch.where(grid >= 0, votes, own) + torch.randn(own.shape, generator=generator)
    embeddings = F.normalize(embeddings, dim=0)
    maps = EmbeddingMaps(
        embeddings[None], logits[None].float(), votes[None], embeddings[None], stride
    )
    return maps, grid, size


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
    ],
)
def test_perfect_maps_give_every_instance_with_its_class(overrides):
    groups, grid = groups_of(*overrides)
    assert len(groups.soft_masks) == len(SQUARES)
    iou = best_iou(groups.soft_masks, grid)
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
    assert torch.allclose(best_iou(masks, grid), torch.tensor([2 / 3, 2 / 3, 0.0]))


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
    assert best_iou(groups.soft_masks, grid).min() > 0.95
    areas = (groups.soft_masks > 0.5).flatten(1).sum(dim=1).tolist()
    assert areas == sorted(areas, reverse=True)
    assert len(grouping(maps, 0, size, shift, num_instances=2).soft_masks) == 2
    with pytest.raises(ValueError, match="true number of instances"):
        grouping(maps, 0, size, shift)
