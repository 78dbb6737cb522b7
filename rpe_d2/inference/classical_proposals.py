"""Box proposals of classical methods, as OpenCV computes them."""

import contextlib
import ctypes
from types import ModuleType
from typing import NamedTuple

import cv2
import numpy as np
import torch

from rpe_d2.ops.edge_nms import edge_nms, edge_orientation

__all__ = ["BoxProposals", "edge_boxes", "require_ximgproc", "selective_search"]


class BoxProposals(NamedTuple):
    """Box proposals of an image, the best first.

    Attributes:
        boxes: (N, 4) float32 x0, y0, x1, y1 in pixels.
        scores: (N,) float32, which order the boxes of one image.
    """

    boxes: np.ndarray
    scores: np.ndarray


def require_ximgproc() -> ModuleType:
    """Returns the module of OpenCV with both methods.

    Raises:
        ValueError: The installed package of OpenCV does not have it.
    """
    module = getattr(cv2, "ximgproc", None)
    if not hasattr(module, "createEdgeBoxes"):
        raise ValueError(
            f"OpenCV {cv2.__version__} has no ximgproc, which selective search and edge boxes "
            "need; allowed: pip install opencv-contrib-python-headless, after pip uninstall of "
            "the other package of OpenCV"
        )
    return module


def selective_search(
    image: np.ndarray, max_proposals: int = 2000, min_area: float = 0
) -> BoxProposals:
    """Proposes the boxes of regions that are merged step by step (Uijlings et al., IJCV 2013).

    This is the fast mode: two color spaces, two measures of similarity and two initial
    segmentations. The method has no scores: as in its authors' release, boxes are ranked by their
    position in the hierarchy, multiplied by a random number. The random numbers are the same in
    every call.

    Args:
        image: (H, W, 3) uint8 BGR.
        max_proposals: largest number of boxes.
        min_area: smallest area of a box in pixels.

    Returns:
        Boxes with scores that are minus their rank.

    Raises:
        ValueError: OpenCV does not have the method.
    """
    search = require_ximgproc().segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image))
    search.switchToSelectiveSearchFast()
    # OpenCV draws from the C library. Where that cannot be seeded, the order varies a little.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).srand(0)
    boxes = _corners(search.process())
    boxes = boxes[_areas(boxes) >= min_area][:max_proposals]
    return BoxProposals(boxes, -np.arange(len(boxes), dtype=np.float32))


def edge_boxes(
    boundaries: torch.Tensor, max_proposals: int = 2000, min_area: float = 1000
) -> BoxProposals:
    """Proposes boxes that enclose many contours and cut few (Zitnick & Dollar, ECCV 2014).

    The parameters are those for an IoU of 0.7 (alpha 0.65, beta 0.75). The paper takes contours
    from structured forests.

    Args:
        boundaries: (H, W) contour probabilities in 0-1 before non-maximum suppression.
        max_proposals: largest number of boxes.
        min_area: smallest area of a box in pixels.

    Returns:
        Boxes with the scores of the method.

    Raises:
        ValueError: OpenCV does not have the method.
    """
    method = require_ximgproc().createEdgeBoxes(
        alpha=0.65, beta=0.75, maxBoxes=max_proposals, minBoxArea=min_area
    )
    boundaries = boundaries.detach().float().cpu()
    edges = edge_nms(boundaries).numpy()
    boxes, scores = method.getBoundingBoxes(edges, edge_orientation(boundaries).numpy())
    scores = np.zeros(0) if scores is None else scores
    return BoxProposals(_corners(boxes), np.asarray(scores, np.float32).reshape(-1))


def _corners(boxes: np.ndarray) -> np.ndarray:
    """Converts boxes x, y, width, height to x0, y0, x1, y1."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
