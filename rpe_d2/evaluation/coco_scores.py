"""Scores and curves of COCO results, for tables and plots."""

import contextlib
import io
from typing import Any, Dict, List, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .ground_truth import load_results
from .mask_proposal_evaluator import evaluate_proposals

# Of the curves of recall: by number of proposals, and by IoU at so many of them.
_RECALL_CURVE_AT = 100


def instance_scores(
    truth: COCO, results: Sequence[Dict[str, Any]], detections_per_image: int, iou_type: str
) -> Dict[str, Any]:
    """COCO's AP and AR in percent, and precision by recall.

    Args:
        truth: ground truth.
        results: in COCO's results format, with classes.
        detections_per_image: so many enter.
        iou_type: "segm" or "bbox".

    Returns:
        ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``, ``AR`` (NaN where there is nothing to find), and
        ``precision50`` and ``precision75``: 101 values in 0-1 at recalls 0, 0.01 … 1, means over the classes.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, load_results(truth, results, iou_type), iou_type)
        evaluation.params.maxDets = [1, 10, detections_per_image]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # (10 IoUs, 101 recalls, K classes, 4 sizes)
    recall = evaluation.eval["recall"][..., 0, -1]  # (10 IoUs, K classes)

    known = precision[0, 0, :, 0] > -1  # classes with ground truth
    curves = precision[:, :, known, 0].mean(axis=2) if known.any() else np.zeros((10, 101))
    return {
        **precision_by_size(evaluation),
        "AR": _mean(recall),
        "precision50": curves[0].tolist(),
        "precision75": curves[5].tolist(),
    }


def recall_curves(truth: COCO, results: Sequence[Dict[str, Any]]) -> Dict[str, List[float]]:
    """Class-agnostic recall of masks, in percent.

    Args:
        truth: ground truth.
        results: in COCO's results format, with masks; see :func:`proposal_results`.

    Returns:
        ``numbers`` of proposals and ``recall_by_number``, averaged over IoU .5:.05:.95; ``ious`` and ``recall_by_iou`` with 100
        proposals.
    """
    evaluation = evaluate_proposals(truth, results, "segm")
    recall = np.maximum(evaluation.eval["recall"][:, 0, 0], 0)  # (10 IoUs, limits)
    limits = list(evaluation.params.maxDets)
    return {
        "numbers": limits,
        "recall_by_number": (100 * recall.mean(axis=0)).tolist(),
        "ious": evaluation.params.iouThrs.tolist(),
        "recall_by_iou": (100 * recall[:, limits.index(_RECALL_CURVE_AT)]).tolist(),
    }


def precision_by_size(evaluation: COCOeval) -> Dict[str, float]:
    """AP, by IoU and by object size, in percent; of the largest number of detections. NaN where there is nothing to find."""
    precision = evaluation.eval["precision"][..., -1]  # (10 IoUs, 101 recalls, K classes, 4 sizes)
    return {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[0, ..., 0]),
        "AP75": _mean(precision[5, ..., 0]),
        "APs": _mean(precision[..., 1]),
        "APm": _mean(precision[..., 2]),
        "APl": _mean(precision[..., 3]),
    }


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]  # -1: a class without ground truth
    return 100 * float(values.mean()) if values.size else float("nan")
