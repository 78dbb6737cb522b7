"""Configurations as YAML text, and a function that merges them."""

import yaml
from detectron2.config import CfgNode

from tests.helpers.models import small_cfg

MASK_RCNN = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  MASK_ON: True
  RPN:
    IN_FEATURES: [p2, p3, p4, p5, p6]
  ANCHOR_GENERATOR:
    SIZES: [[16], [32], [64], [96], [128]]
  ROI_HEADS:
    NAME: StandardROIHeads
    IN_FEATURES: [p2, p3, p4, p5]
    NUM_CLASSES: 3
  ROI_BOX_HEAD:
    NAME: FastRCNNConvFCHead
    NUM_FC: 1
    FC_DIM: 32
    POOLER_RESOLUTION: 7
  ROI_MASK_HEAD:
    NAME: MaskRCNNConvUpsampleHead
    NUM_CONV: 2
    CONV_DIM: 32
    POOLER_RESOLUTION: 14
  SPN:
    CONV_DIM: 32
"""


def merge_yaml(cfg: CfgNode, *texts: str) -> CfgNode:
    """Merges YAML texts into a configuration in place, one after the other, and returns it."""
    for text in texts:
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(text)))
    return cfg


def small_cfg_with(*texts: str) -> CfgNode:
    """Returns the small configuration of :func:`small_cfg` with YAML texts merged into it."""
    return merge_yaml(small_cfg(), *texts)
