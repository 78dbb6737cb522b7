"""Grouping of all pixels, where the class scores of a group tell whether it is background."""

import pytest
import torch
from torch.nn import functional as F

from rpe_d2.modeling import (
    EmbeddingLoss,
    MeanShiftLayer,
    MeanShiftProposalGenerator,
    PixelEmbeddingNet,
)
from rpe_d2.modeling.embedding import MeanShiftGrouping
from rpe_d2.modeling.embedding.grouping import build_grouping, drop_background
from rpe_d2.modeling.embedding.quality_head import best_match
from tests.helpers.configs import small_cfg_with
from tests.helpers.models import SQUARES, perfect_maps, training_input

VOTE = """
MODEL:
  RPE: {VOTES: False, QUALITY: False, BACKGROUND: group, FOREGROUND: vote}
  MEAN_SHIFT: {SPATIAL_BANDWIDTH: 0.0}
"""


def maps_with_background():
    """Perfect maps whose background has its own embedding, and the instance of each cell."""
    maps, grid, size = perfect_maps()
    embeddings = maps.embeddings.clone()
    embeddings[0, :, grid < 0] = torch.eye(8)[4][:, None]
    return maps._replace(embeddings=embeddings), grid, size


def with_foreground(maps, probability):
    """Replaces the class scores by class 0 with these foreground probabilities (h, w)."""
    logits = torch.full_like(maps.logits, -30.0)
    logits[0, 0], logits[0, -1] = probability.log(), (1 - probability).log()
    return maps._replace(logits=logits)


def vote_grouping(*texts):
    cfg = small_cfg_with(VOTE, *texts)
    grouping = build_grouping(cfg)
    grouping.shift = MeanShiftLayer(cfg)
    return grouping


def test_a_classifier_that_sees_only_background_hides_no_group():
    maps, grid, size = maps_with_background()
    maps = with_foreground(maps, torch.full(grid.shape, 0.01))
    groups = vote_grouping()(maps.image(0, size))
    assert len(groups.soft_masks) == len(SQUARES) + 1  # background is one of them
    iou, _ = best_match(groups.soft_masks, grid, 0.5)
    assert sorted(iou.tolist())[1:] == pytest.approx([1.0] * len(SQUARES))
    torch.testing.assert_close(
        groups.class_probabilities[:, 0], torch.full((len(SQUARES) + 1,), 0.01), atol=1e-4, rtol=0
    )
    assert len(drop_background(groups).soft_masks) == 0


def test_a_mask_is_whole_where_the_classifier_misses_a_part():
    maps, grid, size = maps_with_background()
    instance = int(torch.bincount(grid[grid >= 0]).argmax())
    cells = torch.nonzero((grid == instance).flatten()).squeeze(1)
    probability = torch.full((grid.numel(),), 0.01)
    probability[cells[: int(0.6 * len(cells))]] = 0.99
    groups = vote_grouping()(with_foreground(maps, probability.view_as(grid)).image(0, size))
    (kept,) = drop_background(groups).soft_masks
    assert torch.equal(kept > 0.5, grid == instance)
    expected = 0.99 * 0.6 + 0.01 * 0.4
    assert float(drop_background(groups).class_probabilities[0, 0]) == pytest.approx(
        expected, abs=1e-2
    )
    gated = MeanShiftGrouping(vote_grouping().shift)
    (half,) = gated(with_foreground(maps, probability.view_as(grid)).image(0, size)).soft_masks
    assert 0.59 < float((half > 0.5).sum() / len(cells)) < 0.61


def test_padding_is_not_grouped():
    maps, grid, size = maps_with_background()
    padded = maps._replace(
        embeddings=F.pad(maps.embeddings, (0, 3, 0, 5), value=0.35),
        logits=F.pad(maps.logits, (0, 3, 0, 5)),
        votes=F.pad(maps.votes, (0, 3, 0, 5)),
        sizes=F.pad(maps.sizes, (0, 3, 0, 5)),
    )
    groups = vote_grouping()(padded.image(0, size))
    height, width = grid.shape
    assert len(groups.soft_masks) == len(SQUARES) + 1
    assert groups.soft_masks[:, height:].sum() == groups.soft_masks[:, :, width:].sum() == 0


