"""Scores and curves of results in COCO's format, for tables and plots."""

import contextlib
import io
from typing import Any, Dict, List, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .ground_truth import load_results
from .mask_proposal_evaluator import evaluate_proposals

# Number of proposals of the curve of recall by IoU.
_RECALL_CURVE_AT = 100


def instance_scores(
    truth: COCO,
    results: Sequence[Dict[str, Any]],
    detections_per_image: int,
    iou_type: str,
    use_classes: bool = True,
) -> Dict[str, Any]:
    """Computes COCO's AP and AR in percent, and precision-recall curves.

    Args:
        truth: ground truth.
        results: detections with classes in COCO's results format.
        detections_per_image: largest number of detections evaluated in an image.
        iou_type: "segm" or "bbox".
        use_classes: whether classes have to agree. Otherwise all objects are of one class.

    Returns:
        ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl`` and ``AR``, NaN without ground truth.
        ``precision50`` and ``precision75`` are lists of 101 values in 0 to 1 at the recalls 0,
        0.01 … 1, averaged over the classes.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, load_results(truth, results, iou_type), iou_type)
        evaluation.params.maxDets = [1, 10, detections_per_image]
        evaluation.params.useCats = int(use_classes)
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
    """Computes class-agnostic recall of masks in percent.

    Args:
        truth: ground truth.
        results: proposals with masks in COCO's results format, see :func:`proposal_results`.

    Returns:
        ``numbers`` of proposals and ``recall_by_number``, averaged over the IoU thresholds
        .5:.05:.95, and ``ious`` and ``recall_by_iou`` of 100 proposals.
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
    """Averages AP in percent, by IoU threshold and by object size, at the largest ``maxDets``.

    Values without ground truth are NaN.
    """
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
