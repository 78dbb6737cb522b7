"""The semantic heads: what they have in common, panoptic segmentation and errors."""

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.utils.events import EventStorage
from torch import nn

from rpe_d2.modeling import EmbeddingSemSegHead, SPNSemSegHead
from rpe_d2.modeling.embedding.loss import mean_cross_entropy
from rpe_d2.modeling.embedding.semantic_pair_loss import SemanticPairLoss
from tests.helpers.configs import small_cfg_with
from tests.helpers.models import training_input
from tests.helpers.modules import assert_same_state_dict
from tests.helpers.semantic_heads import (
    DECONVNET,
    EMBEDDING,
    FCN,
    FPN,
    HEADS,
    IGNORED,
    MULTI_SCALE,
    RECURRENT,
    pair_loss,
    semantic_input,
    semantic_model,
)
from tests.reference import semantic_heads as slow
from tests.reference.pair_loss import dense_pair_loss

each_head = pytest.mark.parametrize("name", HEADS)


@each_head
def test_losses_reach_every_parameter_and_scores_have_the_size_of_the_image(name):
    model = semantic_model(HEADS[name], pair_loss(0.7))
    losses = model([semantic_input(), semantic_input((64, 48), seed=2)])
    assert {"loss_sem_seg", "loss_sem_seg_pair"} <= set(losses)
    sum(losses.values()).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0
        for p in model.sem_seg_head.parameters()
    )
    model.eval()
    with torch.no_grad():
        scores = model([{**semantic_input((61, 45)), "height": 122, "width": 90}])[0]["sem_seg"]
    assert scores.shape == (4, 122, 90) and scores.isfinite().all()


@each_head
def test_the_pair_loss_is_auxiliary(name):
    """It adds an embedding branch and a loss; scores and the other losses do not change."""
    plain = semantic_model(HEADS[name], pair_loss(0.0))
    with_pair_loss = semantic_model(HEADS[name], pair_loss(2.0))
    missing, unexpected = with_pair_loss.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(parameter.startswith("sem_seg_head.embedding.") for parameter in missing)
    assert bool(missing) == (name != "EmbeddingSemSegHead")
    item = semantic_input()
    torch.manual_seed(1)
    losses = plain([item])
    torch.manual_seed(1)
    more_losses = with_pair_loss([item])
    assert not any("pair" in loss for loss in losses)
    added = {loss for loss in more_losses if loss not in losses}
    assert added and all("pair" in loss for loss in added)
    for loss in losses:
        torch.testing.assert_close(losses[loss], more_losses[loss])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in plain.sem_seg_head.parameters())
    with torch.no_grad():
        expected, scores = (m.eval()([item])[0]["sem_seg"] for m in (plain, with_pair_loss))
        torch.testing.assert_close(expected, scores)


@each_head
def test_ignored_pixels_do_not_enter_the_losses(name):
    model = semantic_model(HEADS[name], pair_loss(1.0)).eval()
    model.sem_seg_head.train()
    for module in model.sem_seg_head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    features = model.backbone((torch.rand(1, 3, 64, 64) - 0.5) * 4)
    targets = semantic_input((64, 64))["sem_seg"][None]
    targets[:, 20:] = IGNORED
    head = model.sem_seg_head
    head.pair_loss.num_points = 64 * 64  # all pixels, so that nothing is random
    _, losses = head(features, targets)
    changed = targets.clone()
    changed[:, 20:40] = 2
    _, changed_losses = head(features, changed)
    for loss in losses:
        assert losses[loss] != changed_losses[loss]
    # Without any labels all losses and gradients are zero.
    _, losses = head(features, torch.full_like(targets, IGNORED))
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in head.parameters())


# The finest features of each head's backbone, which guide the propagation.
GUIDANCE = {
    "EmbeddingSemSegHead": "p2",
    "SemSegFPNHead": "p2",
    "FCNHead": "res3",
    "DeconvNetHead": "fc7",
    "MultiScaleSemSegHead": "image",
    "RecurrentConvSemSegHead": "image",
}


