"""Losses, the five outputs, several scales, sizes, checkpoints and keys of BoundaryEmbeddingNet."""

import math

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from rpe_d2.modeling.boundary_head import BOUNDARY, NO_BOUNDARY, BoundaryMaps, GroupCenters
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
from tests.helpers.models import plain_backbone, small_cfg

RES = ("res2", "res3", "res4", "res5")
BOUNDARIES = ("MODEL.META_ARCHITECTURE", "BoundaryEmbeddingNet")
PAIR_LOSS_ALONE = ("MODEL.BOUNDARY.LOGISTIC_LOSS_WEIGHT", 0.0)
LOGISTIC_ALONE = ("MODEL.BOUNDARY.PAIR_LOSS_WEIGHT", 0.0)


def net(*overrides, features=RES):
    torch.manual_seed(0)
    return build_model(small_cfg(*plain_backbone(*features), *BOUNDARIES, *overrides))


def item(number=0, size=(64, 96)):
    picture, annotations = half_and_half(number, size)
    return {
        "image": torch.from_numpy(picture.transpose(2, 0, 1).copy()),
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


def test_pixels_are_drawn_by_their_weights():
    torch.manual_seed(0)
    boundary = torch.zeros(50, 60)
    boundary[:, 10], boundary[:, 20] = 1.0, 0.1
    points, labels = sample_groups(BoundaryTarget(boundary, 1 - boundary), 60)
    assert len(points) == 60 and (labels == BOUNDARY).sum() == 30
    drawn = boundary.flatten()[points[labels == BOUNDARY]]
    assert (drawn > 0).all() and (drawn == 1).sum() > 20  # 10 of 11 expected
    assert len(torch.unique(points[labels == BOUNDARY])) == 30
    # Few boundaries leave room for others; ignored pixels are never drawn.
    boundary[:, 11:], boundary[5:] = 0, 0
    others = torch.zeros(50, 60)
    others[:, :30] = 1
    points, labels = sample_groups(BoundaryTarget(boundary, others * (1 - boundary)), 60)
    assert (labels == BOUNDARY).sum() == 5 and len(points) == 60
    assert (points % 60 < 30).all()


# ---- Losses


def test_cross_entropy_is_balanced():
    """Nine pixels to one: both kinds weigh a half."""
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
    """Groups of one direction each: the loss is 0 when they are at right angles, and in closed form when equal."""
    loss = BoundaryLoss(small_cfg(*BOUNDARIES))
    boundary = torch.zeros(8, 8)
    boundary[:, 3] = 1
    target = BoundaryTarget(boundary, 1 - boundary)
    apart = torch.zeros(1, 5, 3, 8, 8)
    apart[:, :, 0] = 1 - boundary
    apart[:, :, 1] = boundary
    centers = GroupCenters(5, 3)
    found = loss(BoundaryMaps(apart, torch.zeros(1, 5, 8, 8), 1), [target], centers)
    assert found["loss_pair"].item() == pytest.approx(0, abs=1e-6)
    assert found["loss_logistic"].item() == pytest.approx(math.log(2))
    # The centres have begun to follow.
    directions = F.normalize(centers.means, dim=2)
    assert torch.allclose(directions[:, NO_BOUNDARY], torch.tensor([1.0, 0, 0]))
    assert torch.allclose(directions[:, BOUNDARY], torch.tensor([0, 1.0, 0]))
    same = torch.zeros(1, 5, 3, 8, 8)
    same[:, :, 2] = 1
    found = loss(BoundaryMaps(same, torch.zeros(1, 5, 8, 8), 1), [target], centers)
    # Of four pairs of groups two are of different ones, with similarity 1 and margin 0.5.
    assert found["loss_pair"].item() == pytest.approx(0.25)


def test_scores_between_centers():
    centers = GroupCenters(1, 3)
    embeddings = F.normalize(
        torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [-1, 0, 0]]), dim=1
    )
    stacked = embeddings.T.view(1, 1, 3, 1, 5)
    assert torch.allclose(centers.scores(stacked), torch.tensor(0.5))
    centers.means[0] = torch.tensor([[0.3, 0, 0], [0, 0.9, 0]])  # only the direction counts
    expected = torch.tensor([0, 1, 0.5, 0.5, 2 / 3])
    assert torch.allclose(centers.scores(stacked)[0, 0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("overrides", [(), PAIR_LOSS_ALONE, LOGISTIC_ALONE])
def test_losses_reach_all_parameters(overrides):
    model = net(*overrides)
    losses = model([item(), item(1, (72, 40))])
    names = {"loss_pair", "loss_logistic"}
    names -= {"loss_logistic"} if overrides == PAIR_LOSS_ALONE else set()
    names -= {"loss_pair"} if overrides == LOGISTIC_ALONE else set()
    assert set(losses) == names
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        logistic = name.startswith("boundary_head.logistic")
        assert bool(parameter.grad.any()) != (logistic and overrides == PAIR_LOSS_ALONE), name


def test_weights_scale_their_losses_and_centers_follow_training_alone():
    model = net()
    torch.manual_seed(0)
    once = model([item()])
    model.boundary_loss.pair_loss_weight, model.boundary_loss.logistic_loss_weight = 2.0, 3.0
    before = model.boundary_head.centers.means.clone()
    torch.manual_seed(0)
    with torch.no_grad():  # as validation losses are computed
        more = model([item()])
    assert torch.equal(model.boundary_head.centers.means, before) and before.any()
    assert more["loss_pair"].item() == pytest.approx(2 * once["loss_pair"].item(), rel=1e-5)
    assert more["loss_logistic"].item() == pytest.approx(3 * once["loss_logistic"].item(), rel=1e-5)


def test_a_picture_without_boundaries():
    model = net()
    empty = {**item(), "boundaries": torch.zeros(2, 64, 96, dtype=torch.bool)}
    losses = model([empty])
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with pytest.raises(ValueError, match="an image has no boundaries to train on"):
        model([{"image": empty["image"]}])


def test_training_pictures():
    model = net("VIS_PERIOD", 1)
    with EventStorage() as storage:
        model([item()])
    ((name, picture, _),) = storage._vis_data
    assert "embeddings" in name and picture.shape == (3, 64, 96 * 8)


# ---- Inference


def test_five_outputs_are_averaged():
    model = net("MODEL.BOUNDARY.EMBEDDING_DIM", 4).eval()
    example = item(size=(64, 96))
    with torch.no_grad():
        image = ((example["image"] - model.pixel_mean) / model.pixel_std)[None]
        maps = model.boundary_head(model.backbone(image))
        assert maps.embeddings.shape == (1, 5, 4, 16, 24) and maps.stride == 4
        assert torch.allclose(maps.embeddings.norm(dim=2), torch.ones(1, 5, 16, 24), atol=1e-5)
        # The fifth is made of the unit vectors of the other four.
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
        found = model([example])[0]["boundaries"]
        assert torch.allclose(found, sum(by_level) / 5, atol=1e-5)
        _, scores = model.predict_levels(example)
        assert torch.allclose(scores, torch.stack(by_level), atol=1e-5)


@pytest.mark.parametrize("overrides", [(), PAIR_LOSS_ALONE], ids=["logistic", "centers"])
def test_several_scales_are_averaged_and_thinned(overrides):
    model = net(*overrides).eval()
    model.boundary_head.centers.means.normal_()
    # Of its own size and of twice that, as the data set's picture has.
    example = {**item(size=(70, 50)), "height": 140, "width": 100}
    single = []
    for scale in (0.5, 1.0, 1.5):
        model.test_scales = (scale,)
        single.append(model([example])[0]["boundaries"])
    model.test_scales = (0.5, 1.0, 1.5)
    found = model([example])[0]["boundaries"]
    assert found.shape == (140, 100) and found.min() >= 0 and found.max() <= 1
    assert torch.allclose(found, sum(single) / 3, atol=1e-6)
    assert (single[0] - single[2]).abs().max() > 1e-3
    model.thin = True
    assert torch.equal(model([example])[0]["boundaries"], edge_nms(found))


@pytest.mark.parametrize("size", [(64, 96), (33, 47), (5, 3), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_any_size(size, stride):
    model = net("MODEL.BOUNDARY.STRIDE", stride, features=("res2", "res3")).eval()
    example = {"image": torch.randint(0, 256, (3, *size), dtype=torch.uint8)}
    found = model([example])[0]["boundaries"]
    assert found.shape == size and found.isfinite().all()
    # The same in a batch as alone.
    other = {"image": torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)}
    assert torch.equal(model([other, example])[1]["boundaries"], found)


def test_levels_that_are_chosen():
    model = net("MODEL.BOUNDARY.IN_FEATURES", ["res3", "res2"])
    assert model.boundary_head.level_names == ["res3", "res2", "all"]
    assert model([item()])["loss_logistic"].isfinite()


def test_one_picture_is_learned(monkeypatch):
    """The line between two halves is found, by the logistic stage and by the embeddings alone."""
    # A small picture gets a real one's tolerance, a few pixels.
    monkeypatch.setattr("rpe_d2.ops.boundary_scores.TOLERANCE", 0.03)
    example = item()
    for overrides in (("MODEL.BOUNDARY.CONSENSUS", "any"), PAIR_LOSS_ALONE):
        model = net(*overrides, features=("res2", "res3"))
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(25):
            optimizer.zero_grad()
            sum(model([example]).values()).backward()
            optimizer.step()
        # Statistics of the one batch there is.
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            model([example])
        found = model.eval()([example])[0]["boundaries"].double().numpy()
        counts = count_boundary_matches(found, list(example["boundaries"].numpy()), 9)
        assert boundary_scores(counts[None]).ods.f_measure > 0.9, overrides


def test_checkpoints_load_both_ways():
    """Both stages have the same parameters, and the centres are among them."""
    first, second = net(*PAIR_LOSS_ALONE), net()
    first([item()])
    second.load_state_dict(first.state_dict())
    assert torch.equal(
        second.boundary_head.centers.means, first.boundary_head.centers.means
    ) and bool(first.boundary_head.centers.means.any())


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("MODEL.BOUNDARY.STRIDE", 3), "MODEL.BOUNDARY.STRIDE is 3; allowed: 1, 2, 4, 8"),
        (
            ("MODEL.BOUNDARY.IN_FEATURES", ["p2"]),
            "MODEL.BOUNDARY.IN_FEATURES names p2; the backbone has res2, res3",
        ),
        (
            ("MODEL.BOUNDARY.CONSENSUS", "all"),
            "MODEL.BOUNDARY.CONSENSUS is 'all'; allowed: weighted, any, minimum",
        ),
        (
            ("MODEL.BOUNDARY.MIN_ANNOTATORS", 0),
            "MODEL.BOUNDARY.MIN_ANNOTATORS is 0; allowed: 1 or more",
        ),
        (("MODEL.BOUNDARY.MARGIN", 1.5), "MODEL.BOUNDARY.MARGIN is 1.5; allowed: 0 to 1"),
        (("MODEL.BOUNDARY.EMBEDDING_DIM", 0), "EMBEDDING_DIM is 0; allowed: 1 or more"),
        (("MODEL.BOUNDARY.TRAIN_POINTS", 1), "TRAIN_POINTS is 1; allowed: 2 or more"),
        (
            ("MODEL.BOUNDARY.TEST_SCALES", []),
            "MODEL.BOUNDARY.TEST_SCALES is []; allowed: one or more factors above 0",
        ),
        (PAIR_LOSS_ALONE + LOGISTIC_ALONE, "LOGISTIC_LOSS_WEIGHT are 0; allowed: at least one"),
    ],
)
def test_a_wrong_key_is_one_line(overrides, message):
    with pytest.raises(ValueError) as error:
        net(*overrides, features=("res2", "res3"))
    assert message in str(error.value) and "\n" not in str(error.value)
