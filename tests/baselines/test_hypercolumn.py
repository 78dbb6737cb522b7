"""Hypercolumns: a grid of classifiers against its definition, maps of any kind, what is learned and found."""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from rpe_d2.baselines import HypercolumnMaskHead
from rpe_d2.baselines.classifier_grid import grid_weights, mix_classifiers
from tests.helpers.models import small_cfg, training_input
from tests.modeling.test_spn import MASK_RCNN
from tests.reference import hypercolumns as reference

HYPERCOLUMNS = (
    *MASK_RCNN,
    "MODEL.ROI_MASK_HEAD.NAME",
    "HypercolumnMaskHead",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE",
    "",
    "MODEL.HYPERCOLUMN.RESOLUTION",
    20,
)
GUIDED = (
    *HYPERCOLUMNS,
    "MODEL.BACKBONE.NAME",
    "build_guided_backbone",
    "MODEL.ROI_HEADS.NAME",
    "GuidedROIHeads",
    "MODEL.ROI_MASK_HEAD.IN_FEATURES",
    ["image", "p2", "p4"],
)
CASCADE = (
    *GUIDED,
    "MODEL.ROI_HEADS.NAME",
    "GuidedCascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
    True,
)
VGG = (
    *HYPERCOLUMNS,
    "MODEL.BACKBONE.NAME",
    "build_vgg16_backbone",
    "MODEL.VGG.OUT_FEATURES",
    ["pool3", "pool4", "conv5_3", "fc7"],
    "MODEL.VGG.FC_DIM",
    16,
    "MODEL.RPN.IN_FEATURES",
    ["conv5_3"],
    "MODEL.ANCHOR_GENERATOR.SIZES",
    [[16, 32, 64]],
    "MODEL.ROI_HEADS.NAME",
    "GuidedROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES",
    ["conv5_3"],
    "MODEL.ROI_MASK_HEAD.IN_FEATURES",
    ["pool3", "pool4", "fc7"],
)


def hypercolumns(*overrides):
    torch.manual_seed(0)
    return build_model(small_cfg(*HYPERCOLUMNS, *overrides))


@pytest.mark.parametrize("grid, size", [(1, 3), (3, 7), (5, 4)])
def test_grid_weights_are_the_definition(grid, size):
    found = grid_weights(grid, size)
    for row in range(size):
        for column in range(size):
            positions = (row + 0.5) / size, (column + 0.5) / size
            expected = [
                reference.weight_of(i, grid, positions[0])
                * reference.weight_of(j, grid, positions[1])
                for i in range(grid)
                for j in range(grid)
            ]
            np.testing.assert_allclose(found[:, row, column].numpy(), expected, atol=1e-6)
    assert torch.allclose(found.sum(dim=0), torch.ones(size, size))


def test_mixing_has_a_gradient_and_survives_sure_classifiers():
    torch.manual_seed(0)
    weights = grid_weights(2, 3).double()
    scores = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: mix_classifiers(s, weights), scores)
    sure = torch.full((1, 4, 3, 3), 1e4, requires_grad=True)
    mixed = mix_classifiers(sure, grid_weights(2, 3))
    mixed.sum().backward()
    assert mixed.min() > 1e3 and sure.grad.isfinite().all()


@pytest.mark.parametrize("num_classes", [3, 1])
def test_masks_are_the_definition(num_classes):
    """Maps of different channels and strides, two pictures, regions of several classes."""
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
    found = head.layers(maps, [Boxes(b) for b in boxes], classes).sigmoid()
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
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    "overrides", [(), GUIDED, CASCADE, VGG], ids=["standard", "guided", "cascade", "vgg"]
)
def test_a_step_and_what_is_found(overrides):
    model = hypercolumns(*overrides)
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


def test_training_learns():
    model = hypercolumns("MODEL.HYPERCOLUMN.GRID", 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    item, history = training_input(), []
    with EventStorage():
        for _ in range(25):
            loss = model([item])
            optimizer.zero_grad()
            sum(loss.values()).backward()
            optimizer.step()
            history.append(float(loss["loss_mask"]))
    assert np.mean(history[-5:]) < 0.6 * history[0]


def test_given_boxes_get_masks():
    model = hypercolumns().eval()
    images = ImageList.from_tensors([torch.randn(3, 64, 96), torch.randn(3, 64, 96)], 32)
    boxes = Boxes(torch.tensor([[4.0, 4, 40, 30], [8, 8, 60, 60]]))
    given = [
        Instances((64, 96), pred_boxes=boxes, pred_classes=torch.tensor([2, 0])),
        Instances((64, 96), pred_boxes=boxes[:0], pred_classes=torch.zeros(0, dtype=torch.int64)),
    ]
    with torch.no_grad():
        features = model.backbone(images.tensor)
        found = model.roi_heads.forward_with_given_boxes(features, given)
    assert [part.pred_masks.shape for part in found] == [(2, 1, 20, 20), (0, 1, 20, 20)]


def test_pictures_without_objects_and_without_proposals():
    model = hypercolumns()
    item = training_input()
    item["instances"] = item["instances"][:0]
    with EventStorage():
        losses = model([item])
    assert all(loss.isfinite() for loss in losses.values()) and losses["loss_mask"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.roi_heads.mask_head.parameters())
    none = hypercolumns("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.999).eval()
    found = none([{"image": item["image"]}])[0]["instances"]
    assert len(found) == 0 and found.pred_masks.shape == (0, 64, 96)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"),
            "MODEL.ROI_MASK_HEAD.POOLER_TYPE is 'ROIAlignV2'; allowed with HypercolumnMaskHead: \"\"",
        ),
        (("MODEL.HYPERCOLUMN.GRID", 0), "MODEL.HYPERCOLUMN.GRID is 0; allowed: 1 or more"),
        (
            ("MODEL.HYPERCOLUMN.RESOLUTION", 0),
            "MODEL.HYPERCOLUMN.RESOLUTION is 0; allowed: 1 or more",
        ),
    ],
)
def test_a_wrong_key_is_one_line(overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        hypercolumns(*overrides)
    assert "\n" not in str(error.value)
