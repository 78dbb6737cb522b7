"""Contour detection with BoundaryEmbeddingNet: targets, losses, inference and errors."""

import math

import numpy as np
import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from rpe_d2.modeling import BoundaryEmbeddingNet, BoundaryHead
from rpe_d2.modeling.boundary_head import BOUNDARY, NON_BOUNDARY, BoundaryMaps, GroupCenters
from rpe_d2.modeling.boundary_loss import (
    BoundaryLoss,
    BoundaryTarget,
    balanced_cross_entropy,
    boundary_target,
    sample_groups,
)
from rpe_d2.ops.boundary_scores import boundary_scores, count_boundary_matches
from rpe_d2.ops.edge_nms import edge_nms
from tests.helpers.boundary_tree import half_and_half
from tests.helpers.configs import small_cfg_with
from tests.helpers.modules import assert_same_state_dict

BOUNDARIES = """
MODEL:
  META_ARCHITECTURE: BoundaryEmbeddingNet
  BACKBONE: {NAME: build_resnet_backbone}
"""
TWO_LEVELS = "MODEL: {RESNETS: {OUT_FEATURES: [res2, res3]}}"
PAIR_LOSS_ALONE = "MODEL: {BOUNDARY: {LOGISTIC_LOSS_WEIGHT: 0.0}}"
LOGISTIC_ALONE = "MODEL: {BOUNDARY: {PAIR_LOSS_WEIGHT: 0.0}}"


def net(*texts):
    torch.manual_seed(0)
    return build_model(small_cfg_with(BOUNDARIES, *texts))


def item(number=0, size=(64, 96)):
    image, annotations = half_and_half(number, size)
    return {
        "image": torch.from_numpy(image.transpose(2, 0, 1).copy()),
        "height": size[0],
        "width": size[1],
        "boundaries": torch.from_numpy(np.stack(annotations)),
    }


# ---- Annotators


def test_consensus_by_hand():
    annotations = torch.tensor([[[1, 1, 0, 0]], [[1, 0, 0, 0]], [[1, 1, 1, 0]]]).bool()

    def weights(consensus, minimum=2):
        target = boundary_target(annotations, consensus, minimum)
        return [part[0].tolist() for part in target]

    share = [1, 2 / 3, 1 / 3, 0]
    assert weights("weighted") == [pytest.approx(share), pytest.approx([1 - s for s in share])]
    assert weights("any") == [[1, 1, 1, 0], [0, 0, 0, 1]]
    assert weights("minimum") == [[1, 1, 0, 0], [0, 0, 0, 1]]
    assert weights("minimum", 3) == weights("minimum", 9) == [[1, 0, 0, 0], [0, 0, 0, 1]]


def test_pixels_are_sampled_by_their_weights():
    torch.manual_seed(0)
    boundary = torch.zeros(50, 60)
    boundary[:, 10], boundary[:, 20] = 1.0, 0.1
    points, labels = sample_groups(BoundaryTarget(boundary, 1 - boundary), 60)
    assert len(points) == 60 and (labels == BOUNDARY).sum() == 30
    weights = boundary.flatten()[points[labels == BOUNDARY]]
    assert (weights > 0).all() and (weights == 1).sum() > 20  # 10 of 11 expected
    assert len(torch.unique(points[labels == BOUNDARY])) == 30
    # Other pixels take the place of missing boundary pixels; ignored pixels are never sampled.
    boundary[:, 11:], boundary[5:] = 0, 0
    others = torch.zeros(50, 60)
    others[:, :30] = 1
    points, labels = sample_groups(BoundaryTarget(boundary, others * (1 - boundary)), 60)
    assert (labels == BOUNDARY).sum() == 5 and len(points) == 60
    assert (points % 60 < 30).all()


# ---- Losses


def test_cross_entropy_is_balanced():
    """Both groups have the weight one half, although one has nine times as many pixels."""
    boundary = torch.zeros(1, 10)
    boundary[0, 0] = 1
    target = BoundaryTarget(boundary, 1 - boundary)
    logits = torch.full((2, 1, 10), 0.7)
    expected = (F.softplus(torch.tensor(-0.7)) + F.softplus(torch.tensor(0.7))) / 2
    assert torch.allclose(balanced_cross_entropy(logits, target), expected)
    none = BoundaryTarget(boundary * 0, 1 - boundary * 0)
    assert torch.allclose(balanced_cross_entropy(logits, none), F.softplus(torch.tensor(0.7)))
    ignored = BoundaryTarget(boundary * 0, boundary * 0)
    assert balanced_cross_entropy(logits, ignored) == 0


