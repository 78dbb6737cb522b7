"""Multi-task network cascades: gradients of boxes, labels and samples of regions, mask voting."""

import math

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from rpe_d2.baselines import MNCROIHeads
from rpe_d2.baselines.mnc import MNCPrediction, MNCStages, _mask_iou
from rpe_d2.baselines.regions import label_regions, vote_masks
from rpe_d2.modeling.masks import rescale_to_half
from rpe_d2.ops.roi_warp import roi_warp
from tests.helpers.baseline_configs import FPN_SHAPES, MNC, ROI_HEADS, seeded_model
from tests.helpers.models import square_instances, training_input
from tests.reference import mask_voting as reference


def mnc(*texts):
    return seeded_model(MNC, *texts)


def mnc_heads(**arguments):
    return MNCROIHeads(FPN_SHAPES, num_classes=3, in_features=["p2"], fc_dim=16, **arguments)


@pytest.mark.parametrize("copies", [1, 3])
def test_proposals_are_those_of_the_rpn_with_a_gradient(copies):
    plain = mnc("MODEL: {PROPOSAL_GENERATOR: {NAME: RPN}}").proposal_generator
    model = mnc()
    generator = model.proposal_generator
    generator.load_state_dict(plain.state_dict())
    item = training_input()
    images = model.preprocess_image([item] * copies)
    features = model.backbone(images.tensor)
    with EventStorage():
        torch.manual_seed(1)
        expected, expected_losses = plain(images, features, [item["instances"]] * copies)
        torch.manual_seed(1)
        found, losses = generator(images, features, [item["instances"]] * copies)
    assert all(torch.equal(losses[name], expected_losses[name]) for name in losses)
    boxes = found[0].proposal_boxes.tensor
    assert torch.equal(boxes, expected[0].proposal_boxes.tensor)
    assert boxes.requires_grad and not found[0].objectness_logits.requires_grad
    (1e9 * boxes.sum()).backward()
    gradient = generator.rpn_head.anchor_deltas.bias.grad
    # The deltas of each box have a gradient of at most 1 / 512, divided by the number of images.
    most = len(boxes) / (512 * copies)
    assert most / 2 < gradient.unflatten(0, (-1, 4)).sum(dim=0).abs().max() <= 1.001 * most
    assert generator.rpn_head.objectness_logits.bias.grad is None


def test_every_stage_has_losses_and_the_masks_reach_the_proposals():
    model = mnc()
    with EventStorage():
        losses = model([training_input(), training_input((64, 64))])
    names = ("loss_mask", "loss_cls", "loss_seg_cls", "loss_box_reg")
    expected = {*names, *(f"{name}_stage5" for name in names), "loss_rpn_cls", "loss_rpn_loc"}
    assert set(losses) == expected and all(loss.isfinite() for loss in losses.values())
    deltas = model.proposal_generator.rpn_head.anchor_deltas.weight
    for name in names:
        (gradient,) = torch.autograd.grad(losses[name], deltas, retain_graph=True)
        # The target of the box regression is detached, but the features depend on the proposals.
        assert gradient.abs().sum() > 0, name
    last = model.roi_heads.stages.bbox_pred.weight
    (gradient,) = torch.autograd.grad(losses["loss_mask_stage5"], last, retain_graph=True)
    assert gradient.abs().sum() > 0  # through the boxes of the second round
    sum(losses.values()).backward()
    parameters = [*model.roi_heads.parameters(), *model.proposal_generator.parameters()]
    assert all(parameter.grad is not None for parameter in parameters)
    three = mnc("MODEL: {MNC: {NUM_STAGES: 3}}")
    with EventStorage():
        assert set(three([training_input()])) == {*names, "loss_rpn_cls", "loss_rpn_loc"}


def test_gradient_of_the_cascade_with_respect_to_its_boxes():
    torch.manual_seed(0)
    stages = MNCStages(2, resolution=4, mask_size=3, mask_dim=5, fc_dim=4, num_classes=2).double()
    for parameter in stages.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    features = torch.randn(1, 2, 12, 12, dtype=torch.float64)
    boxes = torch.tensor([[2.3, 3.1, 8.9, 9.7], [1.2, 0.8, 6.1, 10.3]], dtype=torch.float64)

    def cascade(boxes):
        rois = torch.cat([boxes.new_zeros(2, 1), boxes], dim=1)
        return tuple(stages(roi_warp(features, rois, 4, 1.0)))

    assert torch.autograd.gradcheck(cascade, boxes.requires_grad_())


