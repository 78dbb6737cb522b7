"""The instances that touch another: where grouping is hard."""

from typing import Any, Dict, List, Set

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .ground_truth import load_results

# Pixels that a mask is dilated by, in a square, to meet its neighbours.
TOUCHING_DISTANCE = 2
# From this mask IoU on a detection belongs to an instance, whatever the threshold that is evaluated.
_BELONGS = 0.5


def touching_annotations(truth: COCO, distance: int = TOUCHING_DISTANCE) -> Set[int]:
    """Ids of the annotations whose mask, dilated by a square of ``distance`` pixels, meets another's mask.

    Args:
        truth: with masks; crowds are left out.
        distance: in pixels, at least 1.
    """
    touching: Set[int] = set()
    for image_id in truth.getImgIds():
        image = truth.loadImgs(image_id)[0]
        annotations = truth.loadAnns(truth.getAnnIds(imgIds=image_id, iscrowd=False))
        # The instance of each pixel by its number in the image; 0: none.
        owner = np.zeros((image["height"], image["width"]), np.int64)
        ids = {}
        for number, annotation in enumerate(annotations, start=1):
            mask = mask_util.decode(truth.annToRLE(annotation)).astype(bool)
            covered = np.unique(owner[mask])
            # Overlapping is touching, also where nothing of the lower one stays visible.
            if covered.any():
                touching.update(ids[other] for other in covered[covered > 0])
                touching.add(annotation["id"])
            owner[mask] = number
            ids[number] = annotation["id"]
        touching.update(ids[number] for number in _meeting(owner, distance))
    return touching


def _meeting(owner: np.ndarray, distance: int) -> Set[int]:
    """Positive labels of a map that lie within a square of ``distance`` pixels of another positive label."""
    height, width = owner.shape
    found: Set[int] = set()
    # One half of the neighbours: each pair of pixels is seen from one side.
    offsets = [(dy, dx) for dy in range(distance + 1) for dx in range(-distance, distance + 1)]
    for dy, dx in offsets:
        if (dy == 0 and dx <= 0) or dy >= height or abs(dx) >= width:
            continue
        here = owner[: height - dy, max(0, -dx) : width - max(0, dx)]
        there = owner[dy:, max(0, dx) : width - max(0, -dx)]
        meet = (here > 0) & (there > 0) & (here != there)
        found.update(np.unique(here[meet]).tolist(), np.unique(there[meet]).tolist())
    return found


class SubsetCOCOeval(COCOeval):
    """COCOeval in which only some annotations count; detections of the others neither count nor hurt.

    COCOeval by itself ignores a detection only where it matches an ignored annotation, so one that overlaps it by .8
    would be false at the thresholds above. Here a detection is of the instance of its class that it overlaps most, if
    their IoU is at least .5. If that instance does not count, the detection is ignored at every threshold at which it
    matches nothing; that holds for second detections of the instance, too. Crowds are treated as COCOeval does.
    """

    def __init__(self, truth: COCO, results: COCO, iou_type: str, counted: Set[int]):
        """
        Args:
            counted: ids of the annotations that count.
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
        """COCOeval's matches of one class in one image, with ``dtIgnore`` by the rule above."""
        matches = super().evaluateImg(imgId, catId, aRng, maxDet)
        overlaps = self.ious[imgId, catId]  # (D, G), detections by falling score, as in the matches
        instances = [
            (column, annotation["id"] in self._counted)
            for column, annotation in enumerate(self._gts[imgId, catId])
            if not annotation["iscrowd"]
        ]
        if len(overlaps) == 0 or not instances:
            return matches
        columns, counts = (np.array(values) for values in zip(*instances))
        overlaps = overlaps[:, columns]
        of_others = ~counts[overlaps.argmax(axis=1)] & (overlaps.max(axis=1) >= _BELONGS)
        matches["dtIgnore"] |= (matches["dtMatches"] == 0) & of_others
        return matches


def subset_metrics(
    truth: COCO, results: List[Dict[str, Any]], counted: Set[int], max_detections: int
) -> Dict[str, float]:
    """Mask AP, AP50, AP75 and AR, in percent, on some of the annotations; NaN where there are none.

    Args:
        truth: all annotations.
        results: in COCO's results format, with masks.
        counted: ids of the annotations that count.
        max_detections: best detections of an image that enter.
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
