"""Boxes of soft masks and non-maximum suppression, against obvious forms."""

import pytest
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from torch.nn import functional as F
from torchvision.ops import masks_to_boxes

from rpe_d2.modeling.masks import (
    mask_overlaps,
    rank_duplicates_last,
    soft_mask_boxes,
    soft_masks_to_proposals,
    suppress,
    suppress_overlaps,
    windows_to_proposals,
)


def random_blobs(count, size=(20, 24)):
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(count, 1, *size, generator=generator)
    smooth = F.avg_pool2d(F.pad(noise, (3, 3, 3, 3), mode="reflect"), 7, stride=1)[:, 0]
    return (smooth * 12).sigmoid()


def test_boxes_are_those_of_the_interpolated_masks():
    stride, fine = 8, 16
    masks = random_blobs(30)
    size = (20 * stride, 24 * stride)
    _, boxes = soft_mask_boxes(masks, stride, size, 0.5)
    enlarged = F.interpolate(
        masks[:, None], scale_factor=fine, mode="bilinear", align_corners=False
    )[:, 0]
    expected = masks_to_boxes(enlarged >= 0.5)
    expected[:, 2:] += 1
    assert (boxes - expected * stride / fine).abs().max() < 1.01 * stride / fine


def test_boxes_of_hard_masks_end_with_their_cells():
    masks = torch.zeros(3, 6, 8)
    masks[0, 2:4, 1:5] = 1
    masks[1, :, :] = 1
    masks[2, 5, 7] = 1
    _, boxes = soft_mask_boxes(
        masks, 4, (24, 30), 0.5
    )  # a picture that ends within the last column
    assert boxes.tolist() == [[4, 8, 20, 16], [0, 0, 30, 24], [28, 20, 30, 24]]


def test_boxes_move_with_the_mask_and_turn_with_it():
    masks = random_blobs(10, (16, 16))
    _, boxes = soft_mask_boxes(masks, 2, (32, 32), 0.5)
    _, turned = soft_mask_boxes(masks.transpose(1, 2), 2, (32, 32), 0.5)
    assert torch.equal(turned, boxes[:, [1, 0, 3, 2]])
    _, flipped = soft_mask_boxes(masks.flip(2), 2, (32, 32), 0.5)
    assert torch.allclose(flipped[:, [0, 2]], 32 - boxes[:, [2, 0]], atol=1e-5)


@pytest.mark.parametrize("relative_to", ["union", "smaller"])
def test_suppression_equals_the_obvious_loop(relative_to):
    generator = torch.Generator().manual_seed(0)
    masks, scores = random_blobs(60), torch.rand(60, generator=generator)
    for threshold in (0.4, 0.5, 0.6):
        hard = masks > 0.5
        kept = []
        for index in scores.argsort(descending=True).tolist():
            overlaps = []
            for better in kept:
                common = (hard[index] & hard[better]).sum()
                whole = (hard[index] | hard[better]).sum()
                if relative_to == "smaller":
                    whole = min(hard[index].sum(), hard[better].sum())
                overlaps.append(common / whole)
            if not overlaps or max(overlaps) <= threshold:
                kept.append(index)
        assert 3 < len(kept) < 60
        found = suppress(mask_overlaps(masks, relative_to, 0.5), scores, threshold)
        assert found.tolist() == kept


def test_duplicates_come_last_and_closer_ones_not_at_all():
    overlaps = torch.eye(5)
    # 1 overlaps 0 by .8, 2 overlaps 0 by .97; 3 overlaps only the dropped 2; 4 overlaps 1 and 0 by .75 and .9.
    for i, j, iou in ((0, 1, 0.8), (0, 2, 0.97), (2, 3, 0.9), (1, 4, 0.75), (0, 4, 0.9)):
        overlaps[i, j] = overlaps[j, i] = iou
    scores = torch.tensor([0.9, 0.8, 0.7, 0.1, 0.5])
    order, ranked = rank_duplicates_last(overlaps, scores, 0.7, 0.95)
    assert order.tolist() == [0, 1, 3, 4]
    assert torch.allclose(ranked, torch.tensor([0.9, 0.16, 0.1, 0.05]))
    order, ranked = rank_duplicates_last(overlaps, scores, 0.7, 0.7)
    assert order.tolist() == suppress(overlaps, scores, 0.7).tolist() == [0, 3]
    assert torch.equal(ranked, scores[order])


