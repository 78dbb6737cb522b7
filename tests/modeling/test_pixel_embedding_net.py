"""PixelEmbeddingNet: training, losses, inference and errors."""

import itertools
import math

import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling import build_backbone, build_model
from detectron2.solver import build_optimizer
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import box_iou

from rpe_d2.modeling import PixelEmbeddingNet
from tests.helpers.configs import small_cfg_with
from tests.helpers.models import losses_of, train, training_input

RESNET = "MODEL: {BACKBONE: {NAME: build_resnet_backbone}, RESNETS: {OUT_FEATURES: [%s]}}"
NO_QUALITY = "MODEL: {RPE: {QUALITY: False}}"
ALL_POINTS = "MODEL: {RPE: {TRAIN_POINTS: 100000}}"  # more than the images have pixels


def build(*texts):
    """Builds a model from the small configuration with YAML texts, with seeded weights."""
    torch.manual_seed(0)
    return build_model(small_cfg_with(*texts))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        RESNET % "res3, res5",
        "MODEL: {RPE: {VOTES: False, NEGATIVE_RADIUS: 20.0}}",
        "MODEL: {RPE: {BACKGROUND: group, COORDINATES: True}}",
        "MODEL: {RPE: {QUALITY: False}, MEAN_SHIFT: {BANDWIDTH_MODE: learned}}",
        "MODEL: {RPE: {PAIR_LOSS_NORMALIZATION: joint}, MEAN_SHIFT: {TRAIN_LOOPS: 0}}",
        "MODEL: {RPE: {GROUPING: components, STRIDE: 8}}",
        "MODEL: {MEAN_SHIFT: {RELATIVE_BANDWIDTH: 0.2, TEST_SCALES: [0.7, 1.0]}}",
    ],
)
def test_training_lowers_the_loss_and_reaches_every_parameter(text):
    model = build(text)
    batch = [
        training_input(),
        training_input(size=(64, 80), squares=((10, 10, 50, 44),), classes=(1,)),
    ]
    # Steps at this rate amplify rounding, so that processors differ by a few steps.
    history = train(model, batch, 20)
    assert min(history[-8:]) < 0.8 * history[0]
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_with_loss_weights_of_zero_only_the_class_map_is_trained():
    """The parameters of embeddings and votes have gradients of zero, as distributed training needs.

    This is the control that groups connected components.
    """
    weights = "MODEL: {RPE: {PAIR_LOSS_WEIGHT: 0.0, VOTE_LOSS_WEIGHT: 0.0}}"
    model = build(weights, "MODEL: {MEAN_SHIFT: {BANDWIDTH_MODE: learned}}")
    losses = losses_of(model, [training_input()])
    assert float(losses["loss_pair"]) == 0 and "loss_vote" not in losses
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.mean_shift.parameters())
    for name, parameter in model.embedding_head.named_parameters():
        reached = float(parameter.grad.abs().sum()) > 0
        assert reached != name.startswith(("embedding.", "voter.")), name


@pytest.mark.parametrize("relative", [pytest.param(0.0, marks=pytest.mark.slow), 0.2])
def test_a_few_images_are_overfitted(relative):
    model = build(f"MODEL: {{RPE: {{STRIDE: 2}}, MEAN_SHIFT: {{RELATIVE_BANDWIDTH: {relative}}}}}")
    batch = [
        training_input(),
        training_input(squares=((8, 8, 30, 50), (30, 8, 52, 50)), classes=(1, 1)),
    ]
    train(model, batch, 80)
    model.eval()
    for item, output in zip(batch, model(batch)):
        instances = output["instances"]
        target = item["instances"].gt_masks.tensor
        pred = instances[instances.scores > 0.5]
        assert len(pred) == len(target)
        iou = pairwise_iou(pred.pred_masks, target)
        best = iou.argmax(dim=1)
        assert iou.amax(dim=0).min() > 0.85
        assert torch.equal(pred.pred_classes, item["instances"].gt_classes[best])


SHAPES = """
MODEL: {MASK_ON: True, RPE: {NUM_CLASSES: 4}}
INPUT: {MASK_FORMAT: bitmask, MIN_SIZE_TRAIN: [128]}
DATASETS: {TRAIN: [shapes_train]}
DATALOADER: {NUM_WORKERS: 0}
SOLVER: {IMS_PER_BATCH: 2, BASE_LR: 0.02}
SEED: 1
"""


def test_detectron2s_own_loop_trains_the_model():
    """Loader, mapper, optimizer and trainer are Detectron2's."""
    cfg = small_cfg_with(SHAPES)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    trainer = SimpleTrainer(model, build_detection_train_loader(cfg), build_optimizer(cfg, model))
    history = []
    with EventStorage() as storage:
        for trainer.iter in range(16):
            trainer.run_step()
            storage.step()
        history = [value for value, _ in storage.history("total_loss").values()]
    assert len(history) == 16
    assert sum(history[-4:]) < 0.8 * sum(history[:4])


