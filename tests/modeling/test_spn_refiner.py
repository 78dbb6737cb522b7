"""The refiner of given masks, and the refinement of PixelEmbeddingNet."""

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from rpe_d2.data import CoarseInstances
from rpe_d2.modeling import SPNRefiner
from rpe_d2.modeling.embedding.labels import pixel_labels
from tests.helpers.configs import small_cfg_with
from tests.helpers.models import square_instances, training_input
from tests.helpers.modules import assert_same_state_dict

REFINER = """
MODEL:
  META_ARCHITECTURE: SPNRefiner
  BACKBONE:
    NAME: build_guided_backbone
"""


def small_backbone():
    """A guided ResNet-18-FPN, as in the small configuration."""
    return build_backbone(small_cfg_with("MODEL: {BACKBONE: {NAME: build_guided_backbone}}"))


def test_the_refiner_overfits_one_image():
    """After training on one image, refinement corrects more than half of the wrong pixels."""
    torch.manual_seed(0)
    squares = [(8, 10, 50, 43), (40, 45, 75, 77)]
    instances = square_instances((80, 80), squares, [0, 1])
    image = torch.full((3, 80, 80), 60, dtype=torch.uint8)
    for (x0, y0, x1, y1), color in zip(squares, (120, 200)):
        image[:, y0:y1, x0:x1] = color
    model = build_model(
        small_cfg_with(REFINER, "MODEL: {SPN: {IN_FEATURES: [image, p2], STRIDE: 1}}")
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model([{"image": image, "instances": instances}])["loss_propagation"].backward()
        optimizer.step()
    model.eval()
    target = instances.gt_masks.tensor
    coarse = torch.stack([mask.roll((2, -2), (0, 1)) for mask in target])
    item = {"image": image, "instances": Instances((80, 80), pred_masks=coarse, scores=[0.5, 0.2])}
    output = model([item])[0]["instances"]
    wrong_before = (coarse ^ target).sum()
    wrong_after = (output.pred_masks ^ target).sum()
    assert wrong_after < 0.5 * wrong_before, (wrong_before, wrong_after)
    assert output.scores == [0.5, 0.2]
    x0, y0, x1, y1 = output.pred_boxes.tensor[0].tolist()
    assert output.pred_masks[0, int(y0) : int(y1), int(x0) : int(x1)].sum() == (
        output.pred_masks[0].sum()
    )


def test_a_refiner_without_units_cannot_be_trained():
    """It runs in inference, as a control."""
    model = build_model(small_cfg_with(REFINER, "MODEL: {SPN: {NUM_UNITS: 0}}"))
    with pytest.raises(ValueError, match="MODEL.SPN.NUM_UNITS is 0; allowed in training"):
        model([training_input()])
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[0, 16:48, 16:48] = True
    item = {**training_input(), "instances": Instances((64, 96), pred_masks=mask)}
    pred = model.eval()([item])[0]["instances"].pred_masks
    assert (pred & mask).sum() > 0.95 * (pred | mask).sum()


def test_the_refiner_takes_masks_of_any_resolution_or_none():
    model = build_model(small_cfg_with(REFINER)).eval()
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    masks = torch.zeros(2, 35, 45, dtype=torch.bool)
    masks[0, 5:, 8:] = True
    item = {
        "image": image,
        "height": 140,
        "width": 180,
        "instances": Instances((35, 45), pred_masks=masks),
        "sem_seg": torch.rand(3, 140, 180).softmax(dim=0),
    }
    output = model([item])[0]
    assert output["instances"].pred_masks.shape == (2, 140, 180)
    assert output["instances"].image_size == (140, 180)
    assert not output["instances"].pred_masks[1].any()
    expected = F.interpolate(masks[None].float(), scale_factor=4)[0].bool()
    wrong = (output["instances"].pred_masks[0] ^ expected[0]).sum()
    assert wrong < 0.06 * expected[0].sum()
    assert torch.allclose(output["sem_seg"].sum(dim=0), torch.ones(140, 180), atol=1e-4)
    empty = {"image": image, "instances": Instances((70, 90), pred_masks=masks[:0])}
    assert len(model([empty])[0]["instances"]) == 0
    assert model([{"image": image}])[0] == {}


def test_a_directly_constructed_refiner_equals_the_configured_one():
    configured = build_model(small_cfg_with(REFINER))
    direct = SPNRefiner(backbone=small_backbone())
    assert_same_state_dict(direct, configured)
    for name in ("num_masks", "coarse_factors", "jitter", "loss_weight", "size_divisibility"):
        assert getattr(direct, name) == getattr(configured, name)
    assert torch.equal(direct.pixel_mean, configured.pixel_mean)
    assert torch.equal(direct.pixel_std, configured.pixel_std)
    assert direct.mask_propagation.units == configured.mask_propagation.units
    assert direct.mask_propagation.stride == configured.mask_propagation.stride
    # The evaluation coarsens masks by the first factor of training.
    mapper = CoarseInstances(lambda item: item)
    assert (mapper.factor, mapper.jitter) == (direct.coarse_factors[0], direct.jitter)


@pytest.mark.parametrize("num_units", [0, 2])
def test_pixel_embeddings_with_refined_masks(num_units):
    text = f"MODEL: {{RPE: {{REFINE: spn}}, SPN: {{STRIDE: 2, NUM_UNITS: {num_units}}}}}"
    model = build_model(small_cfg_with(text))
    with EventStorage():
        losses = model([training_input()])
        assert losses["loss_propagation"].isfinite()
        sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.mask_propagation.parameters())
    model.eval()
    output = model([{"image": torch.zeros(3, 70, 60, dtype=torch.uint8)}])[0]["instances"]
    assert output.pred_masks.shape[1:] == (70, 60)
    with pytest.raises(ValueError, match="MODEL.RPE.REFINE is 'crf'; allowed: '', 'spn'"):
        build_model(small_cfg_with("MODEL: {RPE: {REFINE: crf}}"))


