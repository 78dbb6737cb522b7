"""What the RoI heads of all compared systems have in common: training and detections."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from tests.helpers.baseline_configs import ROI_HEADS, seeded_model
from tests.helpers.models import training_input

MASK_SIZES = {"mnc": 28, "fcis": 21, "sds": 28, "sds_masks": 28, "hypercolumn": 20}
each_system = pytest.mark.parametrize("system", ROI_HEADS)


@pytest.mark.parametrize(
    "system, rate, steps, fall, learned",
    [
        ("mnc", 1e-3, 25, 0.8, ["loss_mask", "loss_seg_cls", "loss_mask_stage5"]),
        ("fcis", 2e-3, 30, 0.8, ["loss_mask", "loss_cls"]),
        ("sds", 2e-3, 25, 0.8, ["loss_cls", "loss_mask_coarse", "loss_mask"]),
        ("sds_masks", 2e-3, 25, 0.8, ["loss_cls", "loss_mask_coarse", "loss_mask"]),
        ("hypercolumn", 2e-3, 25, 0.6, ["loss_mask"]),
    ],
)
def test_losses_reach_all_parameters_and_fall(system, rate, steps, fall, learned):
    model = seeded_model(*ROI_HEADS[system])
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    item, history = training_input(), []
    with EventStorage():
        for number in range(steps):
            losses = model([item])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            # In the first step, the gradient of SDS's coarse masks is almost 0.
            if number == 1:
                parameters = model.roi_heads.parameters()
                assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
            optimizer.step()
            history.append({name: float(loss) for name, loss in losses.items()})
    assert {"loss_cls", "loss_box_reg", *learned} <= set(history[0])
    for name in learned:
        assert np.mean([h[name] for h in history[-5:]]) < fall * history[0][name], name
    if system.startswith("sds"):
        found = model.eval()([{"image": item["image"], "height": 128, "width": 192}])
        assert found[0]["instances"].pred_masks.any()


@each_system
def test_detections_have_the_format_of_detectron2(system):
    model = seeded_model(*ROI_HEADS[system]).eval()
    image = training_input()["image"]
    found = model([{"image": image, "height": 128, "width": 192}])[0]["instances"]
    assert set(found.get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    assert 0 < len(found) <= 100 and found.image_size == (128, 192)
    assert found.pred_masks.shape == (len(found), 128, 192)
    assert found.pred_masks.dtype == torch.bool
    assert (found.scores[:-1] >= found.scores[1:]).all() and found.pred_classes.max() < 3
    strict = "MODEL: {ROI_HEADS: {SCORE_THRESH_TEST: 1.0}}"
    none = seeded_model(*ROI_HEADS[system], strict).eval()([{"image": image}])[0]["instances"]
    assert len(none) == 0 and none.pred_masks.shape == (0, 64, 96)


@each_system
def test_given_boxes_get_masks(system):
    model = seeded_model(*ROI_HEADS[system]).eval()
    images = ImageList.from_tensors([torch.randn(3, 64, 96), torch.randn(3, 64, 96)], 32)
    boxes = Boxes(torch.tensor([[4.0, 4, 40, 30], [8, 8, 60, 60]]))
    no_class = torch.zeros(0, dtype=torch.int64)
    given = [
        Instances((64, 96), pred_boxes=boxes, pred_classes=torch.tensor([2, 0])),
        Instances((64, 96), pred_boxes=boxes[:0], pred_classes=no_class),
    ]
    with torch.no_grad():
        features = model.backbone(images.tensor)
        found = model.roi_heads.forward_with_given_boxes(features, given)
    size = MASK_SIZES[system]
    assert [part.pred_masks.shape for part in found] == [(2, 1, size, size), (0, 1, size, size)]


@each_system
def test_images_without_objects(system):
    model = seeded_model(*ROI_HEADS[system])
    item = training_input()
    item["instances"] = item["instances"][:0]
    with EventStorage():
        losses = model([item])
    assert all(loss.isfinite() for loss in losses.values()) and losses["loss_mask"] == 0
    sum(losses.values()).backward()
    parameters = list(model.roi_heads.parameters())
    if system == "mnc":
        parameters += model.proposal_generator.parameters()
    assert all(p.grad is not None for p in parameters)