@pytest.mark.parametrize("text", ["{}", NO_QUALITY])
def test_images_without_annotations_train_and_infer(text):
    model = build(text)
    empty = training_input(squares=(), classes=())
    for batch in ([empty], [empty, training_input()]):
        total = sum(losses_of(model, batch).values())
        total.backward()
        assert math.isfinite(float(total))
        # Distributed training fails on parameters without a gradient.
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert isinstance(model.eval()([empty])[0]["instances"], Instances)


def test_pixels_of_crowds_are_left_out_of_the_losses():
    model = build(NO_QUALITY, ALL_POINTS)
    item = training_input(squares=((4, 4, 30, 30),), classes=(0,))
    crowd = torch.zeros(64, 96, dtype=torch.bool)
    crowd[:, 60:] = True
    all_pixels, without_crowd = (
        losses_of(model, [each]) for each in (item, {**item, "ignore_mask": crowd})
    )
    assert torch.allclose(all_pixels["loss_pair"], without_crowd["loss_pair"], atol=1e-5)
    assert not torch.allclose(all_pixels["loss_sem_seg"], without_crowd["loss_sem_seg"])
    crowd_everywhere = {**item, "ignore_mask": torch.ones(64, 96, dtype=torch.bool)}
    crowd_everywhere["instances"] = training_input(squares=(), classes=())["instances"]
    assert all(float(loss) == 0 for loss in losses_of(model, [crowd_everywhere]).values())


def trained_model(*texts):
    """Returns a model that is overfitted to two images, in inference mode."""
    model = build("MODEL: {RPE: {STRIDE: 2}}", *texts)
    train(
        model,
        [training_input(), training_input(size=(80, 64), squares=((5, 30, 60, 70),), classes=(1,))],
        40,
    )
    return model.eval()


def pairwise_iou(masks, others):
    masks, others = masks.flatten(1).float(), others.flatten(1).float()
    overlap = masks @ others.T
    return overlap / (masks.sum(1)[:, None] + others.sum(1) - overlap).clamp(min=1)


def test_output_format():
    model = trained_model("MODEL: {RPE: {RETURN_PROPOSALS: True, RETURN_SEM_SEG: True}}")
    item = {**training_input(), "height": 128, "width": 190}
    output = model([item])[0]
    instances = output["instances"]
    assert len(instances) >= 2 and instances.image_size == (128, 190)
    assert instances.pred_masks.dtype == torch.bool and instances.pred_masks.shape[1:] == (128, 190)
    assert (instances.scores[:-1] >= instances.scores[1:]).all()
    assert ((instances.scores >= 0) & (instances.scores <= 1)).all()
    for mask, box in zip(instances.pred_masks, instances.pred_boxes.tensor):
        y, x = torch.nonzero(mask, as_tuple=True)
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    assert output["sem_seg"].shape == (4, 128, 190)
    proposals = output["proposals"]
    assert proposals.image_size == (128, 190)
    assert proposals.proposal_masks.dtype == torch.uint8
    assert proposals.proposal_masks.shape[1:] == (112, 112)
    assert (proposals.objectness_logits[:-1] >= proposals.objectness_logits[1:]).all()
    target = item["instances"].gt_boxes.tensor * torch.tensor([190 / 96, 2, 190 / 96, 2])
    assert box_iou(target, proposals.proposal_boxes.tensor).amax(dim=1).min() > 0.7
    # A square fills its box.
    best = box_iou(target, proposals.proposal_boxes.tensor)[0].argmax()
    assert (proposals.proposal_masks[best, 20:-20, 20:-20] > 127).float().mean() > 0.95


def test_predictions_do_not_depend_on_the_other_images_of_a_batch():
    model = trained_model()
    batch = [
        training_input(),
        training_input(size=(80, 64), squares=((5, 30, 60, 70),), classes=(1,)),
    ]
    together = model(batch)
    for item, output in zip(batch, together):
        alone = model([item])[0]["instances"]
        assert len(alone) == len(output["instances"]) > 0
        iou = pairwise_iou(alone.pred_masks, output["instances"].pred_masks)
        assert iou.amax(dim=1).min() >= 0.99
        assert torch.allclose(alone.scores, output["instances"].scores, atol=1e-4)


def test_the_padding_of_training_batches_is_ignored():
    """Without normalization, the loss of a batch is the mean of those of its images alone."""
    no_norm = "MODEL: {RPE: {NORM: ''}}"
    model = build(no_norm, NO_QUALITY, ALL_POINTS, RESNET % "res3")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    model.backbone.eval()
    small = training_input(size=(64, 64), squares=((4, 4, 30, 30),), classes=(0,))
    large = training_input(
        size=(64, 128), squares=((4, 4, 30, 30), (80, 20, 120, 60)), classes=(0, 1)
    )
    with EventStorage():
        model.embedding_head.train()
        model.training = True
        together = model([small, large])
        alone = [model([small]), model([large])]
    assert torch.allclose(
        together["loss_pair"], (alone[0]["loss_pair"] + alone[1]["loss_pair"]) / 2, rtol=0.1
    )


