"""Soft masks: interpolation, boxes, non-maximum suppression and proposals."""

import pytest
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from torch.nn import functional as F
from torchvision.ops import masks_to_boxes

from rpe_d2.modeling.masks import (
    contained_mask_soft_nms,
    greedy_nms,
    mask_overlaps,
    soft_mask_boxes,
    soft_masks_to_proposals,
    soft_nms,
    upsample_masks,
    windows_to_proposals,
)


def random_blobs(count, size=(20, 24)):
    """Returns smooth random masks (count, *size) in 0-1."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(count, 1, *size, generator=generator)
    smooth = F.avg_pool2d(F.pad(noise, (3, 3, 3, 3), mode="reflect"), 7, stride=1)[:, 0]
    return (smooth * 12).sigmoid()


def test_soft_masks_are_interpolated_before_the_threshold():
    soft = torch.zeros(1, 4, 4)
    soft[0, 1:3, 1:3] = 1.0
    hard = upsample_masks(soft, 8, (32, 32), (32, 32), 0.5)[0]
    square = torch.zeros(32, 32, dtype=torch.bool)
    square[8:24, 8:24] = True
    assert hard[16, 8] and not hard[8, 8]  # interpolation rounds off the corners of the square
    assert 0.85 < (hard & square).sum() / (hard | square).sum() < 1
    assert upsample_masks(soft[:0], 8, (30, 31), (60, 62), 0.5).shape == (0, 60, 62)


def test_boxes_equal_those_of_interpolated_masks():
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


def test_boxes_of_binary_masks_end_with_their_cells():
    masks = torch.zeros(3, 6, 8)
    masks[0, 2:4, 1:5] = 1
    masks[1, :, :] = 1
    masks[2, 5, 7] = 1
    _, boxes = soft_mask_boxes(masks, 4, (24, 30), 0.5)  # the image ends in the last column
    assert boxes.tolist() == [[4, 8, 20, 16], [0, 0, 30, 24], [28, 20, 30, 24]]


def test_boxes_of_transposed_and_flipped_masks():
    masks = random_blobs(10, (16, 16))
    _, boxes = soft_mask_boxes(masks, 2, (32, 32), 0.5)
    _, transposed = soft_mask_boxes(masks.transpose(1, 2), 2, (32, 32), 0.5)
    assert torch.equal(transposed, boxes[:, [1, 0, 3, 2]])
    _, flipped = soft_mask_boxes(masks.flip(2), 2, (32, 32), 0.5)
    assert torch.allclose(flipped[:, [0, 2]], 32 - boxes[:, [2, 0]], atol=1e-5)


@pytest.mark.parametrize("relative_to", ["union", "smaller"])
def test_greedy_nms_equals_a_plain_loop(relative_to):
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
        result = greedy_nms(mask_overlaps(masks, relative_to, 0.5), scores, threshold)
        assert result.tolist() == kept


def test_soft_nms_lowers_scores_and_drops_near_duplicates():
    overlaps = torch.eye(5)
    # Item 2 is a near-duplicate of 0 and is dropped. Item 3 overlaps only 2. Items 1 and 4 overlap
    # better ones, 4 both of them.
    for i, j, iou in ((0, 1, 0.8), (0, 2, 0.97), (2, 3, 0.9), (1, 4, 0.75), (0, 4, 0.9)):
        overlaps[i, j] = overlaps[j, i] = iou
    scores = torch.tensor([0.9, 0.8, 0.7, 0.1, 0.5])
    order, ranked = soft_nms(overlaps, scores, 0.7, 0.95)
    assert order.tolist() == [0, 1, 3, 4]
    assert torch.allclose(ranked, torch.tensor([0.9, 0.16, 0.1, 0.05]))
    order, ranked = soft_nms(overlaps, scores, 0.7, 0.7)
    assert order.tolist() == greedy_nms(overlaps, scores, 0.7).tolist() == [0, 3]
    assert torch.equal(ranked, scores[order])


@pytest.mark.parametrize("mask_size", [14, None])
def test_proposals_are_sorted_and_scaled(mask_size):
    masks = torch.zeros(4, 8, 8)
    masks[0, 1:3, 1:3] = 0.9
    masks[1, 4:8, 4:8] = 0.6
    masks[2] = 0.4  # below the threshold everywhere
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
def test_no_masks_give_no_proposals(mask_size):
    none, scores = torch.zeros(0, 8, 8), torch.zeros(0)
    kept, factors = contained_mask_soft_nms(none, scores, 0.5, 0.5, 0.3, 0.6)
    assert kept.shape == factors.shape == (0,)
    kept, kept_scores = soft_nms(mask_overlaps(none, "union", 0.5), scores, 0.5, 0.9)
    assert kept.shape == kept_scores.shape == (0,)
    _, boxes = soft_mask_boxes(none, 4, (32, 32), 0.5)
    proposals = soft_masks_to_proposals(none, scores, boxes, 4, (32, 32), (32, 32), 0.5, mask_size)
    assert len(proposals) == 0 and proposals.proposal_boxes.tensor.shape == (0, 4)
    assert len(proposals.objectness_logits) == 0


def test_masks_outside_the_image_have_no_box():
    """The centers of the last column of 8-pixel cells are outside an image of 97 pixels."""
    masks = torch.zeros(4, 4, 13)
    masks[0, 1, 12] = 1  # one pixel wide, from pixel 96 on
    masks[1, 1, 12] = 0.55  # above the threshold from pixel 98 on
    masks[2] = 0.3
    masks[3, 0, 0] = 0.5
    present, boxes = soft_mask_boxes(masks, 8, (32, 97), 0.5)
    assert present.tolist() == [True, False, False, True]
    assert boxes[0].tolist() == [96, 8, 97, 16]


def test_proposal_masks_are_above_one_half_where_soft_masks_are_above_the_threshold():
    """Detectron2 always applies a threshold of one half."""
    masks = torch.full((1, 8, 8), 0.31)
    masks[0, :, 4:] = 0.29
    boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0]])
    proposals = soft_masks_to_proposals(
        masks, torch.ones(1), boxes, 4, (32, 32), (32, 32), threshold=0.3, mask_size=8
    )
    assert ((proposals.proposal_masks[0] > 127) == (masks[0] > 0.3)).all()


def test_the_tip_threshold_extends_boxes_to_uncertain_tips():
    masks = torch.zeros(2, 8, 8)
    masks[:, 3:5, 2:6] = 1
    masks[0, 3, 6] = 0.3  # a tip that belongs to the box but not to the mask
    masks[0, 3, 7] = 0.1
    _, boxes = soft_mask_boxes(masks, 4, (32, 32), 0.5, tip_threshold=0.2)
    # The profile falls to half of the tip's 0.3, from 0.3 at cell 6.5 to 0.1 at 7.5, at cell 7.25.
    assert torch.allclose(boxes[0], torch.tensor([8.0, 12, 29, 20]))
    assert boxes[1].tolist() == [8, 12, 24, 20]  # as for every binary mask
    assert torch.equal(boxes[1], soft_mask_boxes(masks, 4, (32, 32), 0.5)[1][1])


def window_masks():
    """Returns masks of 8 x 8 cells, their scores, and their windows of 32 pixels.

    Mask 0 is a square in the middle, 1 extends beyond the left border of the image, 2 is empty, and
    3 covers mask 0.
    """
    masks = torch.zeros(4, 8, 8)
    masks[0, 2:6, 2:6] = 1
    masks[1, 2:4, :6] = 0.6  # its window begins 16 pixels left of the image
    masks[3, 2:6, 1:6] = 0.9
    windows = torch.tensor([[8.0, 8, 40, 40], [-16, 0, 16, 32], [0, 0, 32, 32], [8, 8, 40, 40]])
    return masks, torch.tensor([3.0, 1.0, 5.0, 2.0]), windows


def test_windows_become_proposals():
    masks, scores, windows = window_masks()
    proposals = windows_to_proposals(masks, scores, windows, (48, 64), 0.5, 1.0, 0, 10, 12)
    assert proposals.objectness_logits.tolist() == [3, 2, 1]  # without the empty mask
    boxes = proposals.proposal_boxes.tensor
    assert torch.allclose(boxes[0], torch.tensor([16.0, 16, 32, 32]))
    # One side is on the border of the image. The others are where the mask falls below 0.5.
    assert boxes[2].tolist() == pytest.approx([0, 6 + 10 / 3, 6 + 2 / 3, 14 + 2 / 3])
    pred = proposals.proposal_masks
    assert pred.shape == (3, 12, 12) and pred.dtype == torch.uint8
    assert pred[0][1:-1, 1:-1].min() > 200
    assert pred[2][2:-2, :-2].min() >= 128  # above one half where the mask is above the threshold
    kept = windows_to_proposals(masks, scores, windows, (48, 64), 0.5, 0.7, 0, 10, None)
    assert kept.objectness_logits.tolist() == [3, 1] and not kept.has("proposal_masks")
    one = windows_to_proposals(masks, scores, windows, (48, 64), 0.5, 1.0, 0, 1, None)
    assert one.objectness_logits.tolist() == [3]
    large = windows_to_proposals(masks, scores, windows, (48, 64), 0.5, 1.0, 10, 10, None)
    assert large.objectness_logits.tolist() == [3, 2]
    none = windows_to_proposals(masks[:0], scores[:0], windows[:0], (48, 64), 0.5, 0.8, 0, 9, 12)
    assert len(none) == 0 and none.proposal_masks.shape == (0, 12, 12)


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_pasted_proposals_equal_the_masks_of_their_windows(threshold):
    """Detectron2 pastes boxes and masks to the part of a window's mask that is in the image."""
    size, side = (40, 56), 32
    masks = random_blobs(12, (16, 16))
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(-15, 30, (12, 2), generator=generator).float()
    windows = torch.cat([starts, starts + side], dim=1)
    scores = torch.arange(12, 0, -1.0)
    proposals = windows_to_proposals(masks, scores, windows, size, threshold, 1.0, 0, 12, 64)
    assert len(proposals) == 12
    pasted = paste_masks_in_image(
        proposals.proposal_masks.float() / 255, proposals.proposal_boxes.tensor, size, threshold=0.5
    )
    large = F.interpolate(masks[:, None], size=side, mode="bilinear", align_corners=False)[:, 0]
    for number, (x, y) in enumerate(starts.int().tolist()):
        expected = torch.zeros(3 * side, 3 * side, dtype=torch.bool)
        expected[side + y : 2 * side + y, side + x : 2 * side + x] = large[number] >= threshold
        expected = expected[side : side + size[0], side : side + size[1]]
        union = (pasted[number] | expected).sum()
        assert (pasted[number] & expected).sum() / union > 0.93, number
