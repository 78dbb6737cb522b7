"""Configurations of the compared systems as YAML text, and models built from them."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch import nn

from tests.helpers.configs import MASK_RCNN, small_cfg_with

# Levels of the FPN of the small configuration.
FPN_SHAPES = {f"p{level}": ShapeSpec(channels=32, stride=2**level) for level in range(2, 7)}
MNC = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  MASK_ON: True
  PROPOSAL_GENERATOR: {NAME: MNCRPN}
  RPN:
    IN_FEATURES: [p2, p3, p4]
    POST_NMS_TOPK_TRAIN: 40
    POST_NMS_TOPK_TEST: 20
  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64]]}
  ROI_HEADS:
    NAME: MNCROIHeads
    IN_FEATURES: [p2, p3, p4]
    NUM_CLASSES: 3
    BATCH_SIZE_PER_IMAGE: 32
    SCORE_THRESH_TEST: 0.0
  MNC: {FC_DIM: 16, MASK_DIM: 16}
"""
_FCIS = """
MODEL:
  PROPOSAL_GENERATOR: {NAME: RPN}
  ROI_HEADS: {NAME: FCISROIHeads, IN_FEATURES: [p2]}
  FCIS: {CONV_DIM: 16}
"""
_SDS = "MODEL: {ROI_HEADS: {NAME: SDSROIHeads}}"
_MASK_PROPOSALS = """
MODEL:
  PROPOSAL_GENERATOR: {NAME: MeanShiftProposalGenerator, MASKS_IN_TRAINING: True}
  RPE: {PROPOSAL_MASK_SIZE: 14}
"""
_HYPERCOLUMN = """
MODEL:
  ROI_MASK_HEAD: {NAME: HypercolumnMaskHead, POOLER_TYPE: ""}
  HYPERCOLUMN: {RESOLUTION: 20}
"""
# The texts of each system with RoI heads.
ROI_HEADS = {
    "mnc": (MNC,),
    "fcis": (MNC, _FCIS),
    "sds": (MASK_RCNN, _SDS),
    "sds_masks": (MASK_RCNN, _SDS, _MASK_PROPOSALS),
    "hypercolumn": (MASK_RCNN, _HYPERCOLUMN),
}


def seeded_model(*texts: str) -> nn.Module:
    """Builds a model from the small configuration with YAML texts, with seeded weights."""
    torch.manual_seed(0)
    return build_model(small_cfg_with(*texts))
