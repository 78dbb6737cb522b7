"""Average recall of class-agnostic mask and box proposals."""

import contextlib
import io
import itertools
from collections import OrderedDict
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import Instances
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .ground_truth import coco_ground_truth, load_results

_AVERAGE_RECALL_AT = (1, 10, 100, 1000)
_RECALL50_AT = (10, 20, 30, 60)
# Numbers of proposals, evenly spaced on a log axis, at which the recall curve is integrated.
_AUC_AT = tuple(sorted({round(10**exponent) for exponent in np.linspace(0, 3, 31)}))
_LIMITS = tuple(sorted({*_AVERAGE_RECALL_AT, *_RECALL50_AT, *_AUC_AT}))
_SIZES = ("", "s", "m", "l")  # COCO's area ranges: all, small < 32^2 <= medium < 96^2 <= large


class MaskProposalEvaluator(DatasetEvaluator):
    """Evaluates class-agnostic average recall of the best n proposals of an image.

    It uses "proposals" (``proposal_boxes``, ``objectness_logits`` and, if present, box-relative
    ``proposal_masks``), or "instances" if there are no "proposals". Proposals without masks are
    evaluated as filled boxes, and the name of the result says so. Images without any proposals are
    included.

    Results for "proposals_segm" (or "proposals_segm_of_filled_boxes") and "proposals_bbox" are in
    percent, NaN without ground truth:

    * ``AR@1 … AR@1000``: recall averaged over the IoU thresholds .5:.05:.95, and ``ARs@n``,
      ``ARm@n`` and ``ARl@n`` by object size.
    * ``AUC``: mean of AR@n over n = 1 … 1000 on a logarithmic axis, and ``AUCs``, ``AUCm`` and
      ``AUCl`` by object size.
    * ``R50@10 … R50@60``: recall at the IoU threshold .5.
    * ``AP``, ``AP50``, ``AP75``: class-agnostic average precision of the best 1,000 proposals.
    """

    def __init__(self, dataset_name: str, distributed: bool = True):
        """
        Args:
            dataset_name: a registered dataset with annotations.
            distributed: whether to gather the results of all processes. Only the main process
                returns metrics.
        """
        self._dataset_name = dataset_name
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        self._results: List[Dict[str, Any]] = []
        self._filled_boxes = False

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """
        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with "proposals" or "instances" in coordinates of the original image.
        """
        for item, output in zip(inputs, outputs):
            results, filled_boxes = proposal_results(output, item["image_id"])
            self._results += results
            self._filled_boxes |= filled_boxes

    def evaluate(self) -> Optional["OrderedDict[str, Dict[str, float]]"]:
        """Returns metrics on the main process and None on others."""
        results, filled_boxes = self._results, self._filled_boxes
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather((results, filled_boxes), dst=0)
            if not comm.is_main_process():
                return None
            results = list(itertools.chain(*(part for part, _ in gathered)))
            filled_boxes = any(flag for _, flag in gathered)
        return proposal_scores(self._dataset_name, results, filled_boxes)


def proposal_scores(
    dataset_name: str, results: Sequence[Dict[str, Any]], filled_boxes: bool
) -> "OrderedDict[str, Dict[str, float]]":
    """Computes the result of :class:`MaskProposalEvaluator` from stored proposals.

    Args:
        dataset_name: a registered dataset with annotations.
        results: the best 1,000 proposals of every image, as :func:`proposal_results` returns them.
        filled_boxes: whether the masks are filled boxes.
    """
    truth = proposal_ground_truth(dataset_name)
    name = "proposals_segm_of_filled_boxes" if filled_boxes else "proposals_segm"
    return OrderedDict(
        [
            (name, proposal_metrics(truth, results, "segm")),
            ("proposals_bbox", proposal_metrics(truth, results, "bbox")),
        ]
    )


