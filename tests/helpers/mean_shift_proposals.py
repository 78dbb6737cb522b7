"""A small Mask R-CNN, with mean-shift proposals or without, and a batch for it."""

import torch
from detectron2.utils.events import EventStorage

from tests.helpers.models import small_cfg, training_input

SWAP = ("MODEL.PROPOSAL_GENERATOR.NAME", "MeanShiftProposalGenerator")


def mask_rcnn_cfg(*overrides):
    """Detectron2's Mask R-CNN, small: ResNet-18-FPN with 32 channels, 3 classes."""
    cfg = small_cfg("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.MASK_ON", True)
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.merge_from_list(list(overrides))
    return cfg


PROPOSALS_ONLY = ("MODEL.META_ARCHITECTURE", "ProposalNetwork")


BATCH_SQUARES = ((10, 10, 60, 60), (60, 20, 110, 80))


def batch():
    return [
        training_input((96, 128), BATCH_SQUARES, (0, 2)),
        training_input((96, 112), ((20, 30, 80, 90),), (1,)),
    ]


def train(model, steps, items, lr=1e-3):
    """Losses before each of some steps."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr)
    history = []
    for step in range(steps):
        with EventStorage(step):
            losses = model(items)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: float(loss) for name, loss in losses.items()})
    return history
