"""The components of this package in the models of Detectron2's own configuration files."""

import json
from pathlib import Path
from typing import Dict, Tuple

import detectron2
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import ImageList, Instances, Keypoints
from detectron2.utils.events import EventStorage

from rpe_d2 import add_rpe_config
from rpe_d2.modeling import MeanShiftProposalGenerator
from tests.helpers.configs import MASK_RCNN, small_cfg_with
from tests.helpers.models import training_input

ZOO = Path(detectron2.__file__).parent / "model_zoo/configs"
SWAP = {
    "swap": ["MODEL.PROPOSAL_GENERATOR.NAME", "MeanShiftProposalGenerator"],
    "head": ["MODEL.ROI_MASK_HEAD.NAME", "SPNMaskHead"],
}
SWAP["both"] = SWAP["swap"] + SWAP["head"]
# What makes the step fast and changes no component.
SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RPE.TRAIN_POINTS", 64,
    "MODEL.RPE.EMBEDDING_DIM", 8, "MODEL.RPE.CONV_DIM", 32, "MODEL.SPN.CONV_DIM", 32,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.RPE.PROPOSALS.POST_NMS_TOPK_TEST", 20,
    "TEST.DETECTIONS_PER_IMAGE", 10,
]  # fmt: skip
# Models of each kind: C4, dilated C5, FPN with cascade, panoptic.
SAMPLE = (
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
)


def zoo_cfg(name: str) -> CfgNode:
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.merge_from_file(str(ZOO / name))
    cfg.merge_from_list(SMALL)
    return cfg


def distinct_models():
    """Returns the file names of the R-CNNs with an RPN, one of each model.

    Files of the same model differ in its weights, its data and its schedule alone.
    """
    found = {}
    for path in sorted(ZOO.rglob("*.yaml")):
        name = str(path.relative_to(ZOO))
        cfg = zoo_cfg(name)
        is_rcnn = cfg.MODEL.META_ARCHITECTURE in ("GeneralizedRCNN", "PanopticFPN")
        if not is_rcnn or cfg.MODEL.PROPOSAL_GENERATOR.NAME != "RPN":
            continue
        found.setdefault(json.dumps(cfg.MODEL, sort_keys=True, default=str), name)
    return sorted(found.values())


def needs_zoo():
    if not ZOO.is_dir():
        pytest.skip(f"the installed Detectron2 has no configuration files in {ZOO}")


def one_step(cfg: CfgNode) -> Tuple[Dict[str, torch.Tensor], Instances]:
    """Trains one step on a tiny image and predicts it; returns the losses and the instances."""
    torch.manual_seed(0)
    item = training_input()
    item["sem_seg"] = torch.zeros(64, 96, dtype=torch.int64)
    instances = item["instances"]
    if cfg.MODEL.KEYPOINT_ON:
        points = torch.rand(len(instances), cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, 3) * 30
        points[..., 2] = 2
        instances.gt_keypoints = Keypoints(points)
        instances.gt_classes[:] = 0
    model = build_model(cfg)
    with EventStorage():
        losses = model.train()([item])
    total = sum(losses.values())
    assert torch.isfinite(total), losses
    total.backward()
    with torch.no_grad():
        output = model.eval()([{key: item[key] for key in ("image", "height", "width")}])[0]
    assert output["instances"].image_size == (64, 96)
    return losses, output["instances"]


@pytest.mark.release
@pytest.mark.parametrize("name", SAMPLE)
def test_each_kind_of_model_trains_and_predicts_with_both_components(name):
    needs_zoo()
    cfg = zoo_cfg(name)
    cfg.merge_from_list(SWAP["both"])
    losses, instances = one_step(cfg)
    assert torch.isfinite(sum(losses.values())) and instances.has("pred_masks")


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(SWAP))
def test_every_model_trains_and_predicts(variant):
    """Deformable convolution does not run on CPUs, so two files with it cannot pass there."""
    needs_zoo()
    failed, count = [], 0
    for name in distinct_models():
        cfg = zoo_cfg(name)
        cfg.merge_from_list(SWAP[variant])
        cfg.MODEL.MASK_ON = cfg.MODEL.MASK_ON or variant != "swap"
        count += 1
        try:
            one_step(cfg)
        except Exception as error:  # the sweep goes on and reports all of them
            failed.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            print(failed[-1], flush=True)
    print(f"{count - len(failed)} of {count} models pass", flush=True)
    assert not [line for line in failed if "dconv" not in line], "\n".join(failed)


def test_the_masks_of_c4_keep_the_size_of_its_features():
    """Its RoI features have half of POOLER_RESOLUTION."""
    text = """
    MODEL:
      BACKBONE: {NAME: build_resnet_backbone}
      RESNETS: {DEPTH: 50, WIDTH_PER_GROUP: 16, OUT_FEATURES: [res4]}
      RPN: {IN_FEATURES: [res4]}
      ANCHOR_GENERATOR: {SIZES: [[16, 32, 64]]}
      ROI_HEADS: {NAME: Res5ROIHeads, IN_FEATURES: [res4]}
      ROI_BOX_HEAD: {NAME: '', POOLER_RESOLUTION: 14}
      ROI_MASK_HEAD: {NAME: SPNMaskHead, POOLER_RESOLUTION: 14}
    """
    for resolution, side in ((0, 14), (56, 28)):
        cfg = small_cfg_with(MASK_RCNN, text, f"MODEL: {{SPN: {{RESOLUTION: {resolution}}}}}")
        one_step(cfg)
        head = build_model(cfg).roi_heads.mask_head
        features = torch.randn(3, head.conv_norm_relus[0].in_channels, 7, 7)
        upsampled, logits = head._upsampled_and_logits(features)
        refined = head._refine(logits[:, :1], {"pooled": features, "upsampled": upsampled})
        assert refined.shape == (3, 1, side, side)


def test_guided_roi_heads_on_c4_are_refused_in_one_line():
    text = "MODEL: {ROI_HEADS: {NAME: GuidedROIHeads}, ROI_BOX_HEAD: {NAME: ''}}"
    with pytest.raises(ValueError, match=r"ROI_BOX_HEAD.NAME is ''; GuidedROIHeads needs .*Res5"):
        build_model(small_cfg_with(MASK_RCNN, text))


def test_features_of_branches_are_refused_in_one_line():
    """TridentNet's backbone stacks the maps of its branches as more images."""
    generator = MeanShiftProposalGenerator({"p2": ShapeSpec(channels=8, stride=4)})
    images = ImageList(torch.zeros(2, 3, 32, 32), [(32, 32)] * 2)
    with pytest.raises(ValueError) as caught:
        generator(images, {"p2": torch.zeros(6, 8, 8, 8)})
    assert "gets features of 6 images for a batch of 2; allowed" in str(caught.value)
    assert "\n" not in str(caught.value)
