"""Mean-shift proposals under Detectron2's own meta-architectures and ROI heads."""

import math

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from rpe_d2.modeling import MeanShiftProposalGenerator
from tests.helpers.mean_shift_proposals import PROPOSALS_ONLY, SWAP, batch, mask_rcnn_cfg, train
from tests.helpers.models import training_input

CASCADE = (
    "MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True,
)  # fmt: skip


C4 = (
    "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", ["res4"],
    "MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.WIDTH_PER_GROUP", 16,
    "MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["res4"],
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 14, "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 14,
)  # fmt: skip


@pytest.mark.parametrize(
    "overrides",
    [(), ("MODEL.MASK_ON", False), CASCADE, (*CASCADE, "MODEL.MASK_ON", False), C4, PROPOSALS_ONLY],
    ids=["mask", "box", "cascade", "cascade box", "C4", "proposals"],
)
def test_the_swapped_name_trains_and_infers(overrides):
    torch.manual_seed(0)
    model = build_model(mask_rcnn_cfg(*SWAP, *overrides))
    items = batch()
    history = train(model, 20, items)
    totals = [sum(losses.values()) for losses in history]
    # The median, because single steps of such short trainings depend on rounding.
    assert sorted(totals[-5:])[2] < 0.8 * totals[0]
    names = {"loss_rpe_sem_seg", "loss_rpe_pair", "loss_rpe_vote", "loss_rpe_quality"}
    assert names <= set(history[0])
    if overrides == PROPOSALS_ONLY:
        assert names == set(history[0])
    unreached = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None and parameter.requires_grad
    ]
    assert unreached == []
    with torch.no_grad():
        outputs = model.eval()(items)
    if overrides == PROPOSALS_ONLY:
        proposals = outputs[0]["proposals"]
        fields = {"proposal_boxes", "objectness_logits", "proposal_masks"}
        assert set(proposals.get_fields()) == fields
        assert proposals.image_size == (96, 128)
    else:
        assert outputs[0]["instances"].has("pred_masks") == model.roi_heads.mask_on


@pytest.mark.parametrize("masks", [False, True])
def test_training_proposals_have_the_fields_that_roi_heads_expect(masks):
    wanted = (
        "MODEL.PROPOSAL_GENERATOR.MASKS_IN_TRAINING",
        masks,
        "MODEL.RPE.PROPOSAL_MASK_SIZE",
        9,
    )
    model = build_model(mask_rcnn_cfg(*SWAP, *wanted)).train()
    items = batch()
    images = model.preprocess_image(items)
    truth = [item["instances"] for item in items]
    with EventStorage():
        proposals, _ = model.proposal_generator(images, model.backbone(images.tensor), truth)
    assert len(proposals) == len(items)
    fields = {"proposal_boxes", "objectness_logits"}
    for each, item in zip(proposals, items):
        assert set(each.get_fields()) == (fields | {"proposal_masks"} if masks else fields)
        if masks:
            assert each.proposal_masks.shape == (len(each), 9, 9)
            assert each.proposal_masks.dtype == torch.uint8
        assert each.image_size == tuple(item["image"].shape[1:])
        assert not each.proposal_boxes.tensor.requires_grad
        assert not each.objectness_logits.requires_grad


def test_checkpoints_load_both_ways(tmp_path):
    """Between the meta-architectures, and everything but the generator between it and the RPN."""
    torch.manual_seed(0)
    whole, alone = (build_model(mask_rcnn_cfg(*SWAP, *more)) for more in ((), PROPOSALS_ONLY))
    rpn = build_model(mask_rcnn_cfg())

    def missing(source, target):
        """Parts of the target that the source's checkpoint left as they were."""
        DetectionCheckpointer(source, str(tmp_path)).save("weights")
        before = {name: value.clone() for name, value in target.named_parameters()}
        DetectionCheckpointer(target).load(str(tmp_path / "weights.pth"))
        same = [
            name for name, value in target.named_parameters() if torch.equal(value, before[name])
        ]
        target.load_state_dict(before, strict=False)
        random = [name for name in same if before[name].dim() > 1]  # others start alike
        return {name.split(".")[0] for name in random}

    assert missing(whole, alone) == set()
    assert missing(alone, whole) == {"roi_heads"}
    assert missing(rpn, whole) == {"proposal_generator"}
    assert missing(whole, rpn) == {"proposal_generator"}