def proposal_results(output: Dict[str, Any], image_id: Any) -> Tuple[List[Dict[str, Any]], bool]:
    """Converts the best 1,000 proposals of an image to COCO's results format without classes.

    If there are no proposals, instances are used.

    Args:
        output: output of a model for the image, at its original size.
        image_id: id of the image.

    Returns:
        Results with ``bbox`` and ``segmentation``, and whether the latter are filled boxes because
        the proposals have no masks.
    """
    proposals = output["proposals"] if "proposals" in output else output["instances"]
    proposals = proposals.to("cpu")
    if proposals.has("objectness_logits"):
        boxes, scores = proposals.proposal_boxes.tensor, proposals.objectness_logits
    else:
        boxes, scores = proposals.pred_boxes.tensor, proposals.scores
    best = torch.argsort(scores, descending=True, stable=True)[: _LIMITS[-1]]
    proposals, boxes = proposals[best], boxes[best]
    masks, filled_boxes = _encoded(proposals, boxes)
    sides = boxes[:, 2:] - boxes[:, :2]
    results = [
        {"image_id": image_id, "bbox": box, "score": score, "segmentation": mask}
        for mask, box, score in zip(
            masks, torch.cat([boxes[:, :2], sides], dim=1).tolist(), scores[best].tolist()
        )
    ]
    return results, filled_boxes


def _encoded(proposals: Instances, boxes: torch.Tensor) -> Tuple[List[Dict[str, Any]], bool]:
    """Encodes masks of the whole image as RLE, and returns whether they are filled boxes."""
    height, width = proposals.image_size
    if proposals.has("pred_masks"):
        masks = proposals.pred_masks
    elif proposals.has("proposal_masks"):
        soft = proposals.proposal_masks.float() / 255
        masks = paste_masks_in_image(soft, boxes, (height, width), threshold=0.5)
    else:
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].double().tolist()
        filled = [mask_util.frPyObjects([polygon], height, width)[0] for polygon in corners]
        return filled, True
    encoded = [mask_util.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in masks]
    return encoded, False


def proposal_ground_truth(dataset_name: str) -> COCO:
    """Loads a dataset in COCO's format with boxes recomputed from the masks."""
    truth = coco_ground_truth(dataset_name)
    for annotation in truth.anns.values():
        # Annotated boxes may be loose; box recall is defined on the tight boxes of the masks.
        annotation["bbox"] = mask_util.toBbox(truth.annToRLE(annotation)).tolist()
    return truth


def evaluate_proposals(truth: COCO, results: Sequence[Dict[str, Any]], iou_type: str) -> COCOeval:
    """Runs a class-agnostic COCOeval at all limits of the number of proposals.

    Args:
        truth: ground truth. Crowds are ignored regions.
        results: dicts with image_id, score, bbox (XYWH) and segmentation (RLE).
        iou_type: "segm" or "bbox".

    Returns:
        The accumulated COCOeval.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            truth, load_results(truth, _without_classes(truth, results), iou_type), iou_type
        )
        evaluation.params.useCats = 0
        evaluation.params.maxDets = list(_LIMITS)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def proposal_metrics(
    truth: COCO, results: Sequence[Dict[str, Any]], iou_type: str
) -> Dict[str, float]:
    """Computes the metrics of :class:`MaskProposalEvaluator` for "segm" or "bbox" overlaps.

    The arguments are those of :func:`evaluate_proposals`.
    """
    evaluation = evaluate_proposals(truth, results, iou_type)
    recall = evaluation.eval["recall"][:, 0]  # (10 IoUs, 4 sizes, limits), -1 = no ground truth
    precision = evaluation.eval["precision"][:, :, 0, 0, -1]  # (10 IoUs, 101 recalls)
    recall, precision = (np.where(a < 0, np.nan, 100 * a) for a in (recall, precision))
    average = dict(zip(_LIMITS, recall.mean(axis=0).T))  # limit -> by size
    metrics = {
        f"AR{size}@{limit}": float(average[limit][index])
        for limit in _AVERAGE_RECALL_AT
        for index, size in enumerate(_SIZES)
    }
    from scipy.integrate import trapezoid  # numpy < 2 has it under another name

    curves = np.stack([average[limit] for limit in _AUC_AT])  # (limits, sizes)
    areas = trapezoid(curves, np.log10(_AUC_AT), axis=0) / np.log10(_AUC_AT[-1])
    metrics.update({f"AUC{size}": float(area) for size, area in zip(_SIZES, areas)})
    metrics.update(
        {f"R50@{limit}": float(recall[0, 0, _LIMITS.index(limit)]) for limit in _RECALL50_AT}
    )
    metrics["AP"] = float(precision.mean())
    metrics["AP50"] = float(precision[0].mean())
    metrics["AP75"] = float(precision[5].mean())
    return metrics


def _without_classes(truth: COCO, results: Sequence[Dict[str, Any]]) -> List[Dict[str, Any]]:
    # Without classes COCOeval still drops results of unknown categories, so any known one is set.
    return [{**result, "category_id": truth.getCatIds()[0]} for result in results]