@pytest.mark.parametrize("mask_size", [14, None])
def test_proposals_are_sorted_and_scaled(mask_size):
    masks = torch.zeros(4, 8, 8)
    masks[0, 1:3, 1:3] = 0.9
    masks[1, 4:8, 4:8] = 0.6
    masks[2] = 0.4  # nowhere above the threshold
    masks[3, 0:4, 4:8] = 1.0
    scores = torch.tensor([0.2, 0.9, 1.0, 0.5])
    present, boxes = soft_mask_boxes(masks, 4, (32, 32), 0.5)
    assert present.tolist() == [True, True, False, True]
    proposals = soft_masks_to_proposals(
        masks[present], scores[present], boxes[present], 4, (32, 32), (64, 48), 0.5, mask_size
    )
    assert proposals.image_size == (64, 48)
    assert torch.allclose(proposals.objectness_logits.sigmoid(), torch.tensor([0.9, 0.5, 0.2]))
    boxes = proposals.proposal_boxes.tensor
    assert torch.allclose(boxes[1], torch.tensor([24.0, 0.0, 48.0, 32.0]))
    assert proposals.has("proposal_masks") == (mask_size is not None)
    if mask_size is not None:
        assert proposals.proposal_masks.shape == (3, 14, 14)
        assert proposals.proposal_masks.dtype == torch.uint8
        assert proposals.proposal_masks[1][:, 3:].float().mean() > 230


@pytest.mark.parametrize("mask_size", [14, None])
def test_no_masks_at_all(mask_size):
    none, scores = torch.zeros(0, 8, 8), torch.zeros(0)
    assert suppress_overlaps(none, scores, 0.5, 0.5).shape == (0,)
    assert rank_duplicates_last(mask_overlaps(none, "union", 0.5), scores, 0.5, 0.9)[0].shape == (
        0,
    )
    _, boxes = soft_mask_boxes(none, 4, (32, 32), 0.5)
    proposals = soft_masks_to_proposals(none, scores, boxes, 4, (32, 32), (32, 32), 0.5, mask_size)
    assert len(proposals) == 0 and proposals.proposal_boxes.tensor.shape == (0, 4)
    assert len(proposals.objectness_logits) == 0


def test_masks_without_an_extent_inside_the_image_have_no_box():
    """A picture of 97 pixels on cells of 8: the last column's centres lie outside of it."""
    masks = torch.zeros(4, 4, 13)
    masks[0, 1, 12] = 1  # from pixel 96 on: one pixel wide
    masks[1, 1, 12] = 0.55  # interpolated, from 98 on
    masks[2] = 0.3
    masks[3, 0, 0] = 0.5
    present, boxes = soft_mask_boxes(masks, 8, (32, 97), 0.5)
    assert present.tolist() == [True, False, False, True]
    assert boxes[0].tolist() == [96, 8, 97, 16]


def test_masks_of_proposals_are_cut_where_the_soft_ones_are():
    """Detectron2 cuts at a half whatever the threshold."""
    masks = torch.full((1, 8, 8), 0.31)
    masks[0, :, 4:] = 0.29
    boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0]])
    proposals = soft_masks_to_proposals(
        masks, torch.ones(1), boxes, 4, (32, 32), (32, 32), threshold=0.3, mask_size=8
    )
    assert ((proposals.proposal_masks[0] > 127) == (masks[0] > 0.3)).all()


