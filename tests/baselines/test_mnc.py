"""Multi-task network cascades: what has gradients, what is a target, who votes."""

import math

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from rpe_d2.baselines.mask_voting import vote_masks
from rpe_d2.baselines.mnc import MNCPrediction, MNCStages, _mask_iou
from rpe_d2.baselines.regions import label_regions
from rpe_d2.modeling.soft_masks import cut_at_half
from rpe_d2.ops.roi_warp import roi_warp
from tests.helpers.models import small_cfg, square_instances, training_input
from tests.reference import mask_voting as reference

MNC = (
    "MODEL.META_ARCHITECTURE",
    "GeneralizedRCNN",
    "MODEL.MASK_ON",
    True,
    "MODEL.PROPOSAL_GENERATOR.NAME",
    "MNCRPN",
    "MODEL.RPN.IN_FEATURES",
    ["p2", "p3", "p4"],
    "MODEL.ANCHOR_GENERATOR.SIZES",
    [[16], [32], [64]],
    "MODEL.RPN.POST_NMS_TOPK_TRAIN",
    40,
    "MODEL.RPN.POST_NMS_TOPK_TEST",
    20,
    "MODEL.ROI_HEADS.NAME",
    "MNCROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES",
    ["p2", "p3", "p4"],
    "MODEL.ROI_HEADS.NUM_CLASSES",
    3,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    32,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    0.0,
    "MODEL.MNC.FC_DIM",
    16,
    "MODEL.MNC.MASK_DIM",
    16,
)


def mnc(*overrides):
    torch.manual_seed(0)
    return build_model(small_cfg(*MNC, *overrides))


@pytest.mark.parametrize("copies", [1, 3])
def test_proposals_are_the_rpns_and_have_gradient(copies):
    plain = mnc("MODEL.PROPOSAL_GENERATOR.NAME", "RPN").proposal_generator
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
    # Each of the kept boxes' deltas passes on at most 1 / 512, divided by the images of the batch.
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
        # The regression's own target moves with the box; it reaches proposals through the features all the same.
        assert gradient.abs().sum() > 0, name
    last = model.roi_heads.stages.bbox_pred.weight
    (gradient,) = torch.autograd.grad(losses["loss_mask_stage5"], last, retain_graph=True)
    assert gradient.abs().sum() > 0  # through the boxes of the second round
    sum(losses.values()).backward()
    own = [*model.roi_heads.parameters(), *model.proposal_generator.parameters()]
    assert all(parameter.grad is not None for parameter in own)
    three = mnc("MODEL.MNC.NUM_STAGES", 3)
    with EventStorage():
        assert set(three([training_input()])) == {*names, "loss_rpn_cls", "loss_rpn_loc"}


def test_gradient_of_the_cascade_in_its_boxes():
    torch.manual_seed(0)
    stages = MNCStages(2, resolution=4, mask_size=3, mask_dim=5, fc_dim=4, num_classes=2).double()
    for parameter in stages.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    features = torch.randn(1, 2, 12, 12, dtype=torch.float64)
    boxes = torch.tensor([[2.3, 3.1, 8.9, 9.7], [1.2, 0.8, 6.1, 10.3]], dtype=torch.float64)

    def cascade(boxes):
        regions = torch.cat([boxes.new_zeros(2, 1), boxes], dim=1)
        return tuple(stages(roi_warp(features, regions, 4, 1.0)))

    assert torch.autograd.gradcheck(cascade, boxes.requires_grad_())


def test_training_learns():
    model = mnc()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    item, history = training_input(), []
    with EventStorage():
        for _ in range(25):
            losses = model([item])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            history.append({name: float(loss) for name, loss in losses.items()})
    for name in ("loss_mask", "loss_seg_cls", "loss_mask_stage5"):
        assert np.mean([h[name] for h in history[-5:]]) < 0.8 * history[0][name], name


