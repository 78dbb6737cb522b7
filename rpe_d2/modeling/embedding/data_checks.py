"""Warnings about settings with which grouping cannot find the objects of the data."""

import logging
import math
from typing import Dict

import numpy as np
from detectron2.config import CfgNode

from rpe_d2.ops.sphere import min_margin

logger = logging.getLogger("rpe_d2")

# The share of the objects that may be too small: data sets have a few stray masks of one pixel.
_TOLERATED = 0.01
# Cells along a side of an object below which its mask cannot be told from its neighbors'.
_MIN_CELLS = 2


def check_separation(cfg: CfgNode, max_instances: int) -> None:
    """Warns where the embeddings cannot separate the objects of the fullest training image.

    Args:
        cfg: the configuration.
        max_instances: number of objects of that image.
    """
    rpe = cfg.MODEL.RPE
    if rpe.NEGATIVE_RADIUS > 0:
        if rpe.GROUPING == "mean_shift" and not (rpe.VOTES or rpe.SPLIT_COMPONENTS):
            logger.warning(
                "MODEL.RPE.NEGATIVE_RADIUS lets instances that are far apart share an "
                "embedding, and nothing tells them apart: set MODEL.RPE.VOTES or "
                "MODEL.RPE.SPLIT_COMPONENTS True"
            )
        return
    groups = max_instances + (rpe.BACKGROUND == "group")
    if groups < 2:
        return
    needed, exact = min_margin(groups, rpe.EMBEDDING_DIM)
    if needed <= rpe.MARGIN + 1e-9:
        return
    # Twice the dimension is known to fit at margin 1/2. Below the margin of the simplex no
    # dimension helps.
    dim = max(rpe.EMBEDDING_DIM, -(-groups // 2))
    logger.warning(
        "MODEL.RPE.MARGIN %.3f cannot separate the %d groups of the largest training image in "
        "%d dimensions (smallest margin: %s%.3f). What fits: MODEL.RPE.EMBEDDING_DIM %d with "
        "MARGIN %.2f, or MODEL.RPE.NEGATIVE_RADIUS > 0.",
        rpe.MARGIN,
        groups,
        rpe.EMBEDDING_DIM,
        "" if exact else "at least ",
        needed,
        dim,
        max(rpe.MARGIN, 0.5),
    )


def check_object_areas(
    cfg: CfgNode, areas: Dict[str, np.ndarray], stride_key: str, stride: int
) -> None:
    """Warns where more than 1% of the objects of a data set are too small for a setting.

    Args:
        cfg: the configuration.
        areas: by data set, areas (n,) of objects in pixels of the network's input, above 0.
        stride_key: full name of the key that holds the stride of the embeddings.
        stride: its value.
    """
    min_area = cfg.MODEL.RPE.MIN_AREA
    name = _worst(areas, min_area)
    if name:
        fitting = math.floor(np.quantile(areas[name], _TOLERATED, method="lower"))
        logger.warning(
            "MODEL.RPE.MIN_AREA is %g, above the area of %s in the network's input; set it to %d "
            "or less to keep them",
            min_area,
            _counted(name, areas[name], min_area),
            fitting,
        )
    side = _MIN_CELLS * stride
    name = _worst(areas, side**2)
    if name:
        smallest = math.sqrt(np.quantile(areas[name], _TOLERATED, method="lower"))
        factor = side / smallest
        strides = [s for s in (1, 2, 4) if s < stride and _MIN_CELLS * s <= smallest]
        finer = f"{stride_key} {strides[-1]}, or " if strides else ""
        scale, sizes = cfg.INPUT.SCALE, (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        if scale:
            setting, larger = f"SCALE is {scale:g}", f"SCALE {scale * factor:.2f}"
        else:
            setting = f"MIN_SIZE_TEST is {sizes[0]}"
            larger = "MIN_SIZE_TEST {} with MAX_SIZE_TEST {} and larger sizes in training".format(
                *(math.ceil(size * factor) for size in sizes)
            )
        logger.warning(
            "INPUT.%s, at which %s are smaller than two cells of %s %d, %d px; what would do: "
            "%sINPUT.%s",
            setting,
            _counted(name, areas[name], side**2),
            stride_key,
            stride,
            side,
            finer,
            larger,
        )


def _worst(areas: Dict[str, np.ndarray], smallest: float) -> str:
    """Returns the data set with the most objects below an area, "" where they are tolerated."""
    shares = {name: float((own < smallest).mean()) for name, own in areas.items()}
    name = max(shares, key=shares.get)
    return name if shares[name] > _TOLERATED else ""


def _counted(name: str, areas: np.ndarray, smallest: float) -> str:
    return f"{int((areas < smallest).sum())} of {len(areas)} objects of {name}"
