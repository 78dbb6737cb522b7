"""Hypercolumns: a grid of classifiers and masks against their definitions, and a training step."""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch import nn

from rpe_d2.baselines import HypercolumnMaskHead
from rpe_d2.baselines.classifier_grid import grid_weights, mix_classifiers
from tests.helpers.baseline_configs import ROI_HEADS, seeded_model
from tests.helpers.models import training_input
from tests.reference import hypercolumns as reference

GUIDED = """
MODEL:
  BACKBONE: {NAME: build_guided_backbone}
  ROI_HEADS: {NAME: GuidedROIHeads}
  ROI_MASK_HEAD: {IN_FEATURES: [image, p2, p4]}
"""
CASCADE = """
MODEL:
  ROI_HEADS: {NAME: GuidedCascadeROIHeads}
  ROI_BOX_HEAD: {CLS_AGNOSTIC_BBOX_REG: True}
"""
VGG = """
MODEL:
  BACKBONE: {NAME: build_vgg16_backbone}
  VGG: {OUT_FEATURES: [pool3, pool4, conv5_3, fc7], FC_DIM: 16}
  RPN: {IN_FEATURES: [conv5_3]}
  ANCHOR_GENERATOR: {SIZES: [[16, 32, 64]]}
  ROI_HEADS: {NAME: GuidedROIHeads, IN_FEATURES: [conv5_3]}
  ROI_MASK_HEAD: {IN_FEATURES: [pool3, pool4, fc7]}
"""


def hypercolumns(*texts):
    return seeded_model(*ROI_HEADS["hypercolumn"], *texts)


@pytest.mark.parametrize("grid, size", [(1, 3), (3, 7), (5, 4)])
def test_grid_weights_equal_the_reference(grid, size):
    weights = grid_weights(grid, size)
    for row in range(size):
        for column in range(size):
            positions = (row + 0.5) / size, (column + 0.5) / size
            expected = [
                reference.weight_of(i, grid, positions[0])
                * reference.weight_of(j, grid, positions[1])
                for i in range(grid)
                for j in range(grid)
            ]
            np.testing.assert_allclose(weights[:, row, column].numpy(), expected, atol=1e-6)
    assert torch.allclose(weights.sum(dim=0), torch.ones(size, size))


def test_mixing_has_a_gradient_for_extreme_logits_too():
    torch.manual_seed(0)
    weights = grid_weights(2, 3).double()
    logits = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: mix_classifiers(x, weights), logits)
    extreme = torch.full((1, 4, 3, 3), 1e4, requires_grad=True)
    mixed = mix_classifiers(extreme, grid_weights(2, 3))
    mixed.sum().backward()
    assert mixed.min() > 1e3 and extreme.grad.isfinite().all()


@pytest.mark.parametrize("num_classes", [3, 1])
def test_masks_equal_the_reference(num_classes):
    """Maps have different channels and strides; regions of two images have several classes."""
    torch.manual_seed(0)
    shapes = {
        "fine": ShapeSpec(channels=3, stride=2),
        "middle": ShapeSpec(channels=2, stride=4),
        "coarse": ShapeSpec(channels=4, stride=8),
    }
    head = HypercolumnMaskHead(
        shapes, num_classes=num_classes, grid=3, resolution=7, sampling_ratio=1
    ).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    maps = {
        name: torch.randn(2, s.channels, 48 // s.stride, 64 // s.stride, dtype=torch.float64)
        for name, s in shapes.items()
    }
    boxes = [
        torch.tensor([[4.0, 3.0, 30.5, 29.0], [20.0, 10.0, 64.0, 48.0]], dtype=torch.float64),
        torch.tensor([[10.5, 2.25, 40.0, 17.5]], dtype=torch.float64),
    ]
    classes = torch.tensor([2, 0, 2])
    masks = head.layers(maps, [Boxes(b) for b in boxes], classes).sigmoid()
    regions = np.array(
        [[number, *box] for number, part in enumerate(boxes) for box in part.tolist()]
    )
    layers = head.classifiers.values()
    weights = torch.cat([layer.weight.unflatten(0, (num_classes, 9)) for layer in layers], dim=2)
    bias = head.classifiers["fine"].bias.unflatten(0, (num_classes, 9))
    expected = reference.masks(
        [values.numpy() for values in maps.values()],
        [s.stride for s in shapes.values()],
        weights[..., 0, 0].detach().numpy(),
        bias.detach().numpy(),
        regions,
        [c if num_classes > 1 else 0 for c in classes.tolist()],
        3,
        7,
    )
    np.testing.assert_allclose(masks.detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    "texts",
    [(), (GUIDED,), (GUIDED, CASCADE), (VGG,)],
    ids=["standard", "guided", "cascade", "vgg"],
)
def test_a_training_step_and_detections(texts):
    model = hypercolumns(*texts)
    with EventStorage():
        losses = model([training_input(), training_input((64, 64))])
    assert losses["loss_mask"].isfinite()
    losses["loss_mask"].backward()
    for name, layer in model.roi_heads.mask_head.classifiers.items():
        gradient = layer.weight.grad.unflatten(0, (3, 25)).flatten(1).abs().sum(dim=1)
        # The second class has no object.
        assert gradient[0] > 0 and gradient[2] > 0 and gradient[1] == 0, name
    model.eval()
    image = training_input()["image"]
    found = model([{"image": image, "height": 128, "width": 192}])[0]["instances"]
    assert len(found) > 0 and found.pred_masks.shape == (len(found), 128, 192)
    assert found.pred_masks.dtype == torch.bool


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "MODEL: {ROI_MASK_HEAD: {POOLER_TYPE: ROIAlignV2}}",
            "MODEL.ROI_MASK_HEAD.POOLER_TYPE is 'ROIAlignV2'; "
            'allowed with HypercolumnMaskHead: ""',
        ),
        (
            "MODEL: {HYPERCOLUMN: {RESOLUTION: 0}}",
            "MODEL.HYPERCOLUMN.RESOLUTION is 0; allowed: 1 to 512",
        ),
    ],
)
def test_a_wrong_key_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        hypercolumns(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("argument", ["num_classes", "grid", "resolution"])
def test_a_wrong_argument_is_refused_in_one_line(argument):
    shapes = {"p2": ShapeSpec(channels=4, stride=4)}
    with pytest.raises(ValueError, match=f"^{argument} is 0; allowed: 1 or more"):
        HypercolumnMaskHead(shapes, **{"num_classes": 2, argument: 0})