def test_what_is_found_is_detectron2s():
    model = mnc().eval()
    image = training_input()["image"]
    found = model([{"image": image, "height": 128, "width": 192}])[0]["instances"]
    assert 0 < len(found) <= 100 and found.image_size == (128, 192)
    assert found.pred_masks.shape == (len(found), 128, 192)
    assert found.pred_masks.dtype == torch.bool
    assert (found.scores[:-1] >= found.scores[1:]).all() and found.pred_classes.max() < 3
    none = mnc("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.999).eval()
    assert len(none([{"image": image}])[0]["instances"]) == 0


def test_given_boxes_get_masks():
    model = mnc().eval()
    images = ImageList.from_tensors([torch.randn(3, 64, 96), torch.randn(3, 64, 96)], 32)
    features = model.backbone(images.tensor)
    given = [
        Instances((64, 96), pred_boxes=Boxes(torch.tensor([[4.0, 4, 40, 30], [8, 8, 60, 60]]))),
        Instances((64, 96), pred_boxes=Boxes(torch.zeros(0, 4))),
    ]
    found = model.roi_heads.forward_with_given_boxes(features, given)
    assert [part.pred_masks.shape for part in found] == [(2, 1, 28, 28), (0, 1, 28, 28)]


def test_pictures_without_objects():
    model = mnc()
    item = training_input()
    item["instances"] = item["instances"][:0]
    with EventStorage():
        losses = model([item])
    assert all(loss.isfinite() for loss in losses.values()) and losses["loss_mask"] == 0
    sum(losses.values()).backward()
    own = [*model.roi_heads.parameters(), *model.proposal_generator.parameters()]
    assert all(parameter.grad is not None for parameter in own)


def test_labels_and_targets_by_hand():
    truth = square_instances((40, 40), [(0, 0, 20, 20), (22, 20, 30, 40)], [2, 1])
    boxes = torch.tensor([[0.0, 0, 20, 16], [0, 0, 20, 41], [20, 20, 30, 40], [30, 0, 40, 10]])
    label = label_regions(boxes, truth, 3)
    assert label.classes.tolist() == [2, 3, 1, 3]
    assert label.iou.tolist() == pytest.approx([0.8, 400 / 820, 0.8, 0.0])
    masks = label.masks_in(boxes, 10)
    assert masks.shape == (2, 10, 10) and masks[0].all()
    assert masks[1, :, 2:].all() and not masks[1, :, :2].any()
    # A cell that is covered by 0.4 is inside, by less it is not.
    narrow = label_regions(torch.tensor([[0.0, 0, 20, 20]]), truth, 3)
    assert narrow.masks_in(torch.tensor([[0.0, 0.0, 20.0, 21.6]]), 6)[0].all()
    assert not narrow.masks_in(torch.tensor([[0.0, 0.0, 20.0, 23.0]]), 6)[0, -1].any()


def test_overlap_of_masks():
    one = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 0, 0]], [[1, 1, 1, 0]]]).bool()
    other = torch.tensor([[[0, 1, 1, 0]], [[0, 0, 0, 0]], [[1, 1, 1, 0]]]).bool()
    assert _mask_iou(one, other).tolist() == pytest.approx([1 / 3, 0, 1])


def test_a_mask_has_its_objects_class_if_it_covers_half_of_it():
    heads = mnc().roi_heads
    truth = square_instances((40, 40), [(0, 0, 28, 28)], [1])
    # Twice the object, and background.
    boxes = torch.tensor([[0.0, 0, 28, 28], [0, 0, 28, 28], [30, 30, 40, 40]])
    masks = torch.full((3, 28, 28), -9.0)
    masks[0, :14] = masks[1, :13] = 9.0
    wanted = torch.tensor([1, 3, 3])
    prediction = MNCPrediction(
        mask_logits=masks,
        class_logits=torch.zeros(3, 4),
        seg_class_logits=60.0 * torch.nn.functional.one_hot(wanted, 4),
        deltas=torch.zeros(3, 12),
    )
    losses = heads._losses(prediction, [boxes], [label_regions(boxes, truth, 3)])
    assert float(losses["loss_seg_cls"]) < 1e-6
    assert float(losses["loss_cls"]) == pytest.approx(math.log(4))
    assert float(losses["loss_box_reg"]) == 0
    # Of the two foreground masks 29 of 56 rows are wrong, each by 9.
    assert float(losses["loss_mask"]) == pytest.approx(9 * 29 / 56, abs=1e-3)


def test_background_comes_in_bands():
    heads = mnc(
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 100, "MODEL.MNC.EASY_BACKGROUND", 0.25
    ).roi_heads
    truth = square_instances((400, 400), [(0, 0, 40, 40)], [1])
    near = torch.tensor([[20.0, 0, 60, 40]]).repeat(300, 1)  # IoU 1/3
    far = torch.tensor([[200.0, 200, 240, 240]]).repeat(300, 1)
    exact = torch.tensor([[0.0, 0, 40, 40]]).repeat(300, 1)
    label = label_regions(torch.cat([near, far, exact]), truth, 3)
    chosen = heads._choose(label)
    counts = [((chosen >= start) & (chosen < start + 300)).sum() for start in (0, 300, 600)]
    assert counts == [56, 19, 25]  # a quarter of what is sampled is foreground, of the rest far
    only_far = label_regions(far, truth, 3)
    assert len(heads._choose(only_far)) == 100
    assert len(heads._choose(label_regions(near[:7], truth, 3))) == 7


