"""FCIS: position-sensitive regions against their definition, losses, and scored boxes."""

import math
import re

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from torchvision.ops import ps_roi_align

from rpe_d2.baselines import FCISROIHeads
from rpe_d2.baselines.fcis import FCISHead, FCISPrediction
from rpe_d2.baselines.position_sensitive import position_sensitive_regions
from rpe_d2.baselines.regions import label_regions
from rpe_d2.ops.roi_warp import roi_warp
from tests.helpers.baseline_configs import FPN_SHAPES, ROI_HEADS, seeded_model
from tests.helpers.models import square_instances, training_input
from tests.reference import position_sensitive as reference

DILATED_RESNET = """
MODEL:
  BACKBONE: {NAME: build_resnet_backbone}
  RESNETS:
    OUT_FEATURES: [res4, res5]
    DEPTH: 50
    RES2_OUT_CHANNELS: 256
    RES5_DILATION: 2
  RPN: {IN_FEATURES: [res4]}
  ANCHOR_GENERATOR: {SIZES: [[16, 32, 64]]}
  ROI_HEADS: {IN_FEATURES: [res5]}
"""


def fcis(*texts):
    return seeded_model(*ROI_HEADS["fcis"], *texts)


def fcis_heads(**arguments):
    return FCISROIHeads(FPN_SHAPES, num_classes=3, in_features=["p2"], conv_dim=16, **arguments)


@pytest.mark.parametrize("parts, cells", [(3, 2), (2, 3), (7, 1)])
def test_regions_equal_the_reference(parts, cells):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 2 * parts**2, 9, 11))
    boxes = np.array(
        [[0, 4.0, 3.0, 30.0, 29.0], [1, 10.5, 2.25, 40.0, 17.5], [0, 0.0, 0.0, 44, 36]]
    )
    expected = reference.position_sensitive_regions(features, boxes, parts, cells, 0.25)
    regions = position_sensitive_regions(
        torch.tensor(features), torch.tensor(boxes), parts, cells, 0.25
    )
    np.testing.assert_allclose(regions.numpy(), expected, atol=1e-10)


def test_regions_with_one_cell_per_part_equal_those_of_torchvision():
    features = torch.randn(2, 3 * 9, 12, 12)
    boxes = torch.tensor([[0, 4.0, 6.0, 40.0, 30.0], [1, 8.0, 8.0, 20.0, 44.0]])
    # torchvision does not shift the boxes by half a cell.
    shifted = boxes + torch.tensor([0, 2.0, 2.0, 2.0, 2.0])
    expected = ps_roi_align(features, shifted, 3, 0.25, 1)
    regions = position_sensitive_regions(features, shifted, 3, 1, 0.25)
    torch.testing.assert_close(regions, expected)


def test_a_wrong_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="features have 10 channels; allowed with 3 x 3 parts"):
        position_sensitive_regions(torch.zeros(1, 10, 4, 4), torch.zeros(1, 5), 3, 1, 1.0)


@pytest.mark.parametrize("index", [1, -1, 0.5, float("nan"), 1e9])
def test_boxes_of_images_that_the_batch_lacks_are_refused(index):
    """RoIAlign would read foreign memory."""
    boxes = torch.tensor([[0, 0, 0, 4, 4], [index, 0, 0, 4, 4]])
    message = re.escape(f"boxes have the batch index {index:g}; allowed: 0 to 0")
    with pytest.raises(ValueError, match=message):
        position_sensitive_regions(torch.zeros(1, 9, 4, 4), boxes, 3, 1, 1.0)
    with pytest.raises(ValueError, match=message):
        roi_warp(torch.zeros(1, 9, 4, 4), boxes, 3, 1.0)


def test_the_class_logit_of_a_region_is_the_mean_over_its_pixels():
    head = FCISHead(2, stride=1, conv_dim=2, num_classes=2, parts=2, cells=3)
    scores = torch.randn(1, 2 * 3 * 4, 8, 8)
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    prediction = head((scores, torch.randn(1, 16, 8, 8)), [boxes])
    assert prediction.mask_logits.shape == (1, 2, 3, 6, 6) and prediction.deltas.shape == (1, 4)
    outside, inside = prediction.mask_logits[0]
    expected = torch.maximum(outside, inside).flatten(1).mean(dim=1)
    torch.testing.assert_close(prediction.class_logits[0], expected)


