import itertools
import math

import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import box_iou

from rpe_d2.modeling.soft_masks import upsample_masks
from tests.helpers.models import plain_backbone, small_cfg, training_input


def losses_of(model, batch):
    with EventStorage():
        return model.train()(batch)


def train(model, batch, steps, lr=2e-3):
    """Detectron2's plain loop: a model, an optimizer, nothing of rpe_d2.engine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    history = []
    for _ in range(steps):
        losses = losses_of(model, batch)
        total = sum(losses.values())
        assert math.isfinite(float(total)), losses
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total))
    return history


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        plain_backbone("res3", "res5"),
        ("MODEL.RPE.VOTES", False, "MODEL.RPE.NEGATIVE_RADIUS", 20.0),
        ("MODEL.RPE.BACKGROUND", "group", "MODEL.RPE.COORDINATES", True),
        ("MODEL.MEAN_SHIFT.BANDWIDTH_MODE", "learned", "MODEL.RPE.QUALITY", False),
        ("MODEL.MEAN_SHIFT.TRAIN_LOOPS", 0, "MODEL.RPE.PAIR_LOSS_NORMALIZATION", "joint"),
        ("MODEL.RPE.GROUPING", "components", "MODEL.RPE.STRIDE", 8),
        ("MODEL.MEAN_SHIFT.RELATIVE_BANDWIDTH", 0.2, "MODEL.MEAN_SHIFT.TEST_SCALES", [0.7, 1.0]),
    ],
)
def test_training_lowers_the_loss_and_reaches_every_parameter(overrides):
    torch.manual_seed(0)
    model = build_model(small_cfg(*overrides))
    batch = [
        training_input(),
        training_input(size=(64, 80), squares=((10, 10, 50, 44),), classes=(1,)),
    ]
    history = train(model, batch, 16)
    assert min(history[-3:]) < 0.7 * history[0]
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_without_weights_only_the_class_map_is_trained():
    """The control: all parameters take part, those of embeddings and votes with a gradient of zero."""
    model = build_model(
        small_cfg(
            "MODEL.RPE.PAIR_LOSS_WEIGHT", 0.0, "MODEL.RPE.VOTE_LOSS_WEIGHT", 0.0,
            "MODEL.MEAN_SHIFT.BANDWIDTH_MODE", "learned",
        )
    )  # fmt: skip
    losses = losses_of(model, [training_input()])
    assert float(losses["loss_pair"]) == 0 and "loss_vote" not in losses
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.mean_shift.parameters())
    for name, parameter in model.embedding_head.named_parameters():
        reached = float(parameter.grad.abs().sum()) > 0
        assert reached != name.startswith(("embedding.", "voter.")), name


@pytest.mark.parametrize("relative", [0.0, 0.2])
def test_a_few_images_are_learned_by_heart(relative):
    torch.manual_seed(0)
    model = build_model(
        small_cfg("MODEL.RPE.STRIDE", 2, "MODEL.MEAN_SHIFT.RELATIVE_BANDWIDTH", relative)
    )
    batch = [
        training_input(),
        training_input(squares=((8, 8, 30, 50), (30, 8, 52, 50)), classes=(1, 1)),
    ]
    train(model, batch, 80)
    model.eval()
    for item, output in zip(batch, model(batch)):
        instances = output["instances"]
        truth = item["instances"].gt_masks.tensor
        found = instances[instances.scores > 0.5]
        assert len(found) == len(truth)
        iou = pairwise_iou(found.pred_masks, truth)
        best = iou.argmax(dim=1)
        assert iou.amax(dim=0).min() > 0.85
        assert torch.equal(found.pred_classes, item["instances"].gt_classes[best])


def test_detectron2s_own_loop_trains_the_model():
    """Registered data, loader, mapper, optimizer and trainer: all Detectron2's."""
    cfg = small_cfg(
        "MODEL.RPE.NUM_CLASSES", 4, "INPUT.MASK_FORMAT", "bitmask", "MODEL.MASK_ON", True
    )
    cfg.merge_from_list(["DATASETS.TRAIN", ("shapes_train",), "DATALOADER.NUM_WORKERS", 0])
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 2, "SOLVER.BASE_LR", 0.02, "SEED", 1])
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (128,)])
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


@pytest.mark.parametrize("with_quality", [True, False])
def test_images_without_annotations_train_and_infer(with_quality):
    model = build_model(small_cfg("MODEL.RPE.QUALITY", with_quality))
    empty = training_input(squares=(), classes=())
    for batch in ([empty], [empty, training_input()]):
        total = sum(losses_of(model, batch).values())
        total.backward()
        assert math.isfinite(float(total))
        # None may be missing, or distributed training fails.
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert isinstance(model.eval()([empty])[0]["instances"], Instances)