def test_autocast_changes_the_losses_by_rounding_only():
    model = build(ALL_POINTS)
    batch = [training_input(), training_input(squares=((8, 8, 30, 50),), classes=(1,))]
    full = losses_of(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = losses_of(model, batch)
    for name in ("loss_pair", "loss_vote", "loss_sem_seg"):
        assert half[name].dtype == torch.float32
        assert torch.allclose(half[name], full[name], rtol=0.05), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="mixed-precision training needs a GPU")
def test_mixed_precision_trains_on_a_gpu():
    torch.manual_seed(0)
    cfg = small_cfg_with("MODEL: {DEVICE: cuda}", "SOLVER: {BASE_LR: 0.02}")
    model = build_model(cfg).train()
    batch = [training_input(), training_input(squares=((8, 8, 30, 50),), classes=(1,))]
    trainer = AMPTrainer(model, itertools.repeat(batch), build_optimizer(cfg, model))
    with EventStorage() as storage:
        for trainer.iter in range(16):
            trainer.run_step()
            storage.step()
        history = [value for value, _ in storage.history("total_loss").values()]
    assert all(math.isfinite(value) for value in history)
    assert sum(history[-4:]) < 0.9 * sum(history[:4])
    assert len(model.eval()(batch)) == 2


def test_maps_and_embeddings_of_each_loop():
    model = build("MODEL: {RPE: {STRIDE: 2}}").eval()
    batch = [training_input(), training_input(size=(80, 64))]
    with torch.no_grad():
        maps = model.predict_maps(batch)
    assert [each.image_size for each in maps] == [(64, 96), (80, 64)]
    assert maps[0].embeddings.shape == maps[1].embeddings.shape  # on the grid of the padded batch
    for each in maps:
        loops = model.embeddings_per_loop(each)
        assert 2 <= len(loops) <= 1 + model.mean_shift.test_loops
        assert all(loop.shape == (8, *each.unpadded_size) for loop in loops)
        assert torch.equal(loops[0], each.unpadded().embeddings)
        assert torch.allclose(loops[-1].norm(dim=0), torch.ones(each.unpadded_size), atol=1e-4)
        assert not torch.allclose(loops[0], loops[-1])


def test_kmeans_is_trained_with_the_number_of_annotated_instances():
    model = build("MODEL: {RPE: {GROUPING: kmeans, QUALITY: True}}")
    assert losses_of(model, [training_input()])["loss_quality"].isfinite()


def test_training_pictures_reach_the_event_storage():
    model = build("VIS_PERIOD: 1")
    with EventStorage() as storage:
        model.train()([training_input()])
        ((name, picture, _),) = storage._vis_data
    loops = model.mean_shift.test_loops
    assert picture.shape[0] == 3 and picture.shape[1] == 64
    assert picture.shape[2] % 96 == 0 and 4 <= picture.shape[2] // 96 <= 4 + loops
    assert picture.dtype == torch.uint8 and picture.float().std() > 1


@pytest.mark.parametrize(
    "node, key, value, allowed",
    [
        ("RPE", "MARGIN", "1.5", "0 to 1"),
        ("RPE", "MERGE_COSINE", "1.2", "-1 to 1"),
        ("RPE", "TRAIN_POINTS", "0", "1 or more"),
        ("RPE", "SEM_SEG_LOSS_STRIDE", "3", "1, 2, 4"),
        ("MEAN_SHIFT", "MAX_KEYS", "0", "1 or more"),
        ("MEAN_SHIFT", "TEST_LOOPS", "-1", "0 to 1000"),
        ("MEAN_SHIFT", "TEST_SCALES", "[1.0, 0.0]", "factors above 0"),
    ],
)
def test_errors_name_keys_out_of_range_when_the_model_is_built(node, key, value, allowed):
    with pytest.raises(ValueError) as error:
        build(f"MODEL: {{{node}: {{{key}: {value}}}}}")
    message = str(error.value)
    assert f"MODEL.{node}.{key}" in message and value in message
    assert allowed in message and "\n" not in message


def test_the_error_names_an_image_without_annotations():
    model = build().train()
    item = {**training_input(), "file_name": "unlabeled.png"}
    del item["instances"]
    with pytest.raises(ValueError, match="unlabeled.png has no instances"):
        model([item])


def test_the_threshold_that_detectron2s_demo_sets_applies():
    text = "MODEL: {ROI_HEADS: {SCORE_THRESH_TEST: %s}, RPE: {SCORE_THRESH_TEST: %s}}"
    settings = ((0.05, 0.0), (0.5, 0.0), (0.5, 0.7), (0.05, 0.3))  # 0.05 is Detectron2's default
    thresholds = [build(text % setting).score_threshold for setting in settings]
    assert thresholds == [0.0, 0.5, 0.7, 0.3]


def test_a_grouping_must_be_one():
    with pytest.raises(ValueError, match="grouping is 'meanshift'; allowed: a PixelGrouping"):
        PixelEmbeddingNet(build_backbone(small_cfg_with()), 3, grouping="meanshift")