def test_instances_drop_background_and_proposals_rank_it_last():
    maps, grid, size = maps_with_background()
    cfg = small_cfg_with(VOTE)
    model = PixelEmbeddingNet(cfg).eval()
    item = {"image": torch.zeros(3, *size, dtype=torch.uint8)}
    instances = model._output(item, maps.image(0, size), None)["instances"]
    assert len(instances) == len(SQUARES)
    shape = model.backbone.output_shape()
    generator = MeanShiftProposalGenerator(
        small_cfg_with(
            VOTE, "MODEL: {RPE: {PROPOSALS: {STRIDE: 2, NUM_LEVELS: 1, SCALES: [1.0]}}}"
        ),
        shape,
    ).eval()
    ranked = generator.rank_groups([maps], [size])
    (proposals,) = generator._proposals(ranked, 2, [size])
    assert len(proposals) == len(SQUARES) + 1
    worst = proposals.proposal_boxes.tensor[-1]
    assert worst.tolist() == [0, 0, size[1], size[0]]
    assert float(proposals.objectness_logits[-1]) < 0 < float(proposals.objectness_logits[-2])


def test_a_classifier_that_sees_only_background_leaves_no_instance_and_all_proposals():
    maps, grid, size = maps_with_background()
    maps = with_foreground(maps, torch.full(grid.shape, 0.01))
    model = PixelEmbeddingNet(small_cfg_with(VOTE)).eval()
    item = {"image": torch.zeros(3, *size, dtype=torch.uint8)}
    assert len(model._output(item, maps.image(0, size), None)["instances"]) == 0
    text = "MODEL: {RPE: {PROPOSALS: {STRIDE: 2, NUM_LEVELS: 1, SCALES: [1.0]}}}"
    shape = model.backbone.output_shape()
    generator = MeanShiftProposalGenerator(small_cfg_with(VOTE, text), shape).eval()
    ranked = generator.rank_groups([maps], [size])
    (proposals,) = generator._proposals(ranked, 2, [size])
    areas = sorted(int(area) for area in proposals.proposal_boxes.area())[:-1]  # without background
    assert areas == sorted(
        int((grid == n).any(0).sum() * (grid == n).any(1).sum()) * maps.stride**2
        for n in range(len(SQUARES))
    )


def test_kmeans_is_told_of_the_background():
    maps, grid, size = maps_with_background()
    grouping = vote_grouping("MODEL: {RPE: {GROUPING: kmeans}}")
    groups = grouping(maps.image(0, size), num_instances=len(SQUARES))
    assert len(groups.soft_masks) == len(SQUARES) + 1


@pytest.mark.parametrize("override", ["BACKGROUND: exclude", "GROUPING: components"])
def test_the_vote_needs_background_as_a_group_of_embeddings(override):
    cfg = small_cfg_with(VOTE, f"MODEL: {{RPE: {{{override}}}}}")
    with pytest.raises(ValueError, match="^MODEL.RPE.FOREGROUND is vote; allowed with"):
        PixelEmbeddingNet(cfg)
    backbone = PixelEmbeddingNet(small_cfg_with()).backbone
    with pytest.raises(ValueError, match="grouping.background_is_group is True; allowed with"):
        PixelEmbeddingNet(
            backbone,
            3,
            embedding_loss=EmbeddingLoss(background_is_group=False),
            grouping=MeanShiftGrouping(foreground="vote"),
        )


def test_a_step_of_training_with_quality_reaches_all_parameters():
    model = PixelEmbeddingNet(small_cfg_with(VOTE, "MODEL: {RPE: {QUALITY: True}}")).train()
    losses = model([training_input()])
    assert set(losses) == {"loss_sem_seg", "loss_pair", "loss_quality"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
