"""SDS: regions, what each pathway sees, and how masks are refined."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from rpe_d2.baselines.sds import RegionRefinement
from rpe_d2.data import PixelLabelMapper, load_shapes
from rpe_d2.modeling.masks import masks_in_boxes
from tests.helpers.baseline_configs import ROI_HEADS, seeded_model
from tests.helpers.configs import small_cfg_with
from tests.helpers.models import square_instances, training_input

with_and_without_masks = pytest.mark.parametrize("system", ["sds", "sds_masks"])
CONVOLUTIONS = """
MODEL:
  ROI_BOX_HEAD: {NUM_CONV: 1, CONV_DIM: 32, NUM_FC: 0, NORM: GN}
"""


def sds(*texts, system="sds"):
    return seeded_model(*ROI_HEADS[system], *texts)


def proposals_of(boxes, masks=None, size=(64, 96)):
    proposals = Instances(
        size, proposal_boxes=Boxes(torch.tensor(boxes)), objectness_logits=torch.zeros(len(boxes))
    )
    if masks is not None:
        proposals.proposal_masks = masks
    return proposals


def test_an_untrained_refinement_returns_the_coarse_mask_of_the_class():
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


def test_each_class_has_its_own_combination():
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
    # Every cell of a whole box is inside the region, at any resolution.
    _, whole = refinement(torch.zeros(1, 1), torch.tensor([1]), torch.ones(1, 1, 1))
    assert torch.equal(whole, torch.full((1, 1, 4, 4), 4.0))


def test_masks_keep_their_position_when_boxes_move():
    mask = torch.zeros(2, 8, 8)
    mask[1, :, :4] = 1  # the left half
    frame = torch.tensor([[10.0, 20, 26, 36]])
    row = torch.tensor([1])
    assert torch.equal(masks_in_boxes(mask, frame, row, frame), mask[1:])
    # The box moves by half its width to the left: the left half of the crop is empty.
    moved = masks_in_boxes(mask, frame, row, torch.tensor([[2.0, 20, 18, 36]]))
    expected = mask[1].roll(4, dims=1)
    assert torch.equal(moved[0], expected)
    # Twice as wide, from the same corner.
    wide = masks_in_boxes(mask, frame, row, torch.tensor([[10.0, 20, 42, 36]]))[0]
    assert wide[:, :1].min() == 1 and wide[:, 3:].max() == 0
    assert masks_in_boxes(mask, frame[:0], row[:0], frame[:0]).shape == (0, 8, 8)


@with_and_without_masks
def test_the_second_pathway_sees_only_the_region(system):
    model = sds(system=system).eval()
    heads, inputs = model.roi_heads, {}
    heads.box_head.register_forward_pre_hook(lambda _, x: inputs.setdefault("box", x[0]))
    heads.region_head.register_forward_pre_hook(lambda _, x: inputs.setdefault("region", x[0]))
    masks = torch.zeros(2, 14, 14, dtype=torch.uint8)
    masks[0, :, :6] = 255
    masks[1] = 51
    proposals = proposals_of([[4.0, 4, 60, 60], [8, 8, 40, 40]], masks)
    with torch.no_grad():
        features = model.backbone(torch.randn(1, 3, 64, 96))
        heads._forward_box(features, [proposals])
    assert inputs["box"][0, :, :, 3:].any()
    if system == "sds":  # the masks of proposals are not used
        assert torch.equal(inputs["region"], inputs["box"])
        return
    assert torch.equal(inputs["region"][0, :, :, :3], inputs["box"][0, :, :, :3])
    assert not inputs["region"][0, :, :, 3:].any()
    torch.testing.assert_close(inputs["region"][1], 0.2 * inputs["box"][1])


def test_ground_truth_joins_the_proposals_as_whole_boxes():
    heads = sds(system="sds_masks").roi_heads
    targets = square_instances((64, 96), [(4, 4, 30, 30), (30, 10, 60, 50)], [0, 2])
    masks = torch.full((1, 14, 14), 7, dtype=torch.uint8)
    with EventStorage():
        (sampled,) = heads.label_and_sample_proposals(
            [proposals_of([[70.0, 40, 90, 60]], masks)], [targets]
        )
        (alone,) = heads.label_and_sample_proposals(
            [proposals_of(np.zeros((0, 4), np.float32), masks[:0])], [targets]
        )
    assert not targets.has("proposal_masks")
    foreground = sampled.gt_classes < 3
    assert sorted(sampled.gt_classes[foreground].tolist()) == [0, 2]
    assert (sampled.proposal_masks[foreground] == 255).all()
    assert (sampled.proposal_masks[~foreground] == 7).all()
    assert sorted(alone.gt_classes.tolist()) == [0, 2]


@with_and_without_masks
def test_images_without_proposals(system):
    model = sds(system=system)
    features = model.backbone(torch.randn(1, 3, 64, 96))
    masks = torch.zeros(0, 14, 14, dtype=torch.uint8) if system == "sds_masks" else None
    images = ImageList.from_tensors([torch.zeros(3, 64, 96)])
    proposals = proposals_of(np.zeros((0, 4), np.float32), masks)
    targets = training_input()["instances"][:0]
    with EventStorage():
        _, losses = model.roi_heads(images, features, [proposals], [targets])
    assert losses["loss_mask"] == 0 and losses["loss_box_reg"] == 0
    found, _ = model.eval().roi_heads(images, features, [proposals])
    assert len(found[0]) == 0 and found[0].pred_masks.shape == (0, 1, 28, 28)


def test_crowds_are_not_objects():
    cfg = small_cfg_with(*ROI_HEADS["sds"], "INPUT: {MIN_SIZE_TRAIN: [64], RANDOM_FLIP: none}")
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
    model = sds("MODEL: {MASK_ON: False}")
    assert model.roi_heads.refinement is None
    with EventStorage():
        assert "loss_mask" not in model([training_input()])
    found = model.eval()([{"image": training_input()["image"]}])[0]["instances"]
    assert not found.has("pred_masks")


def test_pathways_of_convolutions():
    model = sds(CONVOLUTIONS)
    assert model.roi_heads.box_predictor.cls_score.in_features == 2 * 32 * 49
    with EventStorage():
        assert sum(model([training_input()]).values()).isfinite()
    strict = sds(CONVOLUTIONS, "MODEL: {ROI_HEADS: {SCORE_THRESH_TEST: 0.999}}").eval()
    found = strict([{"image": training_input()["image"]}])[0]["instances"]
    assert len(found) == 0 and found.pred_masks.shape == (0, 64, 96)


def test_masks_need_a_generator_of_masks():
    model = sds("MODEL: {PROPOSAL_GENERATOR: {MASKS_IN_TRAINING: True}}")
    message = "MASKS_IN_TRAINING is True, but MODEL.PROPOSAL_GENERATOR.NAME makes boxes without"
    with EventStorage(), pytest.raises(ValueError, match=message) as error:
        model([training_input()])
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        model.eval()([{"image": training_input()["image"]}])


def test_a_wrong_key_is_refused_in_one_line():
    message = "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES is True; allowed with SDSROIHeads: False"
    with pytest.raises(ValueError, match=message) as error:
        sds("MODEL: {ROI_BOX_HEAD: {TRAIN_ON_PRED_BOXES: True}}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("argument, value", [("coarse_size", 0), ("mask_size", -1)])
def test_a_wrong_argument_is_refused_in_one_line(argument, value):
    with pytest.raises(ValueError, match=f"^{argument} is {value}; allowed: 1 or more"):
        RegionRefinement(4, num_classes=2, **{argument: value})