def test_losses_by_hand():
    heads = fcis().roi_heads
    targets = square_instances((40, 40), [(0, 0, 30, 30)], [1])
    boxes = torch.tensor([[0.0, 0, 30, 30], [32, 32, 40, 40]])
    labels = [label_regions(boxes, targets, 3)]
    # Twice as wide as the object.
    wide = torch.tensor([[0.0, 0, 60, 30]])

    def losses(inside, outside, boxes, labels):
        masks = torch.zeros(len(boxes), 2, 4, 21, 21)
        masks[:, 0, 1], masks[:, 1, 1] = outside, inside
        prediction = FCISPrediction(torch.zeros(len(boxes), 4), masks, torch.zeros(len(boxes), 4))
        return {k: float(v) for k, v in heads._losses(prediction, [boxes], labels).items()}

    # The mask loss is ten times the mean over foreground cells, the class loss the mean over all
    # regions.
    uncertain = losses(0.0, 0.0, boxes, labels)
    assert uncertain["loss_mask"] == pytest.approx(10 * math.log(2))
    assert uncertain["loss_cls"] == pytest.approx(math.log(4)) and uncertain["loss_box_reg"] == 0
    assert losses(30.0, 0.0, boxes, labels)["loss_mask"] == pytest.approx(0, abs=1e-6)
    assert losses(0.0, 30.0, boxes, labels)["loss_mask"] == pytest.approx(300)
    half = label_regions(wide, targets, 3)
    assert half.classes.tolist() == [1]
    # The box loss is the smooth L1 loss of the deltas: -0.25 widths times ten, and log(1 / 2)
    # times five.
    expected = (10 * 0.25 - 0.5) + (5 * math.log(2) - 0.5)
    assert losses(0.0, 0.0, wide, [half])["loss_box_reg"] == pytest.approx(expected)


def test_proposals_and_their_regressed_boxes_are_scored(monkeypatch):
    heads = fcis_heads(score_threshold=0.1, vote_iou=1.0)
    proposals = torch.tensor([[10.0, 10, 30, 30], [50, 20, 90, 60], [80, 0, 94, 10]])
    # All move by half a width to the right. The second is clipped, the third leaves the image.
    deltas = torch.zeros(3, 4)
    deltas[:, 0] = torch.tensor([5.0, 5.0, 50.0])
    moved = torch.tensor([[20.0, 10, 40, 30], [70, 20, 96, 60]])
    calls = []

    def forward(maps, boxes):
        calls.append(torch.cat(boxes))
        count = len(calls[-1])
        classes = torch.zeros(count, 4)
        # In the first call all regions are background.
        classes[:, 2 if len(calls) > 1 else 3] = 5.0 + 0.1 * torch.arange(count)
        masks = torch.zeros(count, 2, 4, 21, 21)
        masks[:, 1, 2, :, :7] = masks[:, 0, 2, :, 7:] = 9.0
        return FCISPrediction(classes, masks, deltas[:count])

    monkeypatch.setattr(heads.head, "forward", forward)
    boxes, masks, scores = heads.region_predictions(None, [proposals], [(64, 96)])
    found = heads._detections(boxes[0], masks[0], scores[0], (64, 96))
    assert torch.equal(calls[0], proposals)
    torch.testing.assert_close(calls[1], torch.cat([proposals, moved]))
    # Detections are sorted by decreasing score.
    torch.testing.assert_close(found.pred_boxes.tensor, calls[1].flip(0))
    assert found.pred_classes.tolist() == [2] * 5
    left, right = found.pred_masks[:, 0, :, :7], found.pred_masks[:, 0, :, 7:]
    assert (left > 0.5).all() and (right < 0.5).all()


def test_names_of_the_losses():
    with EventStorage():
        losses = fcis()([training_input()])
    expected = {"loss_cls", "loss_mask", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    assert set(losses) == expected


def test_the_backbone_of_the_authors():
    """A ResNet-50 with a dilated last stage: proposals from res4, regions from res5, stride 16."""
    model = fcis(DILATED_RESNET)
    assert model.roi_heads.head.stride == 16
    with EventStorage():
        assert sum(model([training_input()]).values()).isfinite()


def test_a_wrong_key_is_refused_in_one_line():
    message = "MODEL.ROI_HEADS.IN_FEATURES is p2, p3; allowed for FCISROIHeads: one"
    with pytest.raises(ValueError, match=message):
        fcis("MODEL: {ROI_HEADS: {IN_FEATURES: [p2, p3]}}")


@pytest.mark.parametrize(
    "argument, value, allowed",
    [
        ("vote_iou", -0.1, "0 to 1"),
        ("parts", 0, "1 or more"),
        ("cells", 0, "1 or more"),
        ("mask_threshold", 0.0, "between"),
        ("mask_loss_weight", -1.0, "0 or more"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(argument, value, allowed):
    with pytest.raises(ValueError, match=f"^{argument} is {value}; allowed: {allowed}"):
        fcis_heads(**{argument: value})
