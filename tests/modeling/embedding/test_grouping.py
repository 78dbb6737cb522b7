"""Grouping of pixels by mean shift, connected components and k-means."""

import pytest
import torch

from rpe_d2.modeling import EmbeddingMaps, MeanShiftLayer, PixelGrouping
from rpe_d2.modeling.embedding import (
    ComponentGrouping,
    KMeansGrouping,
    MeanShiftGrouping,
    build_grouping,
)
from rpe_d2.modeling.embedding.labels import pixel_labels
from rpe_d2.modeling.embedding.quality_head import best_match
from rpe_d2.modeling.masks import contained_mask_soft_nms
from tests.helpers.configs import small_cfg_with
from tests.helpers.models import CLASSES, SQUARES, perfect_maps, square_instances

KMEANS = "MODEL: {RPE: {GROUPING: kmeans}}"
COMPONENTS = "MODEL: {RPE: {GROUPING: components}}"
SPLIT = "MODEL: {RPE: {SPLIT_COMPONENTS: True}}"
NO_VOTES = "MODEL: {RPE: {VOTES: False}}"
EMBEDDINGS_ALONE = "MODEL: {RPE: {VOTES: False}, MEAN_SHIFT: {SPATIAL_BANDWIDTH: 0.0}}"


def configured_grouping(*texts) -> PixelGrouping:
    """Builds a grouping and its mean-shift layer from the small configuration with YAML texts."""
    cfg = small_cfg_with(*texts)
    grouping = build_grouping(cfg)
    grouping.shift = MeanShiftLayer(cfg)
    return grouping


def groups_of(*texts):
    """Groups the pixels of perfect maps. Returns the groups and the instance of each cell."""
    maps, grid, size = perfect_maps()
    return configured_grouping(*texts)(maps.image(0, size)), grid


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        EMBEDDINGS_ALONE,
        "MODEL: {RPE: {VOTES: False, SPLIT_COMPONENTS: True}}",
        "MODEL: {MEAN_SHIFT: {MAX_KEYS: 100}}",
        "MODEL: {MEAN_SHIFT: {BANDWIDTH_MODE: learned}}",
        "MODEL: {MEAN_SHIFT: {RELATIVE_BANDWIDTH: 0.2}}",
    ],
)
def test_perfect_maps_give_every_instance_with_its_class(text):
    groups, grid = groups_of(text)
    assert len(groups.soft_masks) == len(SQUARES)
    iou, _ = best_match(groups.soft_masks, grid, 0.5)
    assert iou.min() > 0.99
    masks = groups.soft_masks > 0.5
    pred = {
        (int(grid[mask].mode().values), int(votes.argmax()))
        for mask, votes in zip(masks, groups.class_probabilities)
    }
    assert pred == set(enumerate(CLASSES))
    assert groups.agreement.min() > 0.9


def test_components_merge_touching_instances_of_one_class():
    groups, grid = groups_of(COMPONENTS)
    assert len(groups.soft_masks) == len(SQUARES) - 1
    largest = groups.soft_masks[0] > 0.5
    assert set(grid[largest].unique().tolist()) == {0, 1}


def test_components_of_an_instance_stay_together_unless_split():
    """An instance that is seen on both sides of an occluder is one group, as its votes agree."""
    maps, _, size = perfect_maps(noise=0.0)
    logits = maps.logits.clone()
    # The occluder cuts two squares.
    logits[:, :, :, 9:12] = torch.tensor([0.0, 0.0, 0.0, 10.0]).view(1, 4, 1, 1)
    image_maps = maps._replace(logits=logits).image(0, size)
    for texts, count in (((), 4), ((SPLIT,), 6)):
        assert len(configured_grouping(*texts)(image_maps).soft_masks) == count


def test_small_groups_are_dropped_and_the_largest_are_kept():
    assert len(groups_of("MODEL: {RPE: {MIN_AREA: 100}}")[0].soft_masks) == 3
    groups, _ = groups_of("MODEL: {RPE: {MAX_GROUPS: 2}}")
    assert len(groups.soft_masks) == 2
    assert (groups.soft_masks > 0.5).flatten(1).sum(dim=1).min() >= 380


@pytest.mark.parametrize("text", ["{}", COMPONENTS])
@pytest.mark.parametrize("split", ["{}", SPLIT])
def test_no_foreground_gives_no_groups(text, split):
    maps, _, size = perfect_maps()
    logits = torch.zeros_like(maps.logits)
    logits[:, -1] = 20
    groups = configured_grouping(text, split)(maps._replace(logits=logits).image(0, size))
    assert groups.soft_masks.shape == (0, 40, 48)
    assert groups.class_probabilities.shape == (0, 3)


def test_padding_is_not_grouped():
    maps, _, _ = perfect_maps()
    # The lower squares are in the padding.
    groups = configured_grouping()(maps.image(0, (44, 96)))
    assert len(groups.soft_masks) == 2
    assert groups.soft_masks[:, 22:].max() == 0


