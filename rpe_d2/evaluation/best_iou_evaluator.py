"""Mean best IoU of objects, regardless of classes and scores."""

import itertools
from collections import OrderedDict, defaultdict
from typing import Any, Dict, List, Optional

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from .coco_scores import instance_scores
from .ground_truth import coco_ground_truth, instance_results

# Of an image, in AP.
_MAX_PREDICTIONS = 100


class BestIoUEvaluator(DatasetEvaluator):
    """Evaluates how well the best predicted mask of every object covers it.

    The metric does not penalize superfluous predictions, so the number of predictions is reported
    as well. Classes are not used, and scores only by AP. Results for "best_iou" are:

    * ``mean``: mean over all objects of the largest IoU with a predicted mask of their image, in
      percent.
    * ``above50``: percentage of the objects for which that IoU is above .5.
    * ``objects``, ``predictions``: their numbers over all images.
    * ``predictions_in_empty``: number of predictions in images without objects.
    * ``overlapping``: number of pixels that more than one prediction of an image covers.
    * ``AP``: COCO's mask AP in percent, with all objects in one class, of at most 100 predictions
      an image.

    Crowds are ignored.
    """

    def __init__(self, dataset_name: str, distributed: bool = True):
        """
        Args:
            dataset_name: a registered dataset with annotations.
            distributed: whether to gather the results of all processes. Only the main process
                returns metrics.
        """
        self._dataset_name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        self._results: List[Dict[str, Any]] = []
        self._overlapping = 0

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """
        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with "instances" in coordinates of the original image.
        """
        for item, output in zip(inputs, outputs):
            self._results += instance_results(output, item["image_id"], self._metadata)
            if output["instances"].has("pred_masks"):
                covered = output["instances"].pred_masks.sum(dim=0)
                self._overlapping += int((covered > 1).sum())

    def evaluate(self) -> Optional["OrderedDict[str, Dict[str, float]]"]:
        """Returns metrics on the main process and None on others.

        If some predictions have no masks, there are no metrics.
        """
        results, overlapping = self._results, self._overlapping
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather((results, overlapping), dst=0)
            if not comm.is_main_process():
                return None
            results = list(itertools.chain(*(part for part, _ in gathered)))
            overlapping = sum(count for _, count in gathered)
        if any("segmentation" not in result for result in results):
            return OrderedDict()
        pred = defaultdict(list)
        for result in results:
            pred[result["image_id"]].append(result["segmentation"])
        truth = coco_ground_truth(self._dataset_name)
        best: List[float] = []
        in_empty = 0
        for image_id in truth.imgs:
            annotations = truth.imgToAnns[image_id]
            target = [truth.annToRLE(a) for a in annotations if not a["iscrowd"]]
            if target and pred[image_id]:
                iou = mask_util.iou(pred[image_id], target, [0] * len(target))
                best += np.asarray(iou).max(axis=0).tolist()
            else:
                best += [0.0] * len(target)
            in_empty += 0 if annotations else len(pred[image_id])
        scores = instance_scores(truth, results, _MAX_PREDICTIONS, "segm", use_classes=False)
        iou = np.array(best)
        metrics = {
            "mean": 100 * float(iou.mean()) if best else float("nan"),
            "above50": 100 * float((iou > 0.5).mean()) if best else float("nan"),
            "objects": len(best),
            "predictions": len(results),
            "predictions_in_empty": in_empty,
            "overlapping": overlapping,
            "AP": scores["AP"],
        }
        return OrderedDict(best_iou=metrics)
