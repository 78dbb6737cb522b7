"""Ways to embed pixels: building, training and grouping by MODEL.RPE.LOSS."""

import logging
import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model

from rpe_d2.engine.setup import read_config
from rpe_d2.modeling import EmbeddingHead, MeanShiftLayer, PixelEmbeddingNet
from rpe_d2.modeling.embedding.grouping import ComponentGrouping, MeanShiftGrouping
from rpe_d2.modeling.embedding.head import cell_centers
from rpe_d2.modeling.embedding.methods import (
    METHODS,
    AssociativeGrouping,
    AssociativeLoss,
    DiscriminativeGrouping,
    DiscriminativeLoss,
    MetricLearningGrouping,
    MetricLearningLoss,
    ProposalFreeGrouping,
    ProposalFreeLoss,
    SpatialGrouping,
    SpatialLoss,
)
from rpe_d2.modeling.embedding.methods.spatial import start_small
from rpe_d2.modeling.embedding.quality_head import best_match
from tests.conftest import ROOT
from tests.helpers.configs import small_cfg_with
from tests.helpers.models import SQUARES, losses_of, perfect_maps, train, training_input

COMPARED = [name for name in METHODS if name != "spherical"]
TERMS = {
    "discriminative": {"loss_variance", "loss_distance", "loss_regularization"},
    "associative": {"loss_pull", "loss_push"},
    "metric_learning": {"loss_pair", "loss_seed"},
    "spatial": {"loss_mask", "loss_bandwidth", "loss_seed"},
    "proposal_free": {"loss_location", "loss_count"},
}
CONFIGS = [
    str(path.relative_to(ROOT / "configs"))
    for path in sorted((ROOT / "configs").rglob("*.yaml"))
    if not path.name.startswith("Base-")
]
SHAPE = {f"p{level}": ShapeSpec(channels=8, stride=2**level) for level in range(2, 6)}


def loss_text(name):
    return f"MODEL: {{RPE: {{LOSS: {name}}}}}"


def build(*texts):
    torch.manual_seed(0)
    return build_model(small_cfg_with(*texts))


@pytest.mark.parametrize("name", COMPARED)
def test_training_lowers_the_loss_and_reaches_every_parameter(name):
    model = build(loss_text(name))
    batch = [
        training_input(),
        training_input(size=(64, 80), squares=((10, 10, 50, 44),), classes=(1,)),
    ]
    assert set(losses_of(model, batch)) == {"loss_sem_seg", "loss_quality", *TERMS[name]}
    history = train(model, batch, 10)
    assert all(map(math.isfinite, history)) and min(history[-5:]) < 0.9 * history[0]
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    outputs = model.eval()(batch)
    assert [len(output["instances"].image_size) for output in outputs] == [2, 2]
    maps = model.predict_maps(batch[:1])[0]
    (embeddings,) = model.embeddings_per_loop(maps)
    assert embeddings.shape[1:] == maps.unpadded_size


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARED)
def test_a_few_images_are_overfitted(name):
    model = build(loss_text(name), "MODEL: {RPE: {STRIDE: 2, MAX_SIZE: 96.0}}")
    batch = [
        training_input(),
        training_input(squares=((8, 8, 30, 50), (30, 8, 52, 50)), classes=(1, 1)),
    ]
    train(model, batch, 150)
    model.eval()
    for item, output in zip(batch, model(batch)):
        instances, target = output["instances"], item["instances"].gt_masks.tensor
        masks = instances.pred_masks[: len(target)].flatten(1).float()
        common = masks @ target.flatten(1).float().T
        union = masks.sum(dim=1)[:, None] + target.flatten(1).sum(dim=1) - common
        assert (common / union).amax(dim=0).min() > 0.7
        best = (common / union).argmax(dim=1)
        assert torch.equal(
            instances.pred_classes[: len(target)], item["instances"].gt_classes[best]
        )


def test_images_without_annotations_train_and_infer():
    empty = training_input(squares=(), classes=())
    for name in COMPARED:
        model = build(loss_text(name), "MODEL: {RPE: {QUALITY: False}}")
        total = sum(losses_of(model, [empty, empty]).values())
        total.backward()
        assert math.isfinite(float(total))
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        model.eval()([empty])


@pytest.mark.parametrize("name", COMPARED)
def test_a_weight_of_zero_leaves_the_class_map(name):
    model = build(loss_text(name), "MODEL: {RPE: {PAIR_LOSS_WEIGHT: 0.0}}")
    losses = losses_of(model, [training_input()])
    assert all(float(losses[term]) == 0 for term in TERMS[name])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.embedding_head.parameters())