def test_labels_and_targets_by_hand():
    targets = square_instances((40, 40), [(0, 0, 20, 20), (22, 20, 30, 40)], [2, 1])
    boxes = torch.tensor([[0.0, 0, 20, 16], [0, 0, 20, 41], [20, 20, 30, 40], [30, 0, 40, 10]])
    label = label_regions(boxes, targets, 3)
    assert label.classes.tolist() == [2, 3, 1, 3]
    assert label.iou.tolist() == pytest.approx([0.8, 400 / 820, 0.8, 0.0])
    masks = label.crop_masks(boxes, 10)
    assert masks.shape == (2, 10, 10) and masks[0].all()
    assert masks[1, :, 2:].all() and not masks[1, :, :2].any()
    # A cell is foreground if the object covers at least 0.4 of it.
    narrow = label_regions(torch.tensor([[0.0, 0, 20, 20]]), targets, 3)
    assert narrow.crop_masks(torch.tensor([[0.0, 0.0, 20.0, 21.6]]), 6)[0].all()
    assert not narrow.crop_masks(torch.tensor([[0.0, 0.0, 20.0, 23.0]]), 6)[0, -1].any()


def test_iou_of_masks():
    one = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 0, 0]], [[1, 1, 1, 0]]]).bool()
    other = torch.tensor([[[0, 1, 1, 0]], [[0, 0, 0, 0]], [[1, 1, 1, 0]]]).bool()
    assert _mask_iou(one, other).tolist() == pytest.approx([1 / 3, 0, 1])


def test_a_mask_has_the_class_of_its_object_from_an_iou_of_half():
    heads = mnc().roi_heads
    targets = square_instances((40, 40), [(0, 0, 28, 28)], [1])
    # Two regions of the object, and background.
    boxes = torch.tensor([[0.0, 0, 28, 28], [0, 0, 28, 28], [30, 30, 40, 40]])
    masks = torch.full((3, 28, 28), -9.0)
    masks[0, :14] = masks[1, :13] = 9.0
    classes = torch.tensor([1, 3, 3])
    prediction = MNCPrediction(
        mask_logits=masks,
        class_logits=torch.zeros(3, 4),
        seg_class_logits=60.0 * torch.nn.functional.one_hot(classes, 4),
        deltas=torch.zeros(3, 12),
    )
    losses = heads._losses(prediction, [boxes], [label_regions(boxes, targets, 3)])
    assert float(losses["loss_seg_cls"]) < 1e-6
    assert float(losses["loss_cls"]) == pytest.approx(math.log(4))
    assert float(losses["loss_box_reg"]) == 0
    # In the two foreground masks, 29 of 56 rows are wrong, each by 9.
    assert float(losses["loss_mask"]) == pytest.approx(9 * 29 / 56, abs=1e-3)


def test_a_fraction_of_the_background_is_easy():
    heads = mnc_heads(batch_size_per_image=100, easy_background=0.25)
    targets = square_instances((400, 400), [(0, 0, 40, 40)], [1])
    near = torch.tensor([[20.0, 0, 60, 40]]).repeat(300, 1)  # IoU 1/3
    far = torch.tensor([[200.0, 200, 240, 240]]).repeat(300, 1)
    exact = torch.tensor([[0.0, 0, 40, 40]]).repeat(300, 1)
    label = label_regions(torch.cat([near, far, exact]), targets, 3)
    index = heads.sample_index(label)
    counts = [((index >= start) & (index < start + 300)).sum() for start in (0, 300, 600)]
    assert counts == [56, 19, 25]  # a quarter is foreground, and a quarter of the rest is far
    only_far = label_regions(far, targets, 3)
    assert len(heads.sample_index(only_far)) == 100
    assert len(heads.sample_index(label_regions(near[:7], targets, 3))) == 7


def test_mask_voting_equals_the_reference():
    rng = np.random.default_rng(0)
    centers = rng.uniform(10, 30, (3, 1, 2)) + rng.normal(0, 1.5, (3, 5, 2))
    sides = rng.uniform(8, 14, (3, 5, 2))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=2).reshape(-1, 4)
    masks, scores = rng.random((15, 6, 6)), rng.random((15, 2))
    selected, classes = [0, 7, 14], [1, 0, 1]

    def vote(masks, iou):
        arrays = (boxes, masks, scores, selected, classes)
        return vote_masks(*(torch.tensor(array) for array in arrays), iou).numpy()

    expected = reference.vote(boxes, masks, scores, selected, classes, 0.5)
    np.testing.assert_allclose(vote(masks, 0.5), expected, atol=1e-9)
    by_class = np.stack([masks, 1 - masks], axis=1)
    voted = vote(by_class, 0.5)
    for number, label in enumerate(classes):
        expected = reference.vote(boxes, by_class[:, label], scores, selected, classes, 0.5)
        np.testing.assert_allclose(voted[number], expected[number], atol=1e-9)
    np.testing.assert_allclose(vote(masks, 1.0), masks[selected], atol=1e-9)


