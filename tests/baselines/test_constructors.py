"""Constructors equal the default keys, and check their arguments."""

from math import nan

import pytest
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from torch import nn

from rpe_d2 import add_rpe_config
from rpe_d2.baselines import (
    MNCRPN,
    VGG16,
    DeconvNetHead,
    DeepMask,
    FCISROIHeads,
    FCNHead,
    HypercolumnMaskHead,
    InstanceFCN,
    MNCROIHeads,
    MultiScaleSemSegHead,
    RecurrentConvSemSegHead,
    SDSROIHeads,
    SharpMask,
)
from rpe_d2.baselines.windows import WindowTolerances
from rpe_d2.modeling.boundary_loss import BoundaryLoss
from rpe_d2.modeling.embedding.grouping import MeanShiftGrouping
from rpe_d2.modeling.embedding.head import EmbeddingHead
from rpe_d2.modeling.embedding.mean_shift_layer import MeanShiftLayer
from rpe_d2.modeling.embedding.semantic_pair_loss import SemanticPairLoss
from rpe_d2.modeling.spn import GuidanceNetwork
from tests.helpers.configs import merge_yaml
from tests.helpers.modules import assert_same_state_dict

RESNET = {
    name: ShapeSpec(channels=4, stride=stride)
    for name, stride in (("stem", 2), ("res2", 4), ("res3", 8), ("res4", 16))
}
LEVEL = {"p3": ShapeSpec(channels=4, stride=8)}
IMAGE = {"image": ShapeSpec(channels=3, stride=1)}
POOLINGS = {
    "pool1": ShapeSpec(channels=32, stride=2),
    "pool1_indices": ShapeSpec(channels=32, stride=2),
}


def default_cfg(*texts):
    cfg = get_cfg()
    add_rpe_config(cfg)
    return merge_yaml(cfg, *texts)


def assert_same_module(direct: nn.Module, configured: nn.Module) -> None:
    """Checks that modules have the same parameter names and plain attributes, at all depths."""
    assert_same_state_dict(direct, configured)
    names = [name for name, _ in configured.named_modules()]
    assert [name for name, _ in direct.named_modules()] == names
    for module, other in zip(direct.modules(), configured.modules()):
        assert type(module) is type(other)
        assert plain_attributes(module) == plain_attributes(other)


def plain_attributes(module: nn.Module) -> dict:
    """Returns the attributes that are numbers, strings or collections of them."""
    attributes = {}
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if isinstance(value, tuple):
            value = list(value)
        elements = value if isinstance(value, list) else [value]
        elements = value.values() if isinstance(value, dict) else elements
        plain = (int, float, str, list, tuple, type(None), WindowTolerances)
        if all(isinstance(element, plain) for element in elements):
            attributes[name] = value
    return attributes


@pytest.mark.parametrize(
    "kind, input_shape",
    [(DeepMask, RESNET), (SharpMask, RESNET), (InstanceFCN, LEVEL)],
)
def test_proposal_generators(kind, input_shape):
    assert_same_module(kind(input_shape), kind(default_cfg(), input_shape))


@pytest.mark.parametrize("kind", [MNCROIHeads, FCISROIHeads])
def test_region_heads(kind):
    direct, configured = kind(RESNET, num_classes=80), kind(default_cfg(), RESNET)
    assert_same_module(direct, configured)
    assert direct.box2box_transform.weights == configured.box2box_transform.weights
    assert direct.proposal_matcher.thresholds == configured.proposal_matcher.thresholds


def test_mnc_rpn():
    configured = MNCRPN(default_cfg(), RESNET)
    anchors = DefaultAnchorGenerator(
        sizes=[[32, 64, 128, 256, 512]], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[16], offset=0.0
    )
    head = StandardRPNHead(in_channels=4, num_anchors=15)
    direct = MNCRPN(in_features=["res4"], head=head, anchor_generator=anchors)
    assert_same_module(direct, configured)
    assert direct.box2box_transform.weights == configured.box2box_transform.weights
    matchers = direct.anchor_matcher, configured.anchor_matcher
    for name in ("thresholds", "labels", "allow_low_quality_matches"):
        assert getattr(matchers[0], name) == getattr(matchers[1], name)