def test_crowds_do_not_enter_the_propagation_loss():
    # Without propagation, cells do not influence each other.
    text = "MODEL: {RPE: {REFINE: spn}, SPN: {STRIDE: 2, NUM_UNITS: 0}}"
    model = build_model(small_cfg_with(text))
    crowd = torch.zeros(64, 96, dtype=torch.bool)
    crowd[:, 61:] = True
    labels = pixel_labels(training_input()["instances"], (64, 96), crowd)

    def loss_of(soft_masks):
        gates = torch.zeros(1, 12, 32, 48)
        pred = model._propagated(soft_masks, gates, (64, 96))
        return model._propagation_loss(pred, torch.tensor([1]), labels, (64, 96))

    soft_masks = torch.full((1, 32, 48), 0.5)
    plain = loss_of(soft_masks)
    for column, same in ((28, False), (30, True), (40, True)):
        changed = soft_masks.clone()
        changed[..., column] = 0.9
        assert (loss_of(changed) == plain) == same


def test_declarations_for_the_engine():
    assert SPNRefiner.dataset_mapper_name == "PixelLabelMapper"
    assert SPNRefiner.inference_inputs(small_cfg_with(REFINER)) == ("coarse_masks",)


@pytest.mark.parametrize(
    "texts, message",
    [
        (
            [REFINER, "MODEL: {SPN: {GATE_MODE: abs_sum}}"],
            "MODEL.SPN.GATE_MODE is 'abs_sum'; allowed where masks are propagated",
        ),
        (
            [
                "MODEL: {META_ARCHITECTURE: PixelEmbeddingNet}",
                "MODEL: {RPE: {REFINE: spn}, SPN: {GATE_MODE: clipped}}",
            ],
            "MODEL.SPN.GATE_MODE is 'clipped'; allowed where masks are propagated",
        ),
        ([REFINER, "MODEL: {SPN: {STRIDE: 3}}"], "MODEL.SPN.STRIDE is 3; allowed: 1, 2, 4"),
        (
            [REFINER, "MODEL: {SPN: {IN_FEATURES: [p9]}}"],
            "MODEL.SPN.IN_FEATURES names p9; the backbone has",
        ),
    ],
)
def test_a_wrong_key_is_reported_in_one_line(texts, message):
    with pytest.raises(ValueError, match=message) as error:
        build_model(small_cfg_with(*texts))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "build, message",
    [
        (
            lambda: SPNRefiner(backbone=small_backbone(), num_masks=0),
            "num_masks is 0; allowed: 1 or more",
        ),
        (
            lambda: SPNRefiner(backbone=small_backbone(), jitter=-1),
            "jitter is -1; allowed: 0 or more",
        ),
        (
            lambda: SPNRefiner(backbone=small_backbone(), coarse_factors=[]),
            r"coarse_factors is \[\]; allowed: one or more integers, 1 or more",
        ),
        (
            lambda: SPNRefiner(backbone=small_backbone(), coarse_factors=[4, 0]),
            r"coarse_factors is \[4, 0\]; allowed: one or more integers, 1 or more",
        ),
    ],
)
def test_a_wrong_argument_is_reported_in_one_line(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
