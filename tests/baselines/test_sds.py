"""SDS: what is a region, what each pathway sees, how masks are refined, what is learned and found."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from rpe_d2.baselines.sds import RegionRefinement
from rpe_d2.data import PixelLabelMapper, load_shapes
from rpe_d2.modeling.masks import masks_in_boxes
from tests.helpers.models import small_cfg, square_instances, training_input
from tests.modeling.test_spn import MASK_RCNN

BOXES = (*MASK_RCNN, "MODEL.ROI_HEADS.NAME", "SDSROIHeads")
MASKS = (
    *BOXES,
    "MODEL.PROPOSAL_GENERATOR.NAME",
    "MeanShiftProposalGenerator",
    "MODEL.PROPOSAL_GENERATOR.MASKS_IN_TRAINING",
    True,
    "MODEL.RPE.PROPOSAL_MASK_SIZE",
    14,
)


def sds(*overrides):
    torch.manual_seed(0)
    return build_model(small_cfg(*(overrides or BOXES)))


def proposals_of(boxes, masks=None, size=(64, 96)):
    found = Instances(
        size, proposal_boxes=Boxes(torch.tensor(boxes)), objectness_logits=torch.zeros(len(boxes))
    )
    if masks is not None:
        found.proposal_masks = masks
    return found


def test_refinement_starts_as_the_coarse_mask_of_the_class():
    torch.manual_seed(0)
    refinement = RegionRefinement(6, num_classes=3, coarse_size=10, mask_size=28)
    nn.init.normal_(refinement.coarse.weight)
    x, classes = torch.randn(4, 6), torch.tensor([2, 0, 1, 2])
    coarse, refined = refinement(x, classes, torch.rand(4, 14, 14))
    for row, label in enumerate(classes.tolist()):
        part = slice(label * 100, (label + 1) * 100)
        own = refinement.coarse.weight[part] @ x[row] + refinement.coarse.bias[part]
        torch.testing.assert_close(coarse[row, 0].flatten(), own)
    larger = F.interpolate(coarse, size=(28, 28), mode="bilinear", align_corners=False)
    assert torch.equal(refined, larger)


def test_each_class_combines_in_its_own_way():
    refinement = RegionRefinement(1, num_classes=2, coarse_size=2, mask_size=4)
    refinement.combination.data = torch.tensor([[0.0, 0.0, 3.0], [2.0, 5.0, -1.0]])
    refinement.coarse.weight.data.fill_(1.0)
    region = torch.zeros(2, 4, 4)
    region[:, :2] = 1
    _, refined = refinement(torch.full((2, 1), 0.5), torch.tensor([0, 1]), region)
    assert torch.equal(refined[0], torch.full((1, 4, 4), 3.0))
    # 2 * 0.5 - 1, and 5 more inside the region.
    assert torch.equal(refined[1, 0, :2], torch.full((2, 4), 5.0))
    assert torch.equal(refined[1, 0, 2:], torch.zeros(2, 4))
    # Of a whole box every cell is inside, at any resolution.
    _, whole = refinement(torch.zeros(1, 1), torch.tensor([1]), torch.ones(1, 1, 1))
    assert torch.equal(whole, torch.full((1, 1, 4, 4), 4.0))


def test_masks_stay_where_they_are_while_boxes_move():
    mask = torch.zeros(2, 8, 8)
    mask[1, :, :4] = 1  # the left half
    frame = torch.tensor([[10.0, 20, 26, 36]])
    row = torch.tensor([1])
    assert torch.equal(masks_in_boxes(mask, frame, row, frame), mask[1:])
    # Moved by half a box to the left: nothing, then the left half.
    moved = masks_in_boxes(mask, frame, row, torch.tensor([[2.0, 20, 18, 36]]))
    expected = mask[1].roll(4, dims=1)
    assert torch.equal(moved[0], expected)
    # Twice as wide, from the same corner.
    wide = masks_in_boxes(mask, frame, row, torch.tensor([[10.0, 20, 42, 36]]))[0]
    assert wide[:, :1].min() == 1 and wide[:, 3:].max() == 0
    assert masks_in_boxes(mask, frame[:0], row[:0], frame[:0]).shape == (0, 8, 8)


@pytest.mark.parametrize("overrides", [BOXES, MASKS], ids=["boxes", "masks"])
def test_the_second_pathway_sees_the_region_alone(overrides):
    model = sds(*overrides).eval()
    heads, seen = model.roi_heads, {}
    heads.box_head.register_forward_pre_hook(lambda _, x: seen.setdefault("box", x[0]))
    heads.region_head.register_forward_pre_hook(lambda _, x: seen.setdefault("region", x[0]))
    masks = torch.zeros(2, 14, 14, dtype=torch.uint8)
    masks[0, :, :6] = 255
    masks[1] = 51
    proposals = proposals_of([[4.0, 4, 60, 60], [8, 8, 40, 40]], masks)
    with torch.no_grad():
        features = model.backbone(torch.randn(1, 3, 64, 96))
        heads._forward_box(features, [proposals])
    assert seen["box"][0, :, :, 3:].any()
    if overrides == BOXES:  # masks make no difference
        assert torch.equal(seen["region"], seen["box"])
        return
    assert torch.equal(seen["region"][0, :, :, :3], seen["box"][0, :, :, :3])
    assert not seen["region"][0, :, :, 3:].any()
    torch.testing.assert_close(seen["region"][1], 0.2 * seen["box"][1])


def test_true_boxes_join_as_whole_boxes():
    heads = sds(*MASKS).roi_heads
    truth = square_instances((64, 96), [(4, 4, 30, 30), (30, 10, 60, 50)], [0, 2])
    masks = torch.full((1, 14, 14), 7, dtype=torch.uint8)
    with EventStorage():
        (sampled,) = heads.label_and_sample_proposals(
            [proposals_of([[70.0, 40, 90, 60]], masks)], [truth]
        )
        (alone,) = heads.label_and_sample_proposals(
            [proposals_of(np.zeros((0, 4), np.float32), masks[:0])], [truth]
        )
    assert not truth.has("proposal_masks")
    foreground = sampled.gt_classes < 3
    assert sorted(sampled.gt_classes[foreground].tolist()) == [0, 2]
    assert (sampled.proposal_masks[foreground] == 255).all()
    assert (sampled.proposal_masks[~foreground] == 7).all()
    assert sorted(alone.gt_classes.tolist()) == [0, 2]


@pytest.mark.parametrize("overrides", [BOXES, MASKS], ids=["boxes", "masks"])
def test_losses_reach_everything_and_training_learns(overrides):
    model = sds(*overrides)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    item, history = training_input(), []
    with EventStorage():
        for number in range(25):
            losses = model([item])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            if number == 1:  # in the first step the coarse masks are all but nothing
                own = model.roi_heads.parameters()
                assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own)
            optimizer.step()
            history.append({name: float(loss) for name, loss in losses.items()})
    assert {"loss_cls", "loss_box_reg", "loss_mask_coarse", "loss_mask"} <= set(history[0])
    for name in ("loss_cls", "loss_mask_coarse", "loss_mask"):
        assert np.mean([h[name] for h in history[-5:]]) < 0.8 * history[0][name], name
    model.eval()
    found = model([{"image": item["image"], "height": 128, "width": 192}])[0]["instances"]
    assert 0 < len(found) and found.pred_masks.shape == (len(found), 128, 192)
    assert found.pred_masks.dtype == torch.bool and found.pred_masks.any()
    fields = {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    assert set(found.get_fields()) == fields


@pytest.mark.parametrize("overrides", [BOXES, MASKS], ids=["boxes", "masks"])
def test_given_boxes_get_masks(overrides):
    model = sds(*overrides).eval()
    images = ImageList.from_tensors([torch.randn(3, 64, 96), torch.randn(3, 64, 96)], 32)
    boxes = Boxes(torch.tensor([[4.0, 4, 40, 30], [8, 8, 60, 60]]))
    no_class = torch.zeros(0, dtype=torch.int64)
    given = [
        Instances((64, 96), pred_boxes=boxes, pred_classes=torch.tensor([2, 0])),
        Instances((64, 96), pred_boxes=boxes[:0], pred_classes=no_class),
    ]
    with torch.no_grad():
        features = model.backbone(images.tensor)
        found = model.roi_heads.forward_with_given_boxes(features, given)
    assert [part.pred_masks.shape for part in found] == [(2, 1, 28, 28), (0, 1, 28, 28)]


@pytest.mark.parametrize("overrides", [BOXES, MASKS], ids=["boxes", "masks"])
def test_pictures_without_objects_and_without_proposals(overrides):
    model = sds(*overrides)
    item = training_input()
    item["instances"] = item["instances"][:0]
    with EventStorage():
        losses = model([item])
        assert all(loss.isfinite() for loss in losses.values()) and losses["loss_mask"] == 0
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in model.roi_heads.parameters())
        # Nothing is proposed: nothing to learn from, but no failure either.
        features = model.backbone(torch.randn(1, 3, 64, 96))
        masks = torch.zeros(0, 14, 14, dtype=torch.uint8) if overrides == MASKS else None
        images = ImageList.from_tensors([torch.zeros(3, 64, 96)])
        nothing = proposals_of(np.zeros((0, 4), np.float32), masks)
        _, losses = model.roi_heads(images, features, [nothing], [item["instances"]])
        assert losses["loss_mask"] == 0 and losses["loss_box_reg"] == 0
        model.eval()
        found, _ = model.roi_heads(images, features, [nothing])
    assert len(found[0]) == 0 and found[0].pred_masks.shape == (0, 1, 28, 28)


def test_crowds_are_no_objects():
    cfg = small_cfg(*BOXES, "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.RANDOM_FLIP", "none")
    record = load_shapes("val")[0]
    box = {"bbox": [10.0, 20.0, 60.0, 50.0], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    model = sds()
    for crowds, objects in ((1, 0), (1, 1)):
        annotations = [{**box, "iscrowd": 1}] * crowds + [{**box, "iscrowd": 0}] * objects
        item = PixelLabelMapper(cfg)({**record, "annotations": annotations})
        assert len(item["instances"]) == objects and item["ignore_mask"].any()
        with EventStorage():
            losses = model([item])
        assert all(loss.isfinite() for loss in losses.values())
        assert bool(losses["loss_mask"] > 0) == bool(objects)


def test_without_masks_it_is_a_detector():
    model = sds(*BOXES, "MODEL.MASK_ON", False)
    assert model.roi_heads.refinement is None
    with EventStorage():
        assert "loss_mask" not in model([training_input()])
    found = model.eval()([{"image": training_input()["image"]}])[0]["instances"]
    assert not found.has("pred_masks")


def test_pathways_of_convolutions():
    convolutions = (
        "MODEL.ROI_BOX_HEAD.NUM_CONV", 1, "MODEL.ROI_BOX_HEAD.CONV_DIM", 32,
        "MODEL.ROI_BOX_HEAD.NUM_FC", 0, "MODEL.ROI_BOX_HEAD.NORM", "GN",
    )  # fmt: skip
    model = sds(*BOXES, *convolutions)
    assert model.roi_heads.box_predictor.cls_score.in_features == 2 * 32 * 49
    with EventStorage():
        assert sum(model([training_input()]).values()).isfinite()
    none = sds(*BOXES, *convolutions, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.999).eval()
    found = none([{"image": training_input()["image"]}])[0]["instances"]
    assert len(found) == 0 and found.pred_masks.shape == (0, 64, 96)


def test_masks_need_a_generator_of_masks():
    model = sds(*BOXES, "MODEL.PROPOSAL_GENERATOR.MASKS_IN_TRAINING", True)
    message = "MASKS_IN_TRAINING is True, and MODEL.PROPOSAL_GENERATOR.NAME makes boxes without"
    with EventStorage(), pytest.raises(ValueError, match=message) as error:
        model([training_input()])
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        model.eval()([{"image": training_input()["image"]}])


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("MODEL.SDS.COARSE_SIZE", 0), "MODEL.SDS.COARSE_SIZE is 0; allowed: 1 or more"),
        (("MODEL.SDS.MASK_SIZE", -1), "MODEL.SDS.MASK_SIZE is -1; allowed: 1 or more"),
        (
            ("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True),
            "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES is True; allowed with SDSROIHeads: False",
        ),
    ],
)
def test_a_wrong_key_is_one_line(overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        sds(*BOXES, *overrides)
    assert "\n" not in str(error.value)