def test_masks_are_cut_at_their_threshold():
    pasted = rescale_to_half(torch.tensor([[[0.0, 0.39, 0.4, 0.41, 1.0]]]), 0.4)[0, 0, 0]
    assert (pasted >= 0.5).tolist() == [False, False, True, True, True]
    assert pasted[0] == 0 and pasted[-1] == 1 and (pasted[1:] > pasted[:-1]).all()


@pytest.mark.parametrize(
    "generator, stages, refused",
    [
        ("MNCRPN", 3, "MODEL.PROPOSAL_GENERATOR.NAME MNCRPN"),
        ("RPN", 5, "MODEL.MNC.NUM_STAGES 5"),
        ("RPN", 3, None),
    ],
)
def test_a_loss_scaler_is_refused_if_gradients_are_clipped(generator, stages, refused):
    model = f"MODEL: {{PROPOSAL_GENERATOR: {{NAME: {generator}}}, MNC: {{NUM_STAGES: {stages}}}}}"
    precision = "SOLVER: {AMP: {ENABLED: True, PRECISION: %s}}"
    mnc(model, precision % "bfloat16")
    if refused is None:
        mnc(model, precision % "float16")
        return
    message = f"SOLVER.AMP.PRECISION is float16, .*{refused}.*; allowed"
    with pytest.raises(ValueError, match=message):
        mnc(model, precision % "float16")


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("NUM_STAGES", 4, "3 or 5"),
        ("RESOLUTION", 7, "even numbers"),
        ("MASK_DIM", 0, "1 to 65536"),
        ("FC_DIM", 0, "1 to 65536"),
    ],
)
def test_a_wrong_key_is_refused_in_one_line(key, value, allowed):
    with pytest.raises(ValueError, match=f"MODEL.MNC.{key} is {value}; allowed: {allowed}"):
        mnc(f"MODEL: {{MNC: {{{key}: {value}}}}}")


@pytest.mark.parametrize(
    "argument, value, allowed",
    [
        ("num_stages", 4, "3, 5"),
        ("resolution", 7, "even numbers"),
        ("easy_background", 1.5, "0 to 1"),
        ("mask_size", 0, "1 or more"),
        ("mask_dim", 0, "1 or more"),
        ("vote_iou", 1.5, "0 to 1"),
        ("mask_threshold", 1.0, "between 0 and 1"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(argument, value, allowed):
    with pytest.raises(ValueError, match=f"^{argument} is {value}; allowed: {allowed}"):
        mnc_heads(**{argument: value})


@pytest.mark.parametrize("system, name", [("mnc", "MNCROIHeads"), ("fcis", "FCISROIHeads")])
@pytest.mark.parametrize(
    "key, value, allowed",
    [("IOU_THRESHOLDS", [0.6], r"\[0.5\]"), ("IOU_LABELS", [1, 0], r"\[0, 1\]")],
)
def test_regions_are_matched_at_an_iou_of_half(system, name, key, value, allowed):
    message = rf"MODEL.ROI_HEADS.{key} is .*; allowed with {name}: {allowed}"
    with pytest.raises(ValueError, match=message):
        seeded_model(*ROI_HEADS[system], f"MODEL: {{ROI_HEADS: {{{key}: {value}}}}}")


def test_boxes_are_regressed_by_class():
    with pytest.raises(ValueError, match="CLS_AGNOSTIC_BBOX_REG is True; allowed with MNCROIHeads"):
        mnc("MODEL: {ROI_BOX_HEAD: {CLS_AGNOSTIC_BBOX_REG: True}}")


@pytest.mark.parametrize("images, steps", [(1, 1), (3, 1), (1, 2)])
def test_the_bound_of_box_gradients_is_divided_by_the_images_of_a_step(images, steps):
    model = mnc(f"SOLVER: {{ACCUMULATE_STEPS: {steps}}}")
    assert model.proposal_generator.accumulate_steps == steps
    deltas = torch.zeros(images, 12, requires_grad=True)
    prediction = MNCPrediction(None, torch.eye(4)[:1].repeat(images, 1), None, deltas)
    boxes = [torch.tensor([[20.0, 20.0, 40.0, 40.0]])] * images
    moved = model.roi_heads._regressed_boxes(prediction, boxes, [(64, 64)] * images)
    (1e9 * torch.cat(moved).sum()).backward()
    largest = deltas.grad.abs().amax(dim=1)
    torch.testing.assert_close(largest, torch.full((images,), 1 / (512 * images * steps)))