def refined_model(name, text="{}"):
    """Builds a model whose SPNSemSegHead refines a head."""
    spn = f"""
MODEL:
  SEM_SEG_HEAD: {{NAME: SPNSemSegHead}}
  SPN:
    SEM_SEG_HEAD: {name}
    STRIDE: {1 if name == "DeconvNetHead" else 2}
    IN_FEATURES: [{GUIDANCE[name]}]
    CONV_DIM: 32
    CHANNELS: 4
"""
    head = FPN if name == "SemSegFPNHead" else HEADS[name]
    model = semantic_model(head, pair_loss(1.0), spn, text)
    nn.init.normal_(model.sem_seg_head.propagation.project.weight, std=0.1)
    return model


@each_head
@pytest.mark.parametrize("size", [(64, 64), (70, 90), (67, 85)])
def test_spn_refines_every_head(name, size):
    model = refined_model(name)
    losses = model([semantic_input(size)])
    expected = {"loss_sem_seg", "loss_sem_seg_refined", "loss_sem_seg_pair"}
    if name == "RecurrentConvSemSegHead":  # one loss per pass
        expected |= {f"loss_sem_seg_pass{number}" for number in (1, 2, 3)}
    assert set(losses) == expected
    losses["loss_sem_seg_pair"].backward(retain_graph=True)
    for part in (model.sem_seg_head.embedding, model.sem_seg_head.propagation.hidden):
        assert all(p.grad.abs().sum() > 0 for p in part.parameters())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.sem_seg_head.parameters())
    model.eval()
    with torch.no_grad():
        assert model([semantic_input(size)])[0]["sem_seg"].shape == (4, *size)


@pytest.mark.parametrize("name", ["FCNHead", "RecurrentConvSemSegHead", "SemSegFPNHead"])
def test_spn_gradients_are_zero_if_all_pixels_are_ignored(name):
    model = refined_model(name)
    item = semantic_input((64, 64))
    item["sem_seg"][:] = IGNORED
    losses = model([item, item])
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert all(
        p.grad is not None and p.grad.abs().sum() == 0 for p in model.sem_seg_head.parameters()
    )


def test_all_parameters_take_part_without_propagation_units():
    model = refined_model("FCNHead", "MODEL: {SPN: {NUM_UNITS: 0}}")
    losses = model([semantic_input((64, 64))])
    sum(losses.values()).backward()
    head = model.sem_seg_head
    assert all(p.grad is not None for p in head.parameters())
    assert all(p.grad.abs().sum() == 0 for p in head.guidance.parameters())
    assert all(p.grad.abs().sum() > 0 for p in head.propagation.parameters())


def test_cross_entropy_equals_the_slow_reference():
    torch.manual_seed(0)
    scores = torch.randn(3, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 4, (3, 5, 6))
    targets[0, :2], targets[1] = IGNORED, IGNORED
    error = mean_cross_entropy(scores, targets, IGNORED)
    expected = slow.cross_entropy(scores.detach().numpy(), targets.numpy(), IGNORED)
    assert error.item() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: mean_cross_entropy(x, targets, IGNORED), scores)


def test_the_pair_loss_equals_the_slow_reference():
    torch.manual_seed(0)
    options = {"margin": 0.3, "form": "linear", "normalization": "per_term"}
    loss = SemanticPairLoss(
        embedding_dim=3, num_points=1000, ignore_value=IGNORED, loss_weight=2.0,
        positive_weight=1.0, negative_weight=3.0, **options,
    )  # fmt: skip
    embeddings = torch.randn(2, 3, 4, 6)
    targets = torch.randint(0, 3, (2, 4, 6))
    targets[0, 0], targets[1, :, :2] = IGNORED, IGNORED
    value = loss(embeddings, 1, targets)["loss_sem_seg_pair"]
    expected = 0.0
    for maps, labels in zip(embeddings, targets):
        expected += dense_pair_loss(
            maps.flatten(1).T,
            labels.flatten(),
            negative_weight=3.0,
            ignore_label=IGNORED,
            **options,
        )
    assert value.item() == pytest.approx(float(expected), rel=1e-5)