def test_boxes_hold_tips_that_the_masks_are_unsure_of():
    masks = torch.zeros(2, 8, 8)
    masks[:, 3:5, 2:6] = 1
    masks[0, 3, 6] = 0.3  # a tip: the mask stops before it, the box after it
    masks[0, 3, 7] = 0.1
    _, boxes = soft_mask_boxes(masks, 4, (32, 32), 0.5, tip_threshold=0.2)
    # The profile falls to half of the tip's 0.3, from 0.3 at cell 6.5 to 0.1 at 7.5, at cell 7.25.
    assert torch.allclose(boxes[0], torch.tensor([8.0, 12, 29, 20]))
    assert boxes[1].tolist() == [8, 12, 24, 20]  # hard masks have the same box as without
    assert torch.equal(boxes[1], soft_mask_boxes(masks, 4, (32, 32), 0.5)[1][1])


def window_masks():
    """Masks of windows of 32 pixels in 8 cells: a square in the middle, one over the left border, nothing."""
    masks = torch.zeros(4, 8, 8)
    masks[0, 2:6, 2:6] = 1
    masks[1, 2:4, :6] = 0.6  # its window begins 16 pixels left of the picture
    masks[3, 2:6, 1:6] = 0.9
    windows = torch.tensor([[8.0, 8, 40, 40], [-16, 0, 16, 32], [0, 0, 32, 32], [8, 8, 40, 40]])
    return masks, torch.tensor([3.0, 1.0, 5.0, 2.0]), windows


def test_proposals_of_windows():
    masks, scores, windows = window_masks()
    found = windows_to_proposals(masks, scores, windows, (48, 64), 0.5, 1.0, 0, 10, 12)
    assert found.objectness_logits.tolist() == [3, 2, 1]  # not the empty one
    boxes = found.proposal_boxes.tensor
    assert torch.allclose(boxes[0], torch.tensor([16.0, 16, 32, 32]))
    # The picture's border cuts straight; the other sides lie where 0.6, falling to 0, crosses 0.5.
    assert boxes[2].tolist() == pytest.approx([0, 6 + 10 / 3, 6 + 2 / 3, 14 + 2 / 3])
    assert found.proposal_masks.shape == (3, 12, 12) and found.proposal_masks.dtype == torch.uint8
    assert found.proposal_masks[0][1:-1, 1:-1].min() > 200
    assert found.proposal_masks[2][2:-2, :-2].min() >= 128  # above a half where above the threshold
    kept = windows_to_proposals(masks, scores, windows, (48, 64), 0.5, 0.7, 0, 10, None)
    assert kept.objectness_logits.tolist() == [3, 1] and not kept.has("proposal_masks")
    one = windows_to_proposals(masks, scores, windows, (48, 64), 0.5, 1.0, 0, 1, None)
    assert one.objectness_logits.tolist() == [3]
    large = windows_to_proposals(masks, scores, windows, (48, 64), 0.5, 1.0, 10, 10, None)
    assert large.objectness_logits.tolist() == [3, 2]
    none = windows_to_proposals(masks[:0], scores[:0], windows[:0], (48, 64), 0.5, 0.8, 0, 9, 12)
    assert len(none) == 0 and none.proposal_masks.shape == (0, 12, 12)


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_pasted_proposals_are_the_windows_masks(threshold):
    """What Detectron2 pastes from boxes and masks is what the windows hold, cut at the threshold, inside the picture."""
    size, side = (40, 56), 32
    masks = random_blobs(12, (16, 16))
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(-15, 30, (12, 2), generator=generator).float()
    windows = torch.cat([starts, starts + side], dim=1)
    scores = torch.arange(12, 0, -1.0)
    found = windows_to_proposals(masks, scores, windows, size, threshold, 1.0, 0, 12, 64)
    assert len(found) == 12
    pasted = paste_masks_in_image(
        found.proposal_masks.float() / 255, found.proposal_boxes.tensor, size, threshold=0.5
    )
    large = F.interpolate(masks[:, None], size=side, mode="bilinear", align_corners=False)[:, 0]
    for number, (x, y) in enumerate(starts.int().tolist()):
        expected = torch.zeros(3 * side, 3 * side, dtype=torch.bool)
        expected[side + y : 2 * side + y, side + x : 2 * side + x] = large[number] >= threshold
        expected = expected[side : side + size[0], side : side + size[1]]
        union = (pasted[number] | expected).sum()
        assert (pasted[number] & expected).sum() / union > 0.93, number