def test_voting_is_the_definition():
    rng = np.random.default_rng(0)
    centers = rng.uniform(10, 30, (3, 1, 2)) + rng.normal(0, 1.5, (3, 5, 2))
    sides = rng.uniform(8, 14, (3, 5, 2))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=2).reshape(-1, 4)
    masks, scores = rng.random((15, 6, 6)), rng.random((15, 2))
    chosen, classes = [0, 7, 14], [1, 0, 1]
    expected = reference.vote(boxes, masks, scores, chosen, classes, 0.5)
    found = vote_masks(
        torch.tensor(boxes),
        torch.tensor(masks),
        torch.tensor(scores),
        torch.tensor(chosen),
        torch.tensor(classes),
        0.5,
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)
    by_class = np.stack([masks, 1 - masks], axis=1)
    found = vote_masks(*(torch.tensor(v) for v in (boxes, by_class, scores, chosen, classes)), 0.5)
    for number, label in enumerate(classes):
        expected = reference.vote(boxes, by_class[:, label], scores, chosen, classes, 0.5)
        np.testing.assert_allclose(found[number].numpy(), expected[number], atol=1e-9)
    alone = vote_masks(*(torch.tensor(v) for v in (boxes, masks, scores, chosen, classes)), 1.0)
    np.testing.assert_allclose(alone.numpy(), masks[chosen], atol=1e-9)


def test_masks_are_cut_at_their_threshold():
    pasted = cut_at_half(torch.tensor([[[0.0, 0.39, 0.4, 0.41, 1.0]]]), 0.4)[0, 0, 0]
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
def test_a_loss_scaler_is_refused_where_gradients_are_cut(generator, stages, refused):
    keys = ("MODEL.PROPOSAL_GENERATOR.NAME", generator, "MODEL.MNC.NUM_STAGES", stages)
    half = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION")
    mnc(*keys, *half, "bfloat16")
    if refused is None:
        mnc(*keys, *half, "float16")
        return
    with pytest.raises(
        ValueError, match=f"SOLVER.AMP.PRECISION is float16, .*{refused}.*; allowed"
    ):
        mnc(*keys, *half, "float16")


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("NUM_STAGES", 4, "3 or 5"),
        ("RESOLUTION", 7, "even numbers"),
        ("EASY_BACKGROUND", 1.5, "0 to 1"),
        ("MASK_SIZE", 0, "1 or more"),
        ("MASK_DIM", 0, "1 or more"),
        ("FC_DIM", 0, "1 or more"),
        ("VOTE_IOU", 1.5, "0 to 1"),
        ("MASK_THRESHOLD", 1.0, "between 0 and 1"),
    ],
)
def test_a_wrong_key_is_one_line(key, value, allowed):
    with pytest.raises(ValueError, match=f"MODEL.MNC.{key} is {value}; allowed: {allowed}"):
        mnc(f"MODEL.MNC.{key}", value)


@pytest.mark.parametrize("heads", ["MNCROIHeads", "FCISROIHeads"])
@pytest.mark.parametrize(
    "key, value, allowed",
    [("IOU_THRESHOLDS", [0.6], r"\[0.5\]"), ("IOU_LABELS", [1, 0], r"\[0, 1\]")],
)
def test_regions_are_matched_at_half(heads, key, value, allowed):
    keys = ("MODEL.ROI_HEADS.NAME", heads, "MODEL.ROI_HEADS.IN_FEATURES", ["p2"])
    message = rf"MODEL.ROI_HEADS.{key} is .*; allowed with {heads}: {allowed}"
    with pytest.raises(ValueError, match=message):
        mnc(*keys, f"MODEL.ROI_HEADS.{key}", value)


def test_boxes_are_regressed_by_class():
    with pytest.raises(ValueError, match="CLS_AGNOSTIC_BBOX_REG is True; allowed with MNCROIHeads"):
        mnc("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)


@pytest.mark.parametrize("images, steps", [(1, 1), (3, 1), (1, 2)])
def test_gradients_into_boxes_are_cut_in_shares_of_a_step(images, steps):
    model = mnc("SOLVER.ACCUMULATE_STEPS", steps)
    assert model.proposal_generator.accumulate_steps == steps
    deltas = torch.zeros(images, 12, requires_grad=True)
    prediction = MNCPrediction(None, torch.eye(4)[:1].repeat(images, 1), None, deltas)
    boxes = [torch.tensor([[20.0, 20.0, 40.0, 40.0]])] * images
    moved = model.roi_heads._regressed(prediction, boxes, [(64, 64)] * images)
    (1e9 * torch.cat(moved).sum()).backward()
    largest = deltas.grad.abs().amax(dim=1)
    torch.testing.assert_close(largest, torch.full((images,), 1 / (512 * images * steps)))