def test_pair_loss_of_two_groups_by_hand():
    """Every group has a single embedding: first at right angles, then the same one."""
    loss = BoundaryLoss(small_cfg_with(BOUNDARIES))
    boundary = torch.zeros(8, 8)
    boundary[:, 3] = 1
    target = BoundaryTarget(boundary, 1 - boundary)
    apart = torch.zeros(1, 5, 3, 8, 8)
    apart[:, :, 0] = 1 - boundary
    apart[:, :, 1] = boundary
    centers = GroupCenters(5, 3)
    losses = loss(BoundaryMaps(apart, torch.zeros(1, 5, 8, 8), 1), [target], centers)
    assert losses["loss_pair"].item() == pytest.approx(0, abs=1e-6)
    assert losses["loss_logistic"].item() == pytest.approx(math.log(2))
    # The centers have moved towards the embeddings.
    directions = F.normalize(centers.means, dim=2)
    assert torch.allclose(directions[:, NON_BOUNDARY], torch.tensor([1.0, 0, 0]))
    assert torch.allclose(directions[:, BOUNDARY], torch.tensor([0, 1.0, 0]))
    same = torch.zeros(1, 5, 3, 8, 8)
    same[:, :, 2] = 1
    losses = loss(BoundaryMaps(same, torch.zeros(1, 5, 8, 8), 1), [target], centers)
    # Two of the four pairs of groups are different groups, with similarity 1 and margin 0.5.
    assert losses["loss_pair"].item() == pytest.approx(0.25)


