"""The mask head that refines its masks by spatial propagation."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from rpe_d2.modeling import SPNMaskHead
from tests.helpers.configs import MASK_RCNN, small_cfg_with
from tests.helpers.models import training_input
from tests.helpers.modules import assert_same_state_dict

SPN = "MODEL: {ROI_MASK_HEAD: {NAME: SPNMaskHead}}"


WHOLE_MAPS = """
MODEL:
  ROI_MASK_HEAD:
    NAME: SPNMaskHead
    POOLER_TYPE: ""
  SPN:
    RESOLUTION: 56
"""


GUIDED = """
MODEL:
  BACKBONE:
    NAME: build_guided_backbone
  ROI_HEADS:
    NAME: GuidedROIHeads
  ROI_MASK_HEAD:
    NAME: SPNMaskHead
    POOLER_TYPE: ""
    IN_FEATURES: [image, p2, p3, p4, p5]
  SPN:
    RESOLUTION: 56
"""


CASCADE = """
MODEL:
  ROI_HEADS:
    NAME: GuidedCascadeROIHeads
  ROI_BOX_HEAD:
    CLS_AGNOSTIC_BBOX_REG: True
"""


MASK_HEADS = {
    "pooled": [SPN],
    "whole_maps": [WHOLE_MAPS],
    "guided": [GUIDED],
    "cascade": [GUIDED, CASCADE],
}


def small_backbone():
    """A guided ResNet-18-FPN, as in the small configuration."""
    return build_backbone(small_cfg_with("MODEL: {BACKBONE: {NAME: build_guided_backbone}}"))


def mask_rcnn(*texts):
    torch.manual_seed(0)
    return build_model(small_cfg_with(MASK_RCNN, *texts))


def masks_of_given_boxes(model, image):
    """Predicts masks of fixed boxes, so that the box head has no influence."""
    boxes = Boxes(torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 8.0, 70.0, 60.0]]))
    instances = Instances((80, 80), pred_boxes=boxes, pred_classes=torch.tensor([2, 0]))
    with torch.no_grad():
        images = ImageList.from_tensors([image], 32)
        features = model.backbone(images.tensor)
        return model.roi_heads.forward_with_given_boxes(features, [instances])[0].pred_masks


@pytest.mark.parametrize("name", ["pooled", "whole_maps", "guided"])
def test_weights_of_mask_rcnn_load_and_give_its_masks(name):
    plain, refining = mask_rcnn().eval(), mask_rcnn(*MASK_HEADS[name]).eval()
    missing, unexpected = refining.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(
        name.startswith(("roi_heads.mask_head.guidance.", "roi_heads.mask_head.propagation."))
        for name in missing
    )
    image = torch.randn(3, 80, 80)
    expected, masks = masks_of_given_boxes(plain, image), masks_of_given_boxes(refining, image)
    side = masks.shape[-1]
    assert side == (28 if name == "pooled" else 56)
    expected = F.interpolate(
        expected.logit(), size=(side, side), mode="bilinear", align_corners=False
    ).sigmoid()
    torch.testing.assert_close(masks, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("texts", MASK_HEADS.values(), ids=MASK_HEADS)
def test_the_refined_loss_trains_the_whole_mask_head(texts):
    model = mask_rcnn(*texts)
    nn.init.normal_(model.roi_heads.mask_head.propagation.project.weight, std=0.1)
    with EventStorage() as storage:
        losses = model([training_input(), training_input()])
    assert losses["loss_mask"].isfinite() and losses["loss_mask_refined"].isfinite()
    # The metrics of coarse and refined masks have different names.
    for name in ("mask_rcnn/accuracy", "coarse/mask_rcnn/accuracy"):
        assert len(storage.history(name).values()) == 1
    head = model.roi_heads.mask_head
    losses["loss_mask_refined"].backward()
    for part in (head.propagation, head.guidance, head.predictor, head.mask_fcn1):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


@pytest.mark.parametrize("name", ["pooled", "guided"])
def test_images_without_objects(name):
    model = mask_rcnn(*MASK_HEADS[name])
    item = training_input()
    item["instances"] = item["instances"][:0]
    with EventStorage():
        losses = model([item])
        sum(losses.values()).backward()
    head = model.roi_heads.mask_head
    assert all(p.grad is not None for p in head.parameters())
    model.eval()
    output = model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])[0]["instances"]
    assert output.pred_masks.shape[1:] == (64, 64)


def test_class_agnostic_masks():
    model = mask_rcnn(SPN, "MODEL: {ROI_MASK_HEAD: {CLS_AGNOSTIC_MASK: True}}")
    with EventStorage():
        assert model([training_input()])["loss_mask_refined"].isfinite()


def test_a_directly_constructed_mask_head_equals_the_configured_one():
    text = """