def test_the_default_is_the_papers_method():
    names = [set(build(text).state_dict()) for text in ("{}", loss_text("spherical"))]
    assert names[0] == names[1] and not any("extra" in name for name in names[0])
    torch.manual_seed(3)
    first = losses_of(build("{}"), [training_input()])
    torch.manual_seed(3)
    second = losses_of(build(loss_text("spherical")), [training_input()])
    assert set(first) == {"loss_sem_seg", "loss_pair", "loss_vote", "loss_quality"} == set(second)


def perfect(name):
    """Returns maps of four squares, predicted perfectly in the form of a method, and labels."""
    maps, grid, size = perfect_maps(noise=0.02)
    if name in ("discriminative", "associative"):
        return maps._replace(embeddings=4 * maps.embeddings), grid, size
    inside = grid >= 0
    if name == "metric_learning":
        # All embeddings of background are alike, too. The second threshold, 0.5, is the best one.
        x = 3 * maps.embeddings * inside
        seeds = torch.full((1, 4, 4, *grid.shape), -4.0)
        seeds[:, 1] = maps.logits
        return maps._replace(embeddings=x, extra=seeds.flatten(1, 2)), grid, size
    cells = cell_centers(grid.shape, maps.stride, grid.device)
    if name == "proposal_free":
        boxes = torch.tensor(SQUARES, dtype=torch.float32)[grid.clamp(min=0)].permute(2, 0, 1)
        centers = (boxes[:2] + boxes[2:]) / 2
        offsets = (torch.cat([centers, boxes]) - cells.repeat(3, 1, 1)) / 256
        counts = torch.tensor([2.2, 0.8, 1.0]).view(1, 3, 1, 1).expand(1, 3, *grid.shape)
        return maps._replace(embeddings=offsets[None], votes=cells[None], extra=counts), grid, size
    # Background points to the right of the image.
    offsets = torch.where(inside, maps.votes[0] - cells, 200.0) / 256
    extra = torch.full((1, 3, *grid.shape), 0.57)  # the kernel is 0.5 at 12 pixels from the center
    extra[:, 2] = torch.where(inside, 4.0, -4.0)
    maps = maps._replace(embeddings=offsets.atanh()[None], votes=cells[None], extra=extra)
    return maps, grid, size


GROUPINGS = {
    "discriminative": DiscriminativeGrouping,
    "associative": AssociativeGrouping,
    "metric_learning": MetricLearningGrouping,
    "spatial": SpatialGrouping,
    "proposal_free": ProposalFreeGrouping,
}


@pytest.mark.parametrize("name", COMPARED)
def test_perfect_maps_give_the_objects(name):
    maps, grid, size = perfect(name)
    groups = GROUPINGS[name]()(maps.image(0, size))
    iou, instance = best_match(groups.soft_masks, grid, 0.5)
    best = {number: float(iou[instance == number].max()) for number in range(4)}
    assert min(best.values()) > 0.95
    if name != "metric_learning":  # whose masks compete by their scores
        assert len(groups) == 4
    classes = groups.class_probabilities.argmax(dim=1)
    for number, expected in enumerate([0, 0, 1, 2]):
        of_it = (instance == number) & (iou > 0.95)
        assert (classes[of_it] == expected).all()
        assert groups.class_probabilities[of_it].amax() > 0.9
    # Cells of the padding of a batch are in no group.
    cropped = GROUPINGS[name]()(maps.image(0, (44, 96)))
    assert len(cropped) and float(cropped.soft_masks[:, 22:].max()) == 0


@pytest.mark.parametrize("name", COMPARED)
def test_small_groups_are_dropped_and_no_foreground_gives_none(name):
    maps, grid, size = perfect(name)
    large = GROUPINGS[name](min_area=100)(maps.image(0, size))
    assert 3 not in best_match(large.soft_masks, grid, 0.5)[1].tolist()
    assert len(GROUPINGS[name](max_groups=2)(maps.image(0, size))) <= 2
    logits = torch.zeros_like(maps.logits)
    logits[:, -1] = 20
    extra = None if maps.extra is None else torch.full_like(maps.extra, -20.0)
    if name == "metric_learning":
        extra = extra.unflatten(1, (4, 4))
        extra[:, :, -1] = 20
        extra = extra.flatten(1, 2)
    nothing = maps._replace(logits=logits, extra=extra).image(0, size)
    groups = GROUPINGS[name]()(nothing)
    assert groups.soft_masks.shape == (0, 40, 48) and groups.class_probabilities.shape == (0, 3)


def test_components_of_clusters_can_be_instances():
    maps, _, size = perfect("discriminative")
    embeddings = maps.embeddings.clone()
    embeddings[:, :, :, :40] = embeddings[:, :, :1, :1]  # all squares look alike
    maps = maps._replace(embeddings=embeddings).image(0, size)
    # The squares of the upper row touch, and so do their masks.
    assert len(DiscriminativeGrouping()(maps)) == 1
    assert len(DiscriminativeGrouping(split_into_components=True)(maps)) == 3