# ---- In a panoptic FPN


def test_panoptic_fpn_with_mean_shift_proposals():
    text = """
MODEL:
  META_ARCHITECTURE: PanopticFPN
  MASK_ON: True
  PROPOSAL_GENERATOR: {NAME: MeanShiftProposalGenerator}
  ROI_HEADS: {NAME: StandardROIHeads, NUM_CLASSES: 3, IN_FEATURES: [p2, p3, p4]}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 32, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD:
    NAME: MaskRCNNConvUpsampleHead
    NUM_CONV: 1
    CONV_DIM: 32
    POOLER_RESOLUTION: 14
  PANOPTIC_FPN: {COMBINE: {INSTANCES_CONFIDENCE_THRESH: 0.0, STUFF_AREA_LIMIT: 1}}
"""
    model = semantic_model(EMBEDDING, text)
    item = training_input()
    item["sem_seg"] = torch.randint(0, 4, item["image"].shape[1:])
    with EventStorage():
        losses = model([item, item])
    assert {"loss_sem_seg", "loss_sem_seg_pair", "loss_rpe_pair", "loss_cls", "loss_mask"} <= set(
        losses
    )
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()
    with torch.no_grad():
        output = model([training_input()])[0]
    assert output["sem_seg"].shape == (4, 64, 96)
    assert output["instances"].pred_masks.shape[1:] == (64, 96)
    segments, infos = output["panoptic_seg"]
    assert segments.shape == (64, 96) and set(segments.unique().tolist()) - {0} == {
        info["id"] for info in infos
    }


# ---- Construction without a configuration


def test_a_directly_constructed_head_equals_the_configured_one():
    text = "MODEL: {SEM_SEG_HEAD: {CONVS_DIM: 128}, RPE: {EMBEDDING_DIM: 16, TRAIN_POINTS: 1024}}"
    configured = semantic_model(EMBEDDING, text).sem_seg_head
    input_shape = build_backbone(small_cfg_with()).output_shape()
    input_shape.pop("p6")
    direct = EmbeddingSemSegHead(input_shape, num_classes=4)
    assert_same_state_dict(direct, configured)
    for name in ("common_stride", "ignore_value", "loss_weight", "has_pair_loss"):
        assert getattr(direct, name) == getattr(configured, name)
    for name in ("embedding_dim", "num_points", "ignore_value", "loss_weight"):
        assert getattr(direct.pair_loss, name) == getattr(configured.pair_loss, name)
    # The configuration states all options of the pair loss, some of which are its defaults.
    options = configured.pair_loss.pair_options
    assert direct.pair_loss.pair_options.items() <= options.items()
    torch.manual_seed(0)
    embeddings, targets = torch.randn(2, 16, 4, 6), torch.randint(0, 3, (2, 4, 6))
    losses = [
        head.pair_loss(embeddings, 1, targets)["loss_sem_seg_pair"] for head in (direct, configured)
    ]
    assert torch.equal(*losses)
    assert EmbeddingSemSegHead(input_shape, num_classes=4, pair_loss_weight=0).pair_loss is None


def test_a_lazy_config_builds_the_heads():
    input_shape = {"p2": ShapeSpec(channels=32, stride=4), "p3": ShapeSpec(channels=32, stride=8)}
    head = L(EmbeddingSemSegHead)(input_shape=input_shape, num_classes=4, pair_loss_weight=0.0)
    config = L(SPNSemSegHead)(input_shape=input_shape, head=head, num_classes=4)
    refined = instantiate(config)
    assert refined.guidance.in_features == ["p3", "p2"]
    assert refined.embedding_head.in_features == ["p2", "p3"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"stride": 3}, "stride is 3; allowed: 1, 2"),
        ({"in_features": ["p9"]}, "in_features names p9; the backbone has p2"),
        ({"pair_loss_weight": -1}, "pair_loss_weight is -1; allowed: 0 or more"),
        ({"loss_weight": -1}, "loss_weight is -1; allowed: 0 or more"),
    ],
)
def test_a_wrong_argument_is_reported_in_one_line(arguments, message):
    input_shape = build_backbone(small_cfg_with()).output_shape()
    with pytest.raises(ValueError, match=message) as error:
        EmbeddingSemSegHead(input_shape, num_classes=4, **arguments)
    assert "\n" not in str(error.value)


