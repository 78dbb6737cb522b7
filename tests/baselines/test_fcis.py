"""FCIS: score maps against their definition, losses, what is found."""

import math

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import ps_roi_align

from rpe_d2.baselines.fcis import FCISHead, FCISPrediction
from rpe_d2.baselines.position_sensitive import position_sensitive_regions
from rpe_d2.baselines.regions import label_regions
from tests.baselines.test_mnc import MNC
from tests.helpers.models import plain_backbone, small_cfg, square_instances, training_input
from tests.reference import position_sensitive as reference

FCIS = (
    *MNC,
    "MODEL.PROPOSAL_GENERATOR.NAME",
    "RPN",
    "MODEL.ROI_HEADS.NAME",
    "FCISROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES",
    ["p2"],
    "MODEL.FCIS.CONV_DIM",
    16,
)


def fcis(*overrides):
    torch.manual_seed(0)
    return build_model(small_cfg(*FCIS, *overrides))


@pytest.mark.parametrize("parts, cells", [(3, 2), (2, 3), (7, 1)])
def test_regions_are_the_definition(parts, cells):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 2 * parts**2, 9, 11))
    boxes = np.array(
        [[0, 4.0, 3.0, 30.0, 29.0], [1, 10.5, 2.25, 40.0, 17.5], [0, 0.0, 0.0, 44, 36]]
    )
    expected = reference.position_sensitive_regions(features, boxes, parts, cells, 0.25)
    found = position_sensitive_regions(
        torch.tensor(features), torch.tensor(boxes), parts, cells, 0.25
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


def test_one_cell_a_part_is_torchvisions():
    features = torch.randn(2, 3 * 9, 12, 12)
    boxes = torch.tensor([[0, 4.0, 6.0, 40.0, 30.0], [1, 8.0, 8.0, 20.0, 44.0]])
    # Its boxes are not moved by half a cell.
    moved = boxes + torch.tensor([0, 2.0, 2.0, 2.0, 2.0])
    expected = ps_roi_align(features, moved, 3, 0.25, 1)
    found = position_sensitive_regions(features, moved, 3, 1, 0.25)
    torch.testing.assert_close(found, expected)


def test_wrong_number_of_channels():
    with pytest.raises(ValueError, match="features have 10 channels; allowed with 3 x 3 parts"):
        position_sensitive_regions(torch.zeros(1, 10, 4, 4), torch.zeros(1, 5), 3, 1, 1.0)


def test_a_region_is_as_likely_as_its_pixels_say():
    head = FCISHead(2, stride=1, conv_dim=2, num_classes=2, parts=2, cells=3)
    scores = torch.randn(1, 2 * 3 * 4, 8, 8)
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    found = head((scores, torch.randn(1, 16, 8, 8)), [boxes])
    assert found.mask_logits.shape == (1, 2, 3, 6, 6) and found.deltas.shape == (1, 4)
    outside, inside = found.mask_logits[0]
    expected = torch.maximum(outside, inside).flatten(1).mean(dim=1)
    torch.testing.assert_close(found.class_logits[0], expected)


def test_losses_by_hand():
    heads = fcis().roi_heads
    truth = square_instances((40, 40), [(0, 0, 30, 30)], [1])
    boxes = torch.tensor([[0.0, 0, 30, 30], [32, 32, 40, 40]])
    labels = [label_regions(boxes, truth, 3)]
    wide = torch.tensor(
        [[0.0, 0, 60, 30]]
    )  # twice as wide as the object: a wrong width of log(1 / 2), five times

    def losses(inside, outside, boxes, labels):
        masks = torch.zeros(len(boxes), 2, 4, 21, 21)
        masks[:, 0, 1], masks[:, 1, 1] = outside, inside
        prediction = FCISPrediction(torch.zeros(len(boxes), 4), masks, torch.zeros(len(boxes), 4))
        return {k: float(v) for k, v in heads._losses(prediction, [boxes], labels).items()}

    # Masks: ten times the mean over the cells of the foreground. Classes: the mean over all regions.
    found = losses(0.0, 0.0, boxes, labels)
    assert found["loss_mask"] == pytest.approx(10 * math.log(2))
    assert found["loss_cls"] == pytest.approx(math.log(4)) and found["loss_box_reg"] == 0
    assert losses(30.0, 0.0, boxes, labels)["loss_mask"] == pytest.approx(0, abs=1e-6)
    assert losses(0.0, 30.0, boxes, labels)["loss_mask"] == pytest.approx(300)
    half = label_regions(wide, truth, 3)
    assert half.classes.tolist() == [1]
    # Boxes: smooth L1 of the deltas, here -0.5 widths times ten and log(1 / 2) times five.
    expected = (10 * 0.25 - 0.5) + (5 * math.log(2) - 0.5)
    assert losses(0.0, 0.0, wide, [half])["loss_box_reg"] == pytest.approx(expected)


def test_proposals_and_their_regressed_boxes_are_scored(monkeypatch):
    heads = fcis("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.1, "MODEL.FCIS.VOTE_IOU", 1.0).roi_heads
    proposals = torch.tensor([[10.0, 10, 30, 30], [50, 20, 90, 60], [80, 0, 94, 10]])
    # By half a width to the right, where the second is clipped, and the third leaves the picture.
    deltas = torch.zeros(3, 4)
    deltas[:, 0] = torch.tensor([5.0, 5.0, 50.0])
    moved = torch.tensor([[20.0, 10, 40, 30], [70, 20, 96, 60]])
    seen = []

    def forward(maps, boxes):
        seen.append(torch.cat(boxes))
        count = len(seen[-1])
        classes = torch.zeros(count, 4)
        # In the first call all are background.
        classes[:, 2 if len(seen) > 1 else 3] = 5.0 + 0.1 * torch.arange(count)
        masks = torch.zeros(count, 2, 4, 21, 21)
        masks[:, 1, 2, :, :7] = masks[:, 0, 2, :, 7:] = 9.0
        return FCISPrediction(classes, masks, deltas[:count])

    monkeypatch.setattr(heads.head, "forward", forward)
    (found,) = heads._inference(None, [proposals], [(64, 96)])
    assert torch.equal(seen[0], proposals)
    torch.testing.assert_close(seen[1], torch.cat([proposals, moved]))
    # By falling score.
    torch.testing.assert_close(found.pred_boxes.tensor, seen[1].flip(0))
    assert found.pred_classes.tolist() == [2] * 5
    assert (found.pred_masks[:, 0, :, :7] > 0.5).all() and (
        found.pred_masks[:, 0, :, 7:] < 0.5
    ).all()


def test_losses_reach_everything_and_training_learns():
    model = fcis()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    item, history = training_input(), []
    with EventStorage():
        for number in range(30):
            losses = model([item])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            if number == 0:
                assert set(losses) == {
                    "loss_cls", "loss_mask", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc",
                }  # fmt: skip
                own = model.roi_heads.parameters()
                assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own)
            optimizer.step()
            history.append({name: float(loss) for name, loss in losses.items()})
    for name in ("loss_mask", "loss_cls"):
        assert np.mean([h[name] for h in history[-5:]]) < 0.8 * history[0][name], name


def test_what_is_found_is_detectron2s():
    model = fcis().eval()
    image = training_input()["image"]
    found = model([{"image": image, "height": 128, "width": 192}])[0]["instances"]
    assert 0 < len(found) <= 100 and found.pred_masks.shape == (len(found), 128, 192)
    none = fcis("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.999).eval()
    assert len(none([{"image": image}])[0]["instances"]) == 0
    features = model.backbone(ImageList.from_tensors([torch.randn(3, 64, 96)], 32).tensor)
    boxes = Boxes(torch.tensor([[4.0, 4, 40, 30]]))
    given = Instances((64, 96), pred_boxes=boxes, pred_classes=torch.tensor([2]))
    assert model.roi_heads.forward_with_given_boxes(features, [given])[0].pred_masks.shape == (
        1, 1, 21, 21,
    )  # fmt: skip


def test_pictures_without_objects():
    model = fcis()
    item = training_input()
    item["instances"] = item["instances"][:0]
    with EventStorage():
        losses = model([item])
    assert all(loss.isfinite() for loss in losses.values()) and losses["loss_mask"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.roi_heads.parameters())


def test_the_authors_backbone():
    """ResNet-50 with a dilated last stage: proposals from res4, regions from res5, both at stride 16."""
    model = fcis(
        *plain_backbone("res4", "res5"), "MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256,
        "MODEL.RESNETS.RES5_DILATION", 2, "MODEL.RPN.IN_FEATURES", ["res4"],
        "MODEL.ANCHOR_GENERATOR.SIZES", [[16, 32, 64]], "MODEL.ROI_HEADS.IN_FEATURES", ["res5"],
    )  # fmt: skip
    assert model.roi_heads.head.stride == 16
    with EventStorage():
        assert sum(model([training_input()]).values()).isfinite()


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3"]), "is p2, p3; allowed for FCISROIHeads: one"),
        (("MODEL.FCIS.VOTE_IOU", -0.1), "MODEL.FCIS.VOTE_IOU is -0.1; allowed: 0 to 1"),
        (("MODEL.FCIS.PARTS", 0), "MODEL.FCIS.PARTS is 0; allowed: 1 or more"),
        (("MODEL.FCIS.MASK_THRESHOLD", 0.0), "MODEL.FCIS.MASK_THRESHOLD is 0.0; allowed: between"),
    ],
)
def test_a_wrong_key_is_one_line(overrides, message):
    with pytest.raises(ValueError, match=message):
        fcis(*overrides)