@pytest.mark.parametrize("name", COMPARED)
def test_ignored_keys_are_named_in_one_line(name, caplog):
    keys = ["MODEL.MEAN_SHIFT.TRAIN_LOOPS", "MODEL.RPE.FOREGROUND", "MODEL.RPE.VOTES"]
    with caplog.at_level(logging.INFO, "rpe_d2"):
        model = build(
            loss_text(name),
            "MODEL: {RPE: {FOREGROUND: vote, BACKGROUND: group, VOTES: False, EMBEDDING_DIM: 5}}",
            "MODEL: {MEAN_SHIFT: {TRAIN_LOOPS: 7}}",
        )
    (message,) = [r.getMessage() for r in caplog.records if "ignores" in r.getMessage()]
    assert message.startswith(f"MODEL.RPE.LOSS {name} ignores ") and "\n" not in message
    assert all(key in message for key in keys) and "TEST_LOOPS" not in message
    dim = {"spatial": 2, "proposal_free": 6}.get(name, 5)
    assert ("EMBEDDING_DIM" in message) == (dim != 5)
    assert model.embedding_head.embedding_dim == dim
    assert model.mean_shift is None and model.embedding_head.voter is None
    caplog.clear()
    build("MODEL: {RPE: {FOREGROUND: vote, BACKGROUND: group}}")
    assert not [r for r in caplog.records if "ignores" in r.getMessage()]


def step(name, loss):
    """Builds the model of a configuration with another loss and computes its gradients.

    Returns:
        Whether it is a PixelEmbeddingNet; others are not built.
    """
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RPE.LOSS", loss]
    cfg = read_config(str(ROOT / "configs" / name), options)
    if cfg.MODEL.META_ARCHITECTURE != "PixelEmbeddingNet":
        return False
    torch.manual_seed(0)
    model = build_model(cfg)
    item = training_input((64, 64), ((4, 4, 30, 30), (30, 30, 60, 60)), (0, 0))
    total = sum(losses_of(model, [item]).values())
    total.backward()
    assert math.isfinite(float(total))
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    return True


OURS = [
    *("paper/rpe_digits.yaml", "paper/rpe_nuclei.yaml", "paper/rpe_shapes.yaml"),
    *("nuclei/rpe_R_18.yaml", "nuclei/semantic_control.yaml", "quickstart/rpe_shapes.yaml"),
    *("rpe_coco.yaml", "quick/rpe_instant_test.yaml"),
]


@pytest.mark.parametrize("number", range(len(OURS)))
def test_another_loss_alone_trains_any_configuration(number):
    assert step(OURS[number], COMPARED[number % len(COMPARED)])


@pytest.mark.slow
@pytest.mark.parametrize("loss", COMPARED)
def test_every_loss_trains_every_configuration(loss):
    trained = [name for name in CONFIGS if step(name, loss)]
    assert len(trained) > 10


REFUSED = {
    "MODEL: {PROPOSAL_GENERATOR: {NAME: MeanShiftProposalGenerator}, "
    "META_ARCHITECTURE: ProposalNetwork}": "MeanShiftProposalGenerator",
    "MODEL: {META_ARCHITECTURE: SemanticSegmentor, SEM_SEG_HEAD: {NAME: EmbeddingSemSegHead}}": (
        "MODEL.SEM_SEG_HEAD.NAME EmbeddingSemSegHead"
    ),
    "MODEL: {META_ARCHITECTURE: BoundaryEmbeddingNet}": "BoundaryEmbeddingNet",
}


@pytest.mark.parametrize("text", REFUSED)
def test_components_refuse_what_they_cannot_use(text):
    with pytest.raises(ValueError) as error:
        build(text, loss_text("spatial"))
    expected = f"MODEL.RPE.LOSS is 'spatial'; allowed with {REFUSED[text]}: spherical"
    assert str(error.value) == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("MODEL: {RPE: {LOSS: triplet}}", "MODEL.RPE.LOSS is 'triplet'; allowed: spherical, "),
        (
            "MODEL: {RPE: {LOSS: spatial, GROUPING: kmeans}}",
            "MODEL.RPE.GROUPING is 'kmeans'; allowed with MODEL.RPE.LOSS spatial: mean_shift",
        ),
        (
            "MODEL: {RPE: {LOSS: associative, SEM_SEG_LOSS_STRIDE: 8}}",
            "MODEL.RPE.SEM_SEG_LOSS_STRIDE is 8; allowed with MODEL.RPE.STRIDE 4: 1, 2, 4",
        ),
    ],
)
def test_wrong_keys_are_one_line(text, message):
    with pytest.raises(ValueError) as error:
        build(text)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_the_control_without_embeddings_works_with_every_loss():
    for name in COMPARED:
        model = build(loss_text(name), "MODEL: {RPE: {GROUPING: components}}")
        assert type(model.grouping) is ComponentGrouping