def test_sds():
    cfg = default_cfg(
        "MODEL: {MASK_ON: True, ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 8}}"
    )
    box_head, region_head = (
        FastRCNNConvFCHead(ShapeSpec(channels=4, height=14, width=14), conv_dims=[], fc_dims=[8])
        for _ in range(2)
    )
    direct = SDSROIHeads(
        num_classes=80,
        box_in_features=["res4"],
        box_pooler=ROIPooler(14, scales=[1 / 16], sampling_ratio=0, pooler_type="ROIAlignV2"),
        box_head=box_head,
        region_head=region_head,
    )
    configured = SDSROIHeads(cfg, RESNET)
    configured.box_predictor.loss_weight["loss_cls"] = 1.0  # what is used without this key
    assert_same_module(direct, configured)


def test_hypercolumn():
    cfg = default_cfg("MODEL: {ROI_MASK_HEAD: {POOLER_TYPE: ''}}")
    assert_same_module(HypercolumnMaskHead(LEVEL, num_classes=80), HypercolumnMaskHead(cfg, LEVEL))


def test_vgg16():
    cfg = default_cfg("MODEL: {BACKBONE: {NAME: build_vgg16_backbone, FREEZE_AT: 0}}")
    direct, configured = VGG16(), build_backbone(cfg)
    assert_same_module(direct, configured)
    assert direct.output_shape() == configured.output_shape()
    assert direct.dropout.p == configured.dropout.p == 0.5


@pytest.mark.parametrize(
    "kind, input_shape",
    [
        (FCNHead, LEVEL),
        (DeconvNetHead, POOLINGS),
        (MultiScaleSemSegHead, LEVEL),
        (RecurrentConvSemSegHead, IMAGE),
    ],
)
def test_semantic_heads(kind, input_shape):
    cfg = default_cfg("MODEL: {SEM_SEG_HEAD: {IN_FEATURES: []}}")
    assert_same_module(kind(input_shape, num_classes=54), kind(cfg, input_shape))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: FCISROIHeads(RESNET, num_classes=2, nms_threshold=nan), "nms_threshold is nan"),
        (lambda: MNCROIHeads(RESNET, num_classes=2, positive_fraction=-1), "positive_fraction is"),
        (lambda: MNCROIHeads(RESNET, num_classes=2, score_threshold=nan), "score_threshold is nan"),
        (lambda: MNCROIHeads(RESNET, num_classes=2, batch_size_per_image=0), "batch_size_per_imag"),
        (lambda: FCISROIHeads(RESNET, num_classes=2, detections_per_image=0), "detections_per_im"),
        (lambda: DeepMask(RESNET, min_box_size=-1.0), "min_box_size is -1.0"),
        (lambda: InstanceFCN(LEVEL, min_box_size=nan), "min_box_size is nan"),
        (lambda: DeconvNetHead(POOLINGS, num_classes=2, norm="Bn"), "norm is 'Bn'"),
        (lambda: MultiScaleSemSegHead(LEVEL, num_classes=2, norm="XX"), "norm is 'XX'"),
        (lambda: GuidanceNetwork(LEVEL, out_channels=0), "out_channels is 0"),
        (lambda: BoundaryLoss(positive_weight=nan), "positive_weight is nan"),
        (lambda: BoundaryLoss(negative_weight=-1.0), "negative_weight is -1.0"),
        (lambda: pair_loss(embedding_dim=0), "embedding_dim is 0"),
        (lambda: pair_loss(num_points=0), "num_points is 0"),
        (lambda: pair_loss(loss_weight=nan), "loss_weight is nan"),
        (lambda: EmbeddingHead(LEVEL, 2, norm="XX"), "norm is 'XX'"),
        (lambda: MeanShiftLayer(bandwidth=0), "bandwidth is 0"),
        (lambda: MeanShiftGrouping(foreground="x"), "foreground is 'x'"),
    ],
)
def test_arguments_that_cannot_work_are_one_line(build, message):
    with pytest.raises(ValueError, match=f"^{message}.*; allowed: ") as caught:
        build()
    assert "\n" not in str(caught.value)


def pair_loss(**changes):
    good = {"embedding_dim": 8, "num_points": 16, "ignore_value": 255, "loss_weight": 1.0}
    return SemanticPairLoss(**{**good, **changes})
