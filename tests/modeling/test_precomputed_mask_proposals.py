"""Region proposals from files in Detectron2's R-CNN, with SDS and hypercolumns."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from rpe_d2.data import register_mask_proposals
from rpe_d2.engine.host_models import inference_inputs
from rpe_d2.engine.trainer import Trainer
from rpe_d2.modeling import PrecomputedMaskProposals
from tests.helpers.baseline_configs import ROI_HEADS, seeded_model
from tests.helpers.configs import small_cfg_with
from tests.helpers.models import training_input

PRECOMPUTED = """
MODEL:
  PROPOSAL_GENERATOR: {NAME: PrecomputedMaskProposals, MASKS_IN_TRAINING: True}
  RPE: {PROPOSAL_MASK_SIZE: 14}
  ROI_HEADS: {SCORE_THRESH_TEST: 0.0, BATCH_SIZE_PER_IMAGE: 16}
DATASETS:
  TRAIN: [shapes_train]
  TEST: [shapes_val]
"""
SDS = """
MODEL:
  BACKBONE: {NAME: build_guided_backbone}
  ROI_MASK_HEAD: {SUPERPIXELS: 40}
"""
HYPERCOLUMN = """
MODEL:
  BACKBONE: {NAME: build_guided_backbone}
  PROPOSAL_GENERATOR: {MASKS_IN_TRAINING: False}
  ROI_HEADS: {NAME: GuidedROIHeads}
  ROI_MASK_HEAD: {IN_FEATURES: [image, p2, p4], SUPERPIXELS: 40}
"""
SYSTEMS = {"sds": (*ROI_HEADS["sds"], SDS), "hypercolumn": (*ROI_HEADS["hypercolumn"], HYPERCOLUMN)}


def item(with_masks: bool, **changes) -> dict:
    """A training image whose proposals are boxes around its two squares, and noise."""
    content = training_input()
    boxes = torch.tensor([[3.0, 3, 31, 31], [28, 10, 62, 52], [0, 40, 20, 60], [70, 0, 90, 20]])
    proposals = Instances((64, 96), proposal_boxes=Boxes(boxes), objectness_logits=torch.ones(4))
    if with_masks:
        proposals.proposal_masks = torch.full((4, 14, 14), 255, dtype=torch.uint8)
    return {**content, "proposals": proposals, **changes}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_training_step_and_detections(system):
    model = seeded_model(SYSTEMS[system][0], PRECOMPUTED, *SYSTEMS[system][1:])
    assert model.proposal_generator is None
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    batch = [item(system == "sds"), item(system == "sds")]
    losses = []
    for _ in range(3):
        with EventStorage():
            parts = model(batch)
        optimizer.zero_grad()
        sum(parts.values()).backward()
        optimizer.step()
        losses.append(float(sum(parts.values())))
    assert losses[-1] < losses[0] and "loss_mask" in parts
    with torch.no_grad():
        found = model.eval()([item(True, height=128, width=192)])[0]["instances"]
    assert len(found) and found.pred_masks.shape[1:] == (128, 192)
    # All masks consist of whole superpixels inside their boxes, at 112 cells.
    with torch.no_grad():
        raw = model.inference([item(True)], do_postprocess=False)[0]
    assert raw.pred_masks.shape[1:] == (1, 112, 112)
    assert all(len(mask.unique()) <= 60 for mask in raw.pred_masks)


def test_the_key_declares_its_input_and_needs_an_rcnn():
    cfg = small_cfg_with(ROI_HEADS["sds"][0], PRECOMPUTED)
    assert inference_inputs(cfg) == ("proposals",)
    assert PrecomputedMaskProposals(cfg, {}) is None
    alone = small_cfg_with("MODEL: {META_ARCHITECTURE: ProposalNetwork}", PRECOMPUTED)
    alone.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    with pytest.raises(ValueError, match="ProposalNetwork; allowed: GeneralizedRCNN") as error:
        build_model(alone)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "entries, message",
    [
        ("", "DATASETS.PROPOSAL_MASKS_TRAIN and _TEST are empty"),
        ("PROPOSAL_MASKS_TRAIN: ['a=b.json']", "TRAIN has no entry for shapes_train of DATASETS"),
        (
            "PROPOSAL_MASKS_TRAIN: ['shapes_train=b.json'], PROPOSAL_MASKS_TEST: ['a=b.json']",
            "TEST has no entry for shapes_val of DATASETS.TEST",
        ),
        (
            "PROPOSAL_MASKS_TRAIN: ['shapes_train=b.json']",
            "TEST has no entry for shapes_val of DATASETS.TEST",
        ),
        ("PROPOSAL_MASKS_TEST: ['shapes_val=b.json']", ""),
    ],
)
def test_data_sets_need_files(entries, message):
    cfg = small_cfg_with(ROI_HEADS["sds"][0], PRECOMPUTED, f"DATASETS: {{{entries}}}")
    if not message:
        PrecomputedMaskProposals.check_run(cfg, False)
        return
    with pytest.raises(ValueError, match=message) as error:
        PrecomputedMaskProposals.check_run(cfg, False)
    assert "\n" not in str(error.value)


def test_an_evaluation_reads_the_regions(tmp_path):
    """From the file to detections, with the loader of the trainer."""
    name = "shapes_val_regions"
    items = DatasetCatalog.get("shapes_val")[:2]
    DatasetCatalog.register(name, lambda: items)
    path = tmp_path / "regions.json"
    path.write_text(
        json.dumps(
            [
                {"image_id": i["image_id"], "segmentation": a["segmentation"], "score": 0.5}
                for i in items
                for a in i["annotations"]
            ]
        )
    )
    register_mask_proposals("KEY", [f"{name}={path}"])
    cfg = small_cfg_with(
        ROI_HEADS["sds"][0],
        PRECOMPUTED,
        *ROI_HEADS["sds"][1:],
        "INPUT: {MIN_SIZE_TEST: 96}",
        "DATALOADER: {NUM_WORKERS: 0}",
        f"DATASETS: {{TEST: [{name}]}}",
    )
    model = build_model(cfg).eval()
    for batch, record in zip(Trainer.build_test_loader(cfg, name), items):
        assert len(batch[0]["proposals"]) == len(record["annotations"])
        with torch.no_grad():
            assert len(model(batch)[0]["instances"])