def raw_head(**options):
    return EmbeddingHead(SHAPE, 3, vote_unit=None, normalize=False, **options)


@pytest.mark.parametrize(
    "loss, head",
    [
        (DiscriminativeLoss(delta_v=0.2), {}),
        (AssociativeLoss(sigma=0.5), {"embedding_dim": 1}),
        (MetricLearningLoss(thresholds=(0.5, 0.9)), {"extra_dim": 8}),
        (SpatialLoss(unit=64.0, num_bandwidths=1), {"embedding_dim": 2, "extra_dim": 2}),
        (ProposalFreeLoss(), {"embedding_dim": 6, "extra_dim": 3}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_models_are_built_without_a_configuration(loss, head):
    backbone = build_backbone(small_cfg_with())
    head = EmbeddingHead(
        backbone.output_shape(), 3, conv_dim=32, vote_unit=None, normalize=False, **head
    )
    if isinstance(loss, SpatialLoss):
        start_small(head, loss.unit)
    model = PixelEmbeddingNet(backbone, embedding_head=head, embedding_loss=loss)
    assert type(model.grouping) is type(loss.default_grouping()) and model.mean_shift is None
    assert sum(losses_of(model, [training_input()]).values()).isfinite()


@pytest.mark.parametrize(
    "head, parts, message",
    [
        (
            EmbeddingHead(SHAPE, 3),
            {"embedding_loss": DiscriminativeLoss()},
            "embedding_head.normalize is True; allowed with embedding_loss DiscriminativeLoss: "
            "False",
        ),
        (
            raw_head(),
            {},
            "embedding_head.normalize is False; allowed with embedding_loss EmbeddingLoss: True",
        ),
        (
            raw_head(),
            {"embedding_loss": MetricLearningLoss()},
            "embedding_head.extra_dim is 0; allowed with embedding_loss MetricLearningLoss: 16",
        ),
        (
            raw_head(extra_dim=3),
            {"embedding_loss": SpatialLoss()},
            "embedding_head.embedding_dim is 16; allowed with embedding_loss SpatialLoss: 2",
        ),
        (
            raw_head(),
            {"embedding_loss": AssociativeLoss(), "mean_shift": MeanShiftLayer()},
            "mean_shift is a MeanShiftLayer; allowed with embedding_loss AssociativeLoss: None",
        ),
        (
            raw_head(),
            {"embedding_loss": AssociativeLoss(), "grouping": MeanShiftGrouping()},
            "grouping is a MeanShiftGrouping; allowed with embedding_loss AssociativeLoss: "
            "AssociativeGrouping, ComponentGrouping",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(head, parts, message):
    backbone = build_backbone(small_cfg_with())
    with pytest.raises(ValueError) as error:
        PixelEmbeddingNet(backbone, embedding_head=head, **parts)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "build_part, arguments, message",
    [
        (DiscriminativeLoss, {"delta_v": -1}, "delta_v is -1; allowed: 0 or more"),
        (DiscriminativeLoss, {"sampling": "all"}, "sampling is 'all'; allowed: instances"),
        (AssociativeLoss, {"sigma": 0}, "sigma is 0; allowed: numbers above 0"),
        (AssociativeLoss, {"term_weights": {"mask": 1}}, "term_weights is 'mask'; allowed: pull"),
        (MetricLearningLoss, {"thresholds": ()}, "thresholds is (); allowed: one or more"),
        (MetricLearningLoss, {"thresholds": (1.0,)}, "threshold is 1.0; allowed: above 0 and"),
        (SpatialLoss, {"num_bandwidths": 3}, "num_bandwidths is 3; allowed: 1, 2"),
        (SpatialLoss, {"embedding_weight": -1}, "embedding_weight is -1; allowed: 0 or more"),
        (DiscriminativeGrouping, {"bandwidth": 0}, "bandwidth is 0; allowed: numbers above 0"),
        (AssociativeGrouping, {"bin_width": 0}, "bin_width is 0; allowed: numbers above 0"),
        (MetricLearningGrouping, {"min_score": 2}, "min_score is 2; allowed: 0 to 1"),
        (SpatialGrouping, {"min_seediness": 2}, "min_seediness is 2; allowed: 0 to 1"),
    ],
)
def test_arguments_out_of_range_are_named(build_part, arguments, message):
    with pytest.raises(ValueError) as error:
        build_part(**arguments)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