def test_image_maps_know_the_cells_of_their_image():
    maps, _, _ = perfect_maps()
    image_maps = maps.image(0, (45, 70))  # the last row of cells is covered in part
    assert image_maps.unpadded_size == (23, 35)
    assert image_maps.valid[:23, :35].min() == 1 and image_maps.valid.sum() == 23 * 35
    unpadded = image_maps.unpadded()
    assert torch.equal(unpadded.logits, maps.logits[0, :, :23, :35])
    assert unpadded.sizes.shape == (23, 35) and unpadded.valid.min() == 1
    assert (unpadded.stride, unpadded.image_size) == (2, (45, 70))


def test_best_match_by_hand():
    grid = torch.tensor([[0, 0, -1, -1], [1, 1, 1, -2]])
    masks = torch.tensor(
        [[[1.0, 1, 1, 0], [0, 0, 0, 1]], [[0, 0, 0, 0], [0, 1, 1, 1]], [[0, 0, 1, 1], [0, 0, 0, 0]]]
    )
    iou, instance = best_match(masks, grid, 0.5)
    assert torch.allclose(iou, torch.tensor([2 / 3, 2 / 3, 0.0]))
    assert instance[:2].tolist() == [0, 1]
    soft = masks * 0.6
    soft[0, 0, 2] = 0.4
    for threshold, expected in ((0.3, 2 / 3), (0.5, 1.0)):
        assert float(best_match(soft[:1], grid, threshold)[0]) == pytest.approx(expected)
    for nothing in (masks[:0], masks):
        iou, instance = best_match(nothing, grid.clamp(max=-1), 0.5)
        assert len(iou) == len(instance) == len(nothing) and iou.sum() == 0


@pytest.mark.parametrize(
    "text, key",
    [
        ("MODEL: {RPE: {GROUPING: magic}}", "MODEL.RPE.GROUPING"),
        ("MODEL: {MEAN_SHIFT: {BANDWIDTH_MODE: auto}}", "MODEL.MEAN_SHIFT.BANDWIDTH_MODE"),
        ("MODEL: {MEAN_SHIFT: {SPATIAL_BANDWIDTH: 0.0}}", "MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH"),
        (
            "MODEL: {MEAN_SHIFT: {TRAIN_LOOPS: 0, BANDWIDTH_MODE: learned}}",
            "MODEL.MEAN_SHIFT.TRAIN_LOOPS",
        ),
    ],
)
def test_errors_name_the_key(text, key):
    with pytest.raises(ValueError, match=key) as error:
        configured_grouping(text)
    assert "allowed" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, kind",
    [("{}", MeanShiftGrouping), (KMEANS, KMeansGrouping), (COMPONENTS, ComponentGrouping)],
)
def test_the_key_selects_the_grouping(text, kind):
    cfg = small_cfg_with(text)
    grouping = build_grouping(cfg)
    assert type(grouping) is kind and grouping.shift is None
    assert (grouping.min_area, grouping.max_groups, grouping.scales) == (16, 500, (1.0,))
    assert build_grouping(cfg, scales=[0.5], max_groups=7).max_groups == 7
    if kind is not ComponentGrouping:
        assert build_grouping(cfg, scales=[0.5, 2.0]).scales == (0.5, 2.0)


@pytest.mark.parametrize("text", ["{}", NO_VOTES])
def test_kmeans_is_told_the_number_of_instances(text):
    maps, grid, size = perfect_maps()
    grouping, image_maps = configured_grouping(KMEANS, text), maps.image(0, size)
    groups = grouping(image_maps, num_instances=len(SQUARES))
    assert len(groups.soft_masks) == len(SQUARES)
    assert best_match(groups.soft_masks, grid, 0.5)[0].min() > 0.95
    areas = (groups.soft_masks > 0.5).flatten(1).sum(dim=1).tolist()
    assert areas == sorted(areas, reverse=True)
    assert len(grouping(image_maps, num_instances=2).soft_masks) == 2
    with pytest.raises(ValueError, match="needs the ground-truth number of instances; allowed"):
        grouping(image_maps)


def divided_maps():
    """Returns maps in which the two halves of a square vote for points 8 pixels apart."""
    maps, grid, size = perfect_maps(noise=0.0)
    votes = maps.votes.clone()
    first = grid == 0  # the square in columns 0 to 40
    left = torch.arange(grid.shape[1]) < 10
    votes[0, 0][first & left] -= 4
    votes[0, 0][first & ~left] += 4
    return maps._replace(votes=votes).image(0, size)