def background_everywhere(model):
    """Biases that leave no foreground at all."""
    with torch.no_grad():
        last = model.proposal_generator.embedding_head.classifier[-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([-20.0, 20.0]))


def test_no_cluster_at_all_leaves_the_roi_heads_something_to_learn():
    torch.manual_seed(0)
    model = build_model(mask_rcnn_cfg(*SWAP)).train()
    background_everywhere(model)
    items = batch()
    with EventStorage():
        losses = model(items)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_cls"] > 0 and losses["loss_mask"] > 0  # from the ground-truth boxes
    sum(losses.values()).backward()
    quality = model.proposal_generator.quality_head
    assert all(parameter.grad is not None for parameter in quality.parameters())
    with torch.no_grad():
        outputs = model.eval()(items)
    assert all(len(output["instances"]) == 0 for output in outputs)


def test_images_without_objects_train():
    torch.manual_seed(0)
    model = build_model(mask_rcnn_cfg(*SWAP)).train()
    empty = training_input((96, 128), (), ())
    for items in ([empty, batch()[0]], [empty]):
        model.zero_grad()
        with EventStorage():
            losses = model(items)
        assert all(torch.isfinite(loss) for loss in losses.values())
        sum(losses.values()).backward()
        # All take part, as distributed training demands.
        generator = model.proposal_generator
        assert all(parameter.grad is not None for parameter in generator.parameters())
    background_everywhere(model)
    with EventStorage():
        losses = model([empty])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_a_crowd_is_background_and_alone_in_a_picture_it_trains():
    """No R-CNN gets the mapper's crowds: losses equal those of an image without the crowd."""
    torch.manual_seed(0)
    model = build_model(mask_rcnn_cfg(*SWAP, *PROPOSALS_ONLY)).train()
    crowd = torch.zeros(96, 128, dtype=torch.bool)
    crowd[:, 100:] = True
    for item in (batch()[0], training_input((96, 128), (), ())):
        found = []
        for items in ([item], [{**item, "ignore_mask": crowd}]):
            torch.manual_seed(1)
            with EventStorage():
                found.append({name: float(loss) for name, loss in model(items).items()})
        assert found[0] == found[1] and all(math.isfinite(loss) for loss in found[0].values())


def test_boxes_stand_in_for_missing_masks():
    items = batch()
    for item in items:
        item["instances"].remove("gt_masks")
    model = build_model(mask_rcnn_cfg(*SWAP, "MODEL.MASK_ON", False))
    history = train(model, 1, items)
    assert all(torch.isfinite(torch.tensor(list(history[0].values()))))


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("STRIDE", 3, "1, 2, 4, 8"),
        ("NMS_THRESH", 1.5, "0 to 1"),
        ("NUM_LEVELS", 0, "1 to 10"),
        ("MAX_KEYS", 0, "1 or more"),
        ("SCALES", [], "factors above 0"),
        ("POST_NMS_TOPK_TEST", 0, "1 or more"),
    ],
)
def test_values_out_of_range_are_named(key, value, allowed):
    with pytest.raises(ValueError) as error:
        build_model(mask_rcnn_cfg(*SWAP, f"MODEL.RPE.PROPOSALS.{key}", value))
    message = str(error.value)
    assert f"MODEL.RPE.PROPOSALS.{key} is {value!r}" in message
    assert allowed in message and "\n" not in message


@pytest.mark.parametrize(
    "argument, value, allowed",
    [("nms_type", "soft", "mask, box"), ("tip_threshold", 0.0, "1e-06 to 1")],
)
def test_arguments_out_of_range_are_named(argument, value, allowed):
    shape = build_model(mask_rcnn_cfg()).backbone.output_shape()
    with pytest.raises(ValueError, match=f"{argument} is .*; allowed: {allowed}"):
        MeanShiftProposalGenerator(input_shape=shape, **{argument: value})


def test_kmeans_is_refused():
    with pytest.raises(ValueError, match="MODEL.RPE.GROUPING is 'kmeans'"):
        build_model(mask_rcnn_cfg(*SWAP, "MODEL.RPE.GROUPING", "kmeans"))


def test_autocast_changes_the_losses_by_rounding_only():
    torch.manual_seed(0)
    model = build_model(mask_rcnn_cfg(*SWAP, *PROPOSALS_ONLY)).train()
    items = batch()
    found = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with EventStorage(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(model(items))
    for name, loss in found[0].items():
        assert found[1][name].dtype == torch.float32
        assert float(found[1][name]) == pytest.approx(float(loss), rel=0.15, abs=0.02), name