MODEL:
  ROI_HEADS: {NUM_CLASSES: 80}
  ROI_MASK_HEAD: {NUM_CONV: 4, CONV_DIM: 256}
  SPN: {CONV_DIM: 64}
"""
    configured = mask_rcnn(SPN, text).roi_heads.mask_head
    direct = SPNMaskHead(ShapeSpec(channels=32), num_classes=80)
    assert_same_state_dict(direct, configured)
    for name in ("resolution", "refined_loss_weight", "loss_weight"):
        assert getattr(direct, name) == getattr(configured, name)
    assert direct.propagation.units == configured.propagation.units
    guided = mask_rcnn(GUIDED, text).roi_heads.mask_head
    input_shape = small_backbone().output_shape()
    input_shape.pop("p6")
    direct = SPNMaskHead(input_shape, num_classes=80, resolution=56)
    assert_same_state_dict(direct, guided)
    assert direct.roi_features.crop_sources == guided.roi_features.crop_sources


@pytest.mark.parametrize(
    "texts, message",
    [
        (
            [SPN, "MODEL: {SPN: {RESOLUTION: 40}}"],
            "MODEL.SPN.RESOLUTION is 40; allowed: multiples of 28",
        ),
        (
            [SPN, "MODEL: {SPN: {GATE_MODE: tanh}}"],
            "MODEL.SPN.GATE_MODE is 'tanh'; allowed: softmax",
        ),
        (
            [SPN, "MODEL: {SPN: {CONNECTIONS: 2}}"],
            "MODEL.SPN.CONNECTIONS is 2; allowed: 1 or 3",
        ),
        (
            [SPN, "MODEL: {SPN: {CHANNELS: 0}}"],
            "MODEL.SPN.CHANNELS is 0; allowed for masks: 1 or",
        ),
        (
            [SPN, "MODEL: {SPN: {RESOLUTION: -28}}"],
            "MODEL.SPN.RESOLUTION is -28; allowed: 0 to 4096",
        ),
        (
            [SPN, "MODEL: {SPN: {LOSS_WEIGHT: -1.0}}"],
            "MODEL.SPN.LOSS_WEIGHT is -1.0; allowed: 0 or",
        ),
        (
            [SPN, "MODEL: {SPN: {NUM_UNITS: -1}}"],
            "MODEL.SPN.NUM_UNITS is -1; allowed: 0 to 100",
        ),
        (
            [GUIDED, "MODEL: {ROI_MASK_HEAD: {POOLER_TYPE: ROIAlignV2}}"],
            "MODEL.ROI_MASK_HEAD.POOLER_TYPE is 'ROIAlignV2'; allowed",
        ),
        (
            [GUIDED, "MODEL: {ROI_MASK_HEAD: {IN_FEATURES: [stem, p2]}}"],
            "MODEL.ROI_MASK_HEAD.IN_FEATURES names stem; the backbone has",
        ),
        (
            [GUIDED, "MODEL: {ROI_MASK_HEAD: {IN_FEATURES: [image]}}"],
            "at least one feature map besides the image",
        ),
    ],
)
def test_a_wrong_key_is_reported_in_one_line(texts, message):
    with pytest.raises(ValueError, match=message) as error:
        mask_rcnn(*texts)
    assert "\n" not in str(error.value)


def test_a_wrong_argument_is_reported_in_one_line():
    message = "resolution is 40; allowed: multiples of 28, twice pooler_resolution"
    with pytest.raises(ValueError, match=message) as error:
        SPNMaskHead(ShapeSpec(channels=8), num_classes=3, resolution=40)
    assert "\n" not in str(error.value)
