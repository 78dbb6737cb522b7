"""Parts that are built in Python, without a configuration."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from rpe_d2 import add_rpe_config
from rpe_d2.modeling import (
    EmbeddingHead,
    EmbeddingLoss,
    MeanShiftLayer,
    MeanShiftProposalGenerator,
    PixelEmbeddingNet,
    QualityHead,
)
from rpe_d2.modeling.embedding.grouping import (
    ComponentGrouping,
    KMeansGrouping,
    MeanShiftGrouping,
)
from tests.helpers.configs import merge_yaml
from tests.helpers.modules import assert_same_state_dict

# Keys of Detectron2 whose defaults belong to Mask R-CNN with a C4 backbone.
BACKBONE = """
MODEL:
  DEVICE: cpu
  BACKBONE:
    NAME: build_resnet_fpn_backbone
  RESNETS:
    DEPTH: 18
    RES2_OUT_CHANNELS: 64
    OUT_FEATURES: [res2, res3, res4, res5]
  FPN:
    IN_FEATURES: [res2, res3, res4, res5]
    OUT_CHANNELS: 32
"""
SHAPE = {f"p{level}": ShapeSpec(channels=8, stride=2**level) for level in range(2, 7)}
NO_VOTES = "allowed with embedding_head.vote_unit None: False"


def default_cfg(*texts):
    cfg = get_cfg()
    add_rpe_config(cfg)
    return merge_yaml(cfg, BACKBONE, *texts)


def plain_attributes(module):
    """Returns the attributes of a module and its children that are neither modules nor tensors."""
    attributes = {}
    for name, child in module.named_modules():
        for key, value in vars(child).items():
            if key.startswith("_") or isinstance(value, torch.Tensor):
                continue
            if key == "grouping":
                value = {**vars(value), "shift": type(value.shift), "type": type(value)}
            elif callable(value):
                value = type(value)
            attributes[f"{name}.{key}"] = tuple(value) if isinstance(value, list) else value
    return attributes


def assert_same_modules(module, other):
    assert_same_state_dict(module, other)
    assert plain_attributes(module) == plain_attributes(other)
    assert all(torch.equal(*pair) for pair in zip(module.buffers(), other.buffers()))


def test_the_default_network_equals_the_configured_one():
    cfg = default_cfg()
    backbone = build_backbone(cfg)
    configured = PixelEmbeddingNet(cfg)
    configured.backbone = backbone
    assert_same_modules(PixelEmbeddingNet(backbone=backbone, num_classes=80), configured)


def test_the_default_proposal_generator_equals_the_configured_one():
    configured = MeanShiftProposalGenerator(default_cfg(), SHAPE)
    assert_same_modules(MeanShiftProposalGenerator(SHAPE), configured)


def test_default_parts_follow_a_head_without_votes():
    head = EmbeddingHead(SHAPE, 1, vote_unit=None)
    generator = MeanShiftProposalGenerator(embedding_head=head)
    assert not generator.embedding_loss.use_votes and not generator.mean_shift.shift_positions
    configured = MeanShiftProposalGenerator(default_cfg("MODEL: {RPE: {VOTES: False}}"), SHAPE)
    assert generator.embedding_loss.use_votes == configured.embedding_loss.use_votes
    assert generator.mean_shift.shift_positions == configured.mean_shift.shift_positions


def test_the_grouping_moves_pixels_with_the_layer_of_the_model():
    layer, own = MeanShiftLayer(), MeanShiftLayer(bandwidth=0.5)
    generator = MeanShiftProposalGenerator(SHAPE, mean_shift=layer, grouping=MeanShiftGrouping())
    assert generator.grouping.shift is layer
    generator = MeanShiftProposalGenerator(SHAPE, grouping=MeanShiftGrouping(own))
    assert generator.grouping.shift is own
    # It is no submodule of the grouping, so that its parameters have one name.
    learned = MeanShiftProposalGenerator(SHAPE, mean_shift=MeanShiftLayer(learn_bandwidth=True))
    names = [name for name in learned.state_dict() if "bandwidth" in name]
    assert names == ["mean_shift.log_bandwidth"]


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"embedding_loss": EmbeddingLoss()}, f"embedding_loss.use_votes is True; {NO_VOTES}"),
        ({"mean_shift": MeanShiftLayer()}, f"mean_shift.shift_positions is True; {NO_VOTES}"),
        (
            {"mean_shift": MeanShiftLayer(relative_bandwidth=0.2, shift_positions=False)},
            "mean_shift.relative_bandwidth is 0.2; allowed with embedding_head.max_size None: 0",
        ),
        (
            {"embedding_loss": EmbeddingLoss(use_votes=False, sem_seg_stride=3)},
            "embedding_loss.sem_seg_stride is 3; allowed with stride 4: 1, 2, 4",
        ),
    ],
)
def test_parts_that_do_not_fit_the_head_are_refused(parts, message):
    head = EmbeddingHead(SHAPE, 1, vote_unit=None)
    with pytest.raises(ValueError) as error:
        MeanShiftProposalGenerator(embedding_head=head, **parts)
    assert str(error.value) == message


NAN = float("nan")


@pytest.mark.parametrize(
    "build, arguments, message",
    [
        (MeanShiftLayer, {"bandwidth": 0}, "bandwidth is 0; allowed: numbers above 0"),
        (MeanShiftLayer, {"bandwidth": NAN}, "bandwidth is nan; allowed: numbers above 0"),
        (MeanShiftLayer, {"spatial_bandwidth": 0}, "spatial_bandwidth is 0; allowed: numbers"),
        (MeanShiftLayer, {"learn_bandwidth": True, "train_loops": 0}, "train_loops is 0; allowed"),
        (MeanShiftLayer, {"max_keys": 0}, "max_keys is 0; allowed: 1 or more"),
        (EmbeddingLoss, {"margin": NAN}, "margin is nan; allowed: 0 to 1"),
        (EmbeddingLoss, {"form": "cubic"}, "form is 'cubic'; allowed: linear, squared_hinge"),
        (EmbeddingLoss, {"negative_weight": -1}, "negative_weight is -1; allowed: 0 or more"),
        (EmbeddingLoss, {"loss_weights": {"loss_mask": 1}}, "loss_weights is 'loss_mask'; allowed"),
        (EmbeddingLoss, {"loss_weights": {"loss_pair": NAN}}, "loss_weights['loss_pair'] is nan"),
        (MeanShiftGrouping, {"scales": ()}, "scales is (); allowed: one or more factors above 0"),
        (MeanShiftGrouping, {"merge_cosine": 2}, "merge_cosine is 2; allowed: -1 to 1"),
        (KMeansGrouping, {"foreground_threshold": NAN}, "foreground_threshold is nan; allowed"),
        (ComponentGrouping, {"max_groups": 0}, "max_groups is 0; allowed: 1 or more"),
        (QualityHead, {"feature_dim": 0}, "feature_dim is 0; allowed: 1 or more"),
        (MeanShiftProposalGenerator, {}, "input_shape is None; allowed: a dict, or an"),
    ],
)
def test_arguments_out_of_range_are_named(build, arguments, message):
    with pytest.raises(ValueError) as error:
        build(**arguments)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"stride": 3}, "stride is 3; allowed: 1, 2, 4, 8"),
        ({"in_features": ["p9"]}, "in_features names p9; the backbone has p2, p3, p4, p5, p6"),
        ({"vote_unit": NAN}, "vote_unit is nan; allowed: numbers above 0"),
        ({"max_size": 16}, "max_size is 16; allowed: 32.0 or more"),
        ({"embedding_dim": 0}, "embedding_dim is 0; allowed: 1 or more"),
    ],
)
def test_arguments_of_the_head_are_named(arguments, message):
    with pytest.raises(ValueError) as error:
        EmbeddingHead(SHAPE, 3, **arguments)
    assert str(error.value) == message


def test_at_most_five_arguments_are_required():
    """Every argument but these has a default."""
    EmbeddingHead(SHAPE, 3)
    EmbeddingLoss()
    MeanShiftLayer()
    QualityHead(8)
    for grouping in (MeanShiftGrouping, KMeansGrouping, ComponentGrouping):
        grouping()
    with pytest.raises(ValueError, match="num_classes is None; allowed: a number, or an"):
        PixelEmbeddingNet(build_backbone(default_cfg()))
