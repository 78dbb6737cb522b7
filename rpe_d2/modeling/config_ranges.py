"""Ranges of the numeric keys, checked when a model is built."""

import math
from functools import reduce
from operator import getitem

from detectron2.config import CfgNode

# key below MODEL: (smallest, largest); both are allowed.
_TINY = 1e-6
_WINDOW_RANGES = {
    "WINDOW": (1, math.inf),
    "OBJECT_SIZE": (_TINY, math.inf),
    "POSITIVE_SHIFT": (0, math.inf),
    "POSITIVE_SCALE": (0, math.inf),
    "BATCH_SIZE_PER_IMAGE": (2, math.inf),
    "CONV_DIM": (1, math.inf),
    "PRE_NMS_TOPK": (1, math.inf),
    "POST_NMS_TOPK_TRAIN": (0, math.inf),
    "POST_NMS_TOPK_TEST": (1, math.inf),
    "NMS_THRESH": (0, 1),
    "MASK_THRESHOLD": (0.01, 0.99),
}
_RANGES = {
    **{f"DEEPMASK.{key}": limits for key, limits in _WINDOW_RANGES.items()},
    **{f"INSTANCE_FCN.{key}": limits for key, limits in _WINDOW_RANGES.items()},
    "DEEPMASK.CODE_DIM": (1, math.inf),
    "DEEPMASK.SCORE_DIM": (1, math.inf),
    "DEEPMASK.DROPOUT": (0, 1 - _TINY),
    "DEEPMASK.MASK_SIZE": (1, math.inf),
    "DEEPMASK.SCORE_LOSS_WEIGHT": (0, math.inf),
    "DEEPMASK.SHARPMASK_DIM": (1, math.inf),
    "INSTANCE_FCN.PARTS": (1, math.inf),
    "INSTANCE_FCN.MASK_LOSS_WEIGHT": (0, math.inf),
    "MNC.MASK_SIZE": (1, math.inf),
    "MNC.MASK_DIM": (1, math.inf),
    "MNC.FC_DIM": (1, math.inf),
    "MNC.MASK_LOSS_WEIGHT": (0, math.inf),
    "MNC.EASY_BACKGROUND": (0, 1),
    "MNC.VOTE_IOU": (0, 1),
    "FCIS.CONV_DIM": (1, math.inf),
    "FCIS.PARTS": (1, math.inf),
    "FCIS.CELLS": (1, math.inf),
    "FCIS.MASK_LOSS_WEIGHT": (0, math.inf),
    "FCIS.VOTE_IOU": (0, 1),
    "RPE.CONV_DIM": (1, math.inf),
    "RPE.NUM_CONVS": (0, math.inf),
    "RPE.NUM_CLASSES": (1, math.inf),
    "RPE.EMBEDDING_DIM": (1, math.inf),
    "RPE.VOTE_UNIT": (_TINY, math.inf),
    "RPE.MAX_SIZE": (32, math.inf),
    "RPE.MARGIN": (0, 1),
    "RPE.POSITIVE_WEIGHT": (0, math.inf),
    "RPE.NEGATIVE_WEIGHT": (0, math.inf),
    "RPE.NEGATIVE_RADIUS": (0, math.inf),
    "RPE.TRAIN_POINTS": (1, math.inf),
    "RPE.QUALITY_IMAGES": (0, math.inf),
    "RPE.FOREGROUND_THRESHOLD": (0.1, 1),
    "RPE.MERGE_COSINE": (-1, 1),
    "RPE.MERGE_DISTANCE": (0, math.inf),
    "RPE.MIN_AREA": (0, math.inf),
    "RPE.MAX_GROUPS": (1, math.inf),
    "RPE.OVERLAP_THRESH_TEST": (0, 1),
    "RPE.SCORE_THRESH_TEST": (0, 1),
    "RPE.MASK_THRESHOLD": (_TINY, 0.99),
    "RPE.PROPOSAL_MASK_SIZE": (1, math.inf),
    "RPE.PROPOSALS.NUM_LEVELS": (1, math.inf),
    "RPE.PROPOSALS.MAX_KEYS": (1, math.inf),
    "RPE.PROPOSALS.MAX_GROUPS": (1, math.inf),
    "RPE.PROPOSALS.TIP_THRESHOLD": (_TINY, 1),
    "RPE.PROPOSALS.NMS_THRESH": (0, 1),
    "RPE.PROPOSALS.DUPLICATE_THRESH": (0, 1),
    "RPE.PROPOSALS.PRE_NMS_TOPK": (1, math.inf),
    "RPE.PROPOSALS.POST_NMS_TOPK_TRAIN": (0, math.inf),
    "RPE.PROPOSALS.POST_NMS_TOPK_TEST": (1, math.inf),
    "SEM_SEG_HEAD.PAIR_LOSS_WEIGHT": (-1, math.inf),
    "SEM_SEG_HEAD.NUM_CONVS": (0, math.inf),
    "BOUNDARY.CONV_DIM": (1, math.inf),
    "BOUNDARY.EMBEDDING_DIM": (1, math.inf),
    "BOUNDARY.MIN_ANNOTATORS": (1, math.inf),
    "BOUNDARY.PAIR_LOSS_WEIGHT": (0, math.inf),
    "BOUNDARY.LOGISTIC_LOSS_WEIGHT": (0, math.inf),
    "BOUNDARY.MARGIN": (0, 1),
    "BOUNDARY.POSITIVE_WEIGHT": (0, math.inf),
    "BOUNDARY.NEGATIVE_WEIGHT": (0, math.inf),
    "BOUNDARY.TRAIN_POINTS": (2, math.inf),
    "SPN.CONV_DIM": (1, math.inf),
    "SPN.CHANNELS": (0, math.inf),
    "SPN.NUM_UNITS": (0, math.inf),
    "SPN.RESOLUTION": (0, math.inf),
    "SPN.LOSS_WEIGHT": (0, math.inf),
    "SPN.NUM_MASKS": (1, math.inf),
    "SPN.JITTER": (0, math.inf),
    "VGG.FC_DIM": (1, math.inf),
    "VGG.DROPOUT": (0, 1 - _TINY),
    "MEAN_SHIFT.BANDWIDTH": (_TINY, math.inf),
    "MEAN_SHIFT.SPATIAL_BANDWIDTH": (0, math.inf),
    "MEAN_SHIFT.RELATIVE_BANDWIDTH": (0, math.inf),
    "MEAN_SHIFT.TRAIN_LOOPS": (0, math.inf),
    "MEAN_SHIFT.TEST_LOOPS": (0, math.inf),
    "MEAN_SHIFT.TOLERANCE": (0, math.inf),
    "MEAN_SHIFT.MAX_KEYS": (1, math.inf),
}