def test_scores_between_centers():
    centers = GroupCenters(1, 3)
    embeddings = F.normalize(
        torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [-1, 0, 0]]), dim=1
    )
    stacked = embeddings.T.view(1, 1, 3, 1, 5)
    assert torch.allclose(centers.scores(stacked), torch.tensor(0.5))
    centers.means[0] = torch.tensor([[0.3, 0, 0], [0, 0.9, 0]])  # only the directions matter
    expected = torch.tensor([0, 1, 0.5, 0.5, 2 / 3])
    assert torch.allclose(centers.scores(stacked)[0, 0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("text", ["{}", PAIR_LOSS_ALONE, LOGISTIC_ALONE])
def test_all_parameters_take_part(text):
    model = net(text)
    losses = model([item(), item(1, (72, 40))])
    names = {"loss_pair", "loss_logistic"}
    names -= {"loss_logistic"} if text == PAIR_LOSS_ALONE else set()
    names -= {"loss_pair"} if text == LOGISTIC_ALONE else set()
    assert set(losses) == names
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        logistic = name.startswith("boundary_head.logistic")
        assert bool(parameter.grad.any()) != (logistic and text == PAIR_LOSS_ALONE), name


def test_weights_scale_their_losses_and_only_training_updates_the_centers():
    model = net()
    torch.manual_seed(0)
    once = model([item()])
    model.boundary_loss.pair_loss_weight, model.boundary_loss.logistic_loss_weight = 2.0, 3.0
    before = model.boundary_head.centers.means.clone()
    torch.manual_seed(0)
    with torch.no_grad():  # as for validation losses
        more = model([item()])
    assert torch.equal(model.boundary_head.centers.means, before) and before.any()
    assert more["loss_pair"].item() == pytest.approx(2 * once["loss_pair"].item(), rel=1e-5)
    assert more["loss_logistic"].item() == pytest.approx(3 * once["loss_logistic"].item(), rel=1e-5)


def test_an_image_without_boundaries():
    model = net()
    empty = {**item(), "boundaries": torch.zeros(2, 64, 96, dtype=torch.bool)}
    losses = model([empty])
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with pytest.raises(ValueError, match="an image has no boundaries to train on"):
        model([{"image": empty["image"]}])


def test_visualization_in_training():
    model = net("VIS_PERIOD: 1")
    with EventStorage() as storage:
        model([item()])
    ((name, picture, _),) = storage._vis_data
    assert "embeddings" in name and picture.shape == (3, 64, 96 * 8)


# ---- Inference


def test_five_levels_are_averaged():
    model = net("MODEL: {BOUNDARY: {EMBEDDING_DIM: 4}}").eval()
    example = item(size=(64, 96))
    with torch.no_grad():
        image = ((example["image"] - model.pixel_mean) / model.pixel_std)[None]
        maps = model.boundary_head(model.backbone(image))
        assert maps.embeddings.shape == (1, 5, 4, 16, 24) and maps.stride == 4
        assert torch.allclose(maps.embeddings.norm(dim=2), torch.ones(1, 5, 16, 24), atol=1e-5)
        # The fifth level fuses the unit vectors of the other four.
        together = model.boundary_head.fusion(maps.embeddings[:, :4].flatten(1, 2))
        assert torch.allclose(maps.embeddings[:, 4], F.normalize(together, dim=1), atol=1e-5)
        by_level = []
        for level in range(5):
            weight = model.boundary_head.logistic.weight[level].view(-1)
            bias = model.boundary_head.logistic.bias[level]
            logits = torch.einsum("dhw,d->hw", maps.embeddings[0, level], weight) + bias
            logits = F.interpolate(
                logits[None, None], scale_factor=4, mode="bilinear", align_corners=False
            )
            by_level.append(logits[0, 0].sigmoid())
        pred = model([example])[0]["boundaries"]
        assert torch.allclose(pred, sum(by_level) / 5, atol=1e-5)
        _, scores = model.predict_levels(example)
        assert torch.allclose(scores, torch.stack(by_level), atol=1e-5)


@pytest.mark.parametrize("text", ["{}", PAIR_LOSS_ALONE], ids=["logistic", "centers"])
def test_several_scales_are_averaged_and_thinned(text):
    model = net(text).eval()
    model.boundary_head.centers.means.normal_()
    # The output has twice the size of the network's input.
    example = {**item(size=(70, 50)), "height": 140, "width": 100}
    single = []
    for scale in (0.5, 1.0, 1.5):
        model.test_scales = (scale,)
        single.append(model([example])[0]["boundaries"])
    model.test_scales = (0.5, 1.0, 1.5)
    pred = model([example])[0]["boundaries"]
    assert pred.shape == (140, 100) and pred.min() >= 0 and pred.max() <= 1
    assert torch.allclose(pred, sum(single) / 3, atol=1e-6)
    assert (single[0] - single[2]).abs().max() > 1e-3
    model.thin = True
    assert torch.equal(model([example])[0]["boundaries"], edge_nms(pred))


@pytest.mark.parametrize("size", [(64, 96), (33, 47), (5, 3), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_any_size(size, stride):
    model = net(TWO_LEVELS, f"MODEL: {{BOUNDARY: {{STRIDE: {stride}}}}}").eval()
    example = {"image": torch.randint(0, 256, (3, *size), dtype=torch.uint8)}
    pred = model([example])[0]["boundaries"]
    assert pred.shape == size and pred.isfinite().all()
    # The prediction does not depend on the rest of the batch.
    other = {"image": torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)}
    assert torch.equal(model([other, example])[1]["boundaries"], pred)


def test_selected_levels():
    model = net("MODEL: {BOUNDARY: {IN_FEATURES: [res3, res2]}}")
    assert model.level_names == ["res3", "res2", "all"]
    assert model([item()])["loss_logistic"].isfinite()


@pytest.mark.parametrize("text", ["MODEL: {BOUNDARY: {CONSENSUS: any}}", PAIR_LOSS_ALONE])
def test_the_net_overfits_one_image(text, monkeypatch):
    """It detects the line between two halves, with or without the logistic stage."""
    # In this small image the tolerance has to be larger to be a few pixels.
    monkeypatch.setattr("rpe_d2.ops.boundary_scores.TOLERANCE", 0.03)
    example = item()
    model = net(TWO_LEVELS, text)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        sum(model([example]).values()).backward()
        optimizer.step()
    # Sets the running statistics to those of the only batch.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model([example])
    pred = model.eval()([example])[0]["boundaries"].double().numpy()
    counts = count_boundary_matches(pred, list(example["boundaries"].numpy()), 9)
    assert boundary_scores(counts[None]).ods.f_measure > 0.9


def test_checkpoints_load_both_ways():
    """Both training stages have the same parameters and buffers, including the centers."""
    first, second = net(PAIR_LOSS_ALONE), net()
    first([item()])
    second.load_state_dict(first.state_dict())
    assert torch.equal(
        second.boundary_head.centers.means, first.boundary_head.centers.means
    ) and bool(first.boundary_head.centers.means.any())


@pytest.mark.parametrize(
    "options, message",
    [
        ("{STRIDE: 3}", "MODEL.BOUNDARY.STRIDE is 3; allowed: 1, 2, 4, 8"),
        (
            "{IN_FEATURES: [p2]}",
            "MODEL.BOUNDARY.IN_FEATURES names p2; the backbone has res2, res3",
        ),
        (
            "{CONSENSUS: all}",
            "MODEL.BOUNDARY.CONSENSUS is 'all'; allowed: weighted, any, minimum",
        ),
        ("{MIN_ANNOTATORS: 0}", "MODEL.BOUNDARY.MIN_ANNOTATORS is 0; allowed: 1 or more"),
        ("{MARGIN: 1.5}", "MODEL.BOUNDARY.MARGIN is 1.5; allowed: 0 to 1"),
        ("{EMBEDDING_DIM: 0}", "EMBEDDING_DIM is 0; allowed: 1 to 4096"),
        ("{TRAIN_POINTS: 1}", "TRAIN_POINTS is 1; allowed: 2 or more"),
        (
            "{TEST_SCALES: []}",
            "MODEL.BOUNDARY.TEST_SCALES is []; allowed: one or more factors above 0",
        ),
        (
            "{PAIR_LOSS_WEIGHT: 0.0, LOGISTIC_LOSS_WEIGHT: 0.0}",
            "LOGISTIC_LOSS_WEIGHT are 0; allowed: at least one",
        ),
    ],
)
def test_a_wrong_key_is_reported_in_one_line(options, message):
    with pytest.raises(ValueError) as error:
        net(TWO_LEVELS, f"MODEL: {{BOUNDARY: {options}}}")
    assert message in str(error.value) and "\n" not in str(error.value)


# ---- Construction without a configuration


def resnet():
    return build_backbone(small_cfg_with(BOUNDARIES))


def test_a_directly_constructed_net_equals_the_configured_one():
    configured, direct = net(), BoundaryEmbeddingNet(backbone=resnet())
    assert_same_state_dict(direct, configured)
    for name in ("use_logistic", "test_scales", "thin", "input_format", "vis_period"):
        assert getattr(direct, name) == getattr(configured, name)
    for name in ("stride", "level_names", "ratios"):
        assert getattr(direct.boundary_head, name) == getattr(configured.boundary_head, name)
    for name in ("consensus", "min_annotators", "num_points", "pair_options"):
        assert getattr(direct.boundary_loss, name) == getattr(configured.boundary_loss, name)
    for name in ("pair_loss_weight", "logistic_loss_weight"):
        assert getattr(direct.boundary_loss, name) == getattr(configured.boundary_loss, name)
    assert torch.equal(direct.pixel_mean, configured.pixel_mean)
    assert torch.equal(direct.pixel_std, configured.pixel_std)
    assert BoundaryEmbeddingNet.dataset_mapper_name == "BoundaryMapper"


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: BoundaryHead(resnet().output_shape(), stride=3), "stride is 3; allowed: 1, 2, 4"),
        (
            lambda: BoundaryHead(resnet().output_shape(), in_features=["p2"]),
            "in_features names p2; the backbone has res2",
        ),
        (lambda: BoundaryLoss(consensus="all"), "consensus is 'all'; allowed: weighted, any"),
        (lambda: BoundaryLoss(margin=1.5), "margin is 1.5; allowed: 0 to 1"),
        (
            lambda: BoundaryLoss(pair_loss_weight=0, logistic_loss_weight=0),
            "logistic_loss_weight are 0; allowed: at least one above 0",
        ),
        (
            lambda: BoundaryEmbeddingNet(backbone=resnet(), test_scales=()),
            r"test_scales is \(\); allowed: one or more factors above 0",
        ),
    ],
)
def test_a_wrong_argument_is_reported_in_one_line(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