def test_every_scale_groups_all_pixels_and_scores_select_among_the_groups():
    maps = divided_maps()

    def groups_at(*scales):
        return configured_grouping(f"MODEL: {{MEAN_SHIFT: {{TEST_SCALES: {list(scales)}}}}}")(maps)

    assert len(groups_at(1.0).soft_masks) == 4 and len(groups_at(0.25).soft_masks) == 5
    both = groups_at(1.0, 0.25)
    assert len(both.soft_masks) == len(both.agreement) == len(both.class_probabilities) == 9
    # The best groups are those of the wide kernel, then those of the narrow one.
    for last, expected in ((4, 4), (9, 5)):
        scores = torch.full((9,), 0.5)
        scores[last - 4 : last] = 0.9
        scores[4:9] += 0.1 if last == 9 else 0
        kept, factors = contained_mask_soft_nms(both.soft_masks, scores, 0.5, 0.5, 0.3, 0.6)
        assert (factors == 1).sum() == expected
        # Of the divided square, the whole and its larger half remain as alternatives at most, and
        # the other squares are the same at both scales.
        assert factors[factors < 1].tolist() == pytest.approx([0.3] * (len(kept) - expected))
        assert len(kept) < len(scores)


@pytest.mark.parametrize("distance, scale, count", [(4.0, 1.0, 5), (12.0, 1.0, 4), (12.0, 0.4, 5)])
def test_the_merge_distance_limits_the_votes_of_a_cluster(distance, scale, count):
    # The kernel is too narrow to shift the two halves of the square towards each other.
    shift = MeanShiftLayer(spatial_bandwidth=1.5)
    grouping = MeanShiftGrouping(shift, merge_distance=distance, scales=[scale])
    assert len(grouping(divided_maps()).soft_masks) == count


def test_contained_masks_get_lower_scores_and_duplicates_are_dropped():
    """A mask in conflict with a better one does not suppress others."""
    masks = torch.zeros(6, 10, 40)
    spans = [(0, 10), (6, 16), (12, 22), (30, 40), (32, 36), (1, 10)]
    for mask, (x0, x1) in zip(masks, spans):
        mask[:, x0:x1] = 1
    scores = torch.tensor([0.9, 0.8, 0.7, 0.2, 0.6, 0.5])

    def ranked(threshold):
        kept, factors = contained_mask_soft_nms(masks, scores, threshold, 0.5, 0.3, 0.6)
        assert kept.tolist() == [0, 1, 2, 4, 3]  # mask 5 has an IoU of 0.9 with mask 0
        return kept[factors == 1].tolist(), {round(f, 4) for f in factors[factors < 1].tolist()}

    # Mask 1 shares 0.4 of its area with each of 0 and 2. Mask 4 is in 3 and has a higher score.
    assert ranked(0.3) == ([0, 2, 4], {0.3})
    assert ranked(0.5) == ([0, 1, 2, 4], {0.3})
    assert ranked(1.0) == ([0, 1, 2, 4, 3], set())
    generator = torch.Generator().manual_seed(0)
    many = (torch.rand(60, 6, 6, generator=generator) > 0.6).float()
    ranks = torch.rand(60, generator=generator)
    kept, factors = contained_mask_soft_nms(many, ranks, 0.4, 0.5, 0.0, 0.3)

    def chosen(candidates, limit, relative_to):
        found = []
        for index in candidates:
            mask = many[index].bool()
            for other in (many[number].bool() for number in found):
                common = int((mask & other).sum())
                area = int((mask | other).sum())
                if relative_to == "smaller":
                    area = min(int(mask.sum()), int(other.sum()))
                if common > limit * area:
                    break
            else:
                found.append(index)
        return found

    distinct = chosen(torch.argsort(ranks, descending=True).tolist(), 0.3, "union")
    assert kept.tolist() == distinct
    assert kept[factors == 1].tolist() == chosen(distinct, 0.4, "smaller")


def test_a_relative_bandwidth_keeps_a_large_instance_whole_and_small_ones_apart():
    """All pixels have the same embedding, so that only their votes tell the instances apart.

    The centers of two small squares are 8 pixels apart. The votes of a large square scatter as far.
    """
    squares, size = [(0, 0, 8, 8), (8, 0, 16, 8), (24, 0, 88, 64)], (64, 96)
    labels = pixel_labels(square_instances(size, squares, [0, 0, 0]), size)
    grid = labels.at_cells(2)
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

    def num_groups(text):
        return len(configured_grouping(text)(maps.image(0, size)).soft_masks)

    # The large square is split in two.
    assert num_groups("MODEL: {MEAN_SHIFT: {SPATIAL_BANDWIDTH: 2.0}}") == 4
    # The small squares are merged.
    assert num_groups("MODEL: {MEAN_SHIFT: {SPATIAL_BANDWIDTH: 6.0}}") == 2
    relative = "MODEL: {MEAN_SHIFT: {SPATIAL_BANDWIDTH: 1.0, RELATIVE_BANDWIDTH: 0.2}}"
    assert num_groups(relative) == 3