# ---- Errors

# A scale at which strides are not integers.
BROKEN_SCALE = """
MODEL:
  BACKBONE: {NAME: build_guided_backbone}
  RESNETS: {OUT_FEATURES: [res3]}
  GUIDED_BACKBONE: {NAME: build_resnet_backbone, SCALES: [1.0, 0.3]}
"""


def head_options(options):
    return f"MODEL: {{SEM_SEG_HEAD: {options}}}"


@pytest.mark.parametrize(
    "texts, message",
    [
        (
            [EMBEDDING, head_options("{PAIR_LOSS_WEIGHT: -2.0}")],
            "MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT is -2.0; allowed: -1 or more",
        ),
        (
            [EMBEDDING, head_options("{COMMON_STRIDE: 3}")],
            "MODEL.SEM_SEG_HEAD.COMMON_STRIDE is 3; allowed: 1, 2",
        ),
        (
            [EMBEDDING, "MODEL: {RPE: {PAIR_LOSS_FORM: cubic}}"],
            "MODEL.RPE.PAIR_LOSS_FORM is 'cubic'; allowed: linear",
        ),
        (
            [EMBEDDING, head_options("{IN_FEATURES: [p9]}")],
            "IN_FEATURES names p9; the backbone has",
        ),
        (
            [FCN, head_options("{IN_FEATURES: [res3, res5]}")],
            "strides 8, 32; allowed with FCNHead: integers, each twice",
        ),
        (
            [FCN, BROKEN_SCALE, head_options("{IN_FEATURES: [res3@0.3]}")],
            "strides 26.6667; allowed with FCNHead: integers",
        ),
        (
            [EMBEDDING, BROKEN_SCALE, head_options("{IN_FEATURES: [res3, res3@0.3]}")],
            "res3, res3@0.3; res3@0.3 has the stride 26.6667, allowed are whole pixels",
        ),
        (
            [DECONVNET, head_options("{IN_FEATURES: [fc7]}")],
            "is fc7; allowed with DeconvNetHead: one map",
        ),
        (
            [DECONVNET, head_options("{IN_FEATURES: [fc7, pool1_indices, pool2_indices]}")],
            "fc7 has the stride 32, pool2_indices 4",
        ),
        (
            [
                MULTI_SCALE,
                "MODEL: {GUIDED_BACKBONE: {SCALES: [1.0, 0.3]}}",
                head_options("{IN_FEATURES: [res2, res2@0.3]}"),
            ],
            "strides 4, 13.3333; allowed with MultiScaleSemSegHead: multiples",
        ),
        (
            [RECURRENT, head_options("{RECURRENT_SCALES: [0.3]}")],
            "RECURRENT_SCALES is .0.3.; allowed",
        ),
        (
            [
                RECURRENT,
                "MODEL: {GUIDED_BACKBONE: {SCALES: [1.0, 0.3]}}",
                head_options("{IN_FEATURES: [image, res3@0.3]}"),
            ],
            "res3@0.3 has the stride 26.6667; allowed with RecurrentConvSemSegHead: int",
        ),
        (
            [RECURRENT, head_options("{NUM_CONVS: -1}")],
            "MODEL.SEM_SEG_HEAD.NUM_CONVS is -1; allowed: 0 to 100",
        ),
    ],
)
def test_a_wrong_key_is_reported_in_one_line(texts, message):
    with pytest.raises(ValueError, match=message) as error:
        semantic_model(*texts)
    assert "\n" not in str(error.value)