def test_crowd_regions_change_no_loss():
    """Whatever is drawn into the crowd region's labels, the losses on the other pixels are the same."""
    model = build_model(small_cfg("MODEL.RPE.QUALITY", False, "MODEL.RPE.TRAIN_POINTS", 100000))
    item = training_input(squares=((4, 4, 30, 30),), classes=(0,))
    crowd = torch.zeros(64, 96, dtype=torch.bool)
    crowd[:, 60:] = True
    plain, ignoring = losses_of(model, [item]), losses_of(model, [{**item, "ignore_mask": crowd}])
    assert torch.allclose(plain["loss_pair"], ignoring["loss_pair"], atol=1e-5)
    assert not torch.allclose(plain["loss_sem_seg"], ignoring["loss_sem_seg"])
    everything = {**item, "ignore_mask": torch.ones(64, 96, dtype=torch.bool)}
    everything["instances"] = training_input(squares=(), classes=())["instances"]
    assert all(float(loss) == 0 for loss in losses_of(model, [everything]).values())


def trained_model(*overrides):
    torch.manual_seed(0)
    model = build_model(small_cfg("MODEL.RPE.STRIDE", 2, *overrides))
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
    model = trained_model("MODEL.RPE.RETURN_PROPOSALS", True, "MODEL.RPE.RETURN_SEM_SEG", True)
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
    truth = item["instances"].gt_boxes.tensor * torch.tensor([190 / 96, 2, 190 / 96, 2])
    assert box_iou(truth, proposals.proposal_boxes.tensor).amax(dim=1).min() > 0.7
    # A square fills its box.
    best = box_iou(truth, proposals.proposal_boxes.tensor)[0].argmax()
    assert (proposals.proposal_masks[best, 20:-20, 20:-20] > 127).float().mean() > 0.95


def test_an_image_gives_the_same_alone_and_in_a_batch_of_mixed_sizes():
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


def test_padding_of_training_batches_is_ignored():
    """A batch that pads an image has the losses of the image alone, norms aside."""
    torch.manual_seed(0)
    options = ("MODEL.RPE.NORM", "", "MODEL.RPE.QUALITY", False, "MODEL.RPE.TRAIN_POINTS", 100000)
    model = build_model(small_cfg(*options, *plain_backbone("res3")))
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
    torch.manual_seed(0)
    model = build_model(small_cfg("MODEL.RPE.TRAIN_POINTS", 100000))
    batch = [training_input(), training_input(squares=((8, 8, 30, 50),), classes=(1,))]
    exact = losses_of(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = losses_of(model, batch)
    for name in ("loss_pair", "loss_vote", "loss_sem_seg"):
        assert rounded[name].dtype == torch.float32
        assert torch.allclose(rounded[name], exact[name], rtol=0.05), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="mixed-precision training needs a GPU")
def test_mixed_precision_trains_on_a_gpu():
    torch.manual_seed(0)
    cfg = small_cfg("MODEL.DEVICE", "cuda", "SOLVER.BASE_LR", 0.02)
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


def test_soft_masks_are_interpolated_before_they_are_cut():
    soft = torch.zeros(1, 4, 4)
    soft[0, 1:3, 1:3] = 1.0
    hard = upsample_masks(soft, 8, (32, 32), (32, 32), 0.5)[0]
    square = torch.zeros(32, 32, dtype=torch.bool)
    square[8:24, 8:24] = True
    assert hard[16, 8] and not hard[8, 8]  # the corners of the blocky square are rounded off
    assert 0.85 < (hard & square).sum() / (hard | square).sum() < 1
    assert upsample_masks(soft[:0], 8, (30, 31), (60, 62), 0.5).shape == (0, 60, 62)


def test_pictures_reach_the_event_storage():
    model = build_model(small_cfg("VIS_PERIOD", 1))
    with EventStorage() as storage:
        model.train()([training_input()])
        ((name, picture, _),) = storage._vis_data
    loops = model.mean_shift.test_loops
    assert picture.shape[0] == 3 and picture.shape[1] == 64
    assert picture.shape[2] % 96 == 0 and 4 <= picture.shape[2] // 96 <= 4 + loops
    assert picture.dtype == torch.uint8 and picture.float().std() > 1


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("MODEL.RPE.MARGIN", 1.5, "0 to 1"),
        ("MODEL.RPE.MERGE_COSINE", 1.2, "-1 to 1"),
        ("MODEL.RPE.TRAIN_POINTS", 0, "1 or more"),
        ("MODEL.RPE.SEM_SEG_LOSS_STRIDE", 3, "1, 2, 4"),
        ("MODEL.MEAN_SHIFT.MAX_KEYS", 0, "1 or more"),
        ("MODEL.MEAN_SHIFT.TEST_LOOPS", -1, "0 or more"),
        ("MODEL.MEAN_SHIFT.TEST_SCALES", [1.0, 0.0], "factors above 0"),
    ],
)
def test_values_out_of_range_are_named_when_the_model_is_built(key, value, allowed):
    with pytest.raises(ValueError) as error:
        build_model(small_cfg(key, value))
    message = str(error.value)
    assert key in message and str(value) in message and allowed in message and "\n" not in message


def test_an_image_without_annotations_entry_is_named():
    model = build_model(small_cfg()).train()
    item = {**training_input(), "file_name": "unlabelled.png"}
    del item["instances"]
    with pytest.raises(ValueError, match="unlabelled.png has no instances"):
        model([item])