def check_ranges(cfg: CfgNode) -> None:
    """Checks the numbers of MODEL.RPE, SEM_SEG_HEAD, BOUNDARY, SPN, VGG, MEAN_SHIFT, DEEPMASK, INSTANCE_FCN, MNC and FCIS.

    Raises:
        ValueError: one is out of range; the message names the key, the value and what is allowed.
    """
    for key, (low, high) in _RANGES.items():
        value = reduce(getitem, key.split("."), cfg.MODEL)
        if not low <= value <= high:
            allowed = f"{low} or more" if high == math.inf else f"{low} to {high}"
            raise ValueError(f"MODEL.{key} is {value}; allowed: {allowed}")
    shift = cfg.MODEL.MEAN_SHIFT
    if shift.RELATIVE_BANDWIDTH > 0 and not (cfg.MODEL.RPE.VOTES and shift.SPATIAL_BANDWIDTH > 0):
        raise ValueError(
            f"MODEL.MEAN_SHIFT.RELATIVE_BANDWIDTH is {shift.RELATIVE_BANDWIDTH}, which needs MODEL.RPE.VOTES True and "
            "MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH above 0, the smallest sigma"
        )
    for key in ("MEAN_SHIFT.TEST_SCALES", "RPE.PROPOSALS.SCALES", "BOUNDARY.TEST_SCALES"):
        scales = reduce(getitem, key.split("."), cfg.MODEL)
        if not scales or min(scales) <= 0:
            raise ValueError(f"MODEL.{key} is {scales}; allowed: one or more factors above 0")
    factors = cfg.MODEL.SPN.COARSE_FACTORS
    if not factors or any(not isinstance(f, int) or f < 1 for f in factors):
        raise ValueError(
            f"MODEL.SPN.COARSE_FACTORS is {factors}; allowed: one or more whole numbers, 1 or more"
        )
    if shift.BANDWIDTH_MODE == "margin" and cfg.MODEL.RPE.MARGIN == 1:
        raise ValueError(
            "MODEL.RPE.MARGIN is 1, which leaves no bandwidth; set MODEL.MEAN_SHIFT.BANDWIDTH_MODE fixed"
        )
