"""Evaluation of touching instances, which are hard to separate by grouping pixels."""

from typing import Any, Dict, List, Set

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .ground_truth import load_results

# Dilation in pixels, by a square, at which a mask that overlaps another one touches it.
TOUCHING_DISTANCE = 2
# Mask IoU from which a detection is assigned to an instance, whatever the evaluated threshold.
_ASSIGNMENT_IOU = 0.5


def touching_annotations(truth: COCO, distance: int = TOUCHING_DISTANCE) -> Set[int]:
    """Finds the annotations whose mask, dilated by a square, overlaps the mask of another one.

    Args:
        truth: ground truth with masks. Crowds are ignored.
        distance: dilation in pixels, >= 1.

    Returns:
        Ids of the annotations.
    """
    touching: Set[int] = set()
    for image_id in truth.getImgIds():
        image = truth.imgs[image_id]
        # In a list, because pycocotools takes text for a list of ids.
        annotations = truth.loadAnns(truth.getAnnIds(imgIds=[image_id], iscrowd=False))
        # Number of the instance at each pixel, 0 where there is none.
        owner = np.zeros((image["height"], image["width"]), np.int64)
        ids = {}
        for number, annotation in enumerate(annotations, start=1):
            mask = mask_util.decode(truth.annToRLE(annotation)).astype(bool)
            covered = np.unique(owner[mask])
            # Overlapping masks touch, even if one hides the other completely.
            if covered.any():
                touching.update(ids[other] for other in covered[covered > 0])
                touching.add(annotation["id"])
            owner[mask] = number
            ids[number] = annotation["id"]
        touching.update(ids[number] for number in _touching_labels(owner, distance))
    return touching


def _touching_labels(owner: np.ndarray, distance: int) -> Set[int]:
    """Finds positive labels of a map within a square of ``distance`` pixels of another one."""
    height, width = owner.shape
    labels: Set[int] = set()
    # Half of the neighborhood, so that each pair of pixels is visited once.
    offsets = [(dy, dx) for dy in range(distance + 1) for dx in range(-distance, distance + 1)]
    for dy, dx in offsets:
        if (dy == 0 and dx <= 0) or dy >= height or abs(dx) >= width:
            continue
        here = owner[: height - dy, max(0, -dx) : width - max(0, dx)]
        there = owner[dy:, max(0, dx) : width - max(0, -dx)]
        meet = (here > 0) & (there > 0) & (here != there)
        labels.update(np.unique(here[meet]).tolist(), np.unique(there[meet]).tolist())
    return labels


class SubsetCOCOeval(COCOeval):
    """COCOeval on a subset of the annotations, in which detections of other instances are ignored.

    COCOeval ignores a detection only if it matches an ignored annotation. A detection that overlaps
    such an annotation by .8 would therefore be a false positive at the thresholds above .8. Here,
    each detection is assigned to the instance of its class that it overlaps most, if their IoU is
    at least .5. If that instance is not in the subset, the detection is ignored at every threshold
    at which it matches nothing, even if it is a duplicate. Crowds are treated as in COCOeval.
    """

    def __init__(self, truth: COCO, results: COCO, iou_type: str, counted: Set[int]):
        """
        Args:
            truth: ground truth with all annotations.
            results: detections.
            iou_type: "segm" or "bbox".
            counted: ids of the annotations in the subset.
        """
        super().__init__(truth, results, iou_type)
        self._counted = counted

    def _prepare(self) -> None:
        super()._prepare()
        for annotations in self._gts.values():
            for annotation in annotations:
                if annotation["id"] not in self._counted:
                    annotation["ignore"] = 1

    def evaluateImg(self, imgId: int, catId: int, aRng: List[float], maxDet: int):
        """Matches one class in one image, with ``dtIgnore`` as described for the class."""
        matches = super().evaluateImg(imgId, catId, aRng, maxDet)
        overlaps = self.ious[imgId, catId]  # (D, G), detections sorted by score as in the matches
        instances = [
            (column, annotation["id"] in self._counted)
            for column, annotation in enumerate(self._gts[imgId, catId])
            if not annotation["iscrowd"]
        ]
        if len(overlaps) == 0 or not instances:
            return matches
        columns, counts = (np.array(values) for values in zip(*instances))
        overlaps = overlaps[:, columns]
        assigned = overlaps.max(axis=1) >= _ASSIGNMENT_IOU
        of_others = assigned & ~counts[overlaps.argmax(axis=1)]
        matches["dtIgnore"] |= (matches["dtMatches"] == 0) & of_others
        return matches


def subset_metrics(
    truth: COCO, results: List[Dict[str, Any]], counted: Set[int], max_detections: int
) -> Dict[str, float]:
    """Computes mask AP, AP50, AP75 and AR in percent on a subset of the annotations.

    Args:
        truth: ground truth with all annotations.
        results: detections with masks in COCO's results format.
        counted: ids of the annotations in the subset.
        max_detections: largest number of detections evaluated in an image.

    Returns:
        The metrics, NaN without ground truth, and ``count``, the size of the subset.
    """
    evaluation = SubsetCOCOeval(truth, load_results(truth, results, "segm"), "segm", counted)
    evaluation.params.maxDets = [1, 10, max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (10 IoUs, 101 recalls, K classes)
    recall = evaluation.eval["recall"][:, :, 0, -1]  # (10 IoUs, K classes)

    def mean(values: np.ndarray) -> float:
        values = values[values > -1]  # -1: a class without ground truth
        return 100 * float(values.mean()) if values.size else float("nan")

    return {
        "AP": mean(precision),
        "AP50": mean(precision[0]),
        "AP75": mean(precision[5]),
        "AR": mean(recall),
        "count": len(counted),
    }
