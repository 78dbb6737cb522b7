"""AP^r: PASCAL VOC's average precision with mask IoU instead of box IoU."""

import itertools
import logging
from collections import OrderedDict
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from pycocotools.coco import COCO

from .ground_truth import coco_ground_truth, instance_results

logger = logging.getLogger(__name__)

# IoU thresholds of AP^r_vol. They are n / 10, not n * 0.1, since an overlap of 3 / 10 is 0.3.
_VOLUME_THRESHOLDS = tuple(n / 10 for n in range(1, 10))
_CORRECT, _FALSE, _IGNORED = 1, 0, -1


class VOCInstanceEvaluator(DatasetEvaluator):
    """Evaluates AP^r of instances.

    Hariharan et al., "Simultaneous Detection and Segmentation", ECCV 2014, section 4. The
    detections of each class are visited in descending order of score over all images, and assigned
    to the ground truth of their class and image with the largest mask IoU. A detection is correct
    if that IoU is at least the threshold and no earlier detection was assigned to the same
    instance. Later ones are false positives. Difficult instances are ignored, as in VOC's
    development kit. Crowds of datasets in COCO's format are also ignored: a detection is ignored if
    at least the threshold's fraction of it is in a crowd. The number of detections is not limited.

    Void pixels of VOC's maps are background, so they count in the area of a mask that covers them.
    The released evaluations of SDS and MNC use SBD's maps, which have no void pixels, and count
    every instance.

    Results for "voc_segm" are in percent. They are means over the classes with ground truth and, as
    "AP50-person" and so on, values of each class (NaN without ground truth):

    * ``AP50``, ``AP70``: area under the monotone precision envelope (VOC 2010 and later) at the IoU
      thresholds .5 and .7.
    * ``AP50_07``, ``AP70_07``: mean of that envelope at the recalls 0, .1 … 1 (VOC 2007, and the
      release of MNC).
    * ``APvol``: AP^r_vol, the mean of the areas at the IoU thresholds .1, .2 … .9. As in the
      release of SDS, a detection is assigned to the instance with the largest IoU among those not
      yet assigned. At thresholds >= .5 this makes no difference unless instances overlap.
    """

    def __init__(self, dataset_name: str, distributed: bool = True, ignore_difficult: bool = True):
        """
        Args:
            dataset_name: a registered dataset with annotations.
            distributed: whether to gather the results of all processes. Only the main process
                returns metrics.
            ignore_difficult: whether difficult instances are ignored. The releases of SDS and MNC
                count them.
        """
        self._dataset_name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)
        self._distributed = distributed
        self._ignore_difficult = ignore_difficult
        self.reset()

    def reset(self) -> None:
        self._results: List[Dict[str, Any]] = []

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """
        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with "instances" in coordinates of the original image.
        """
        for item, output in zip(inputs, outputs):
            self._results += instance_results(output, item["image_id"], self._metadata)

    def evaluate(self) -> Optional["OrderedDict[str, Dict[str, float]]"]:
        """Returns metrics on the main process and None on others.

        If some detections have no masks, there are no metrics.
        """
        results = self._results
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(results, dst=0)
            if not comm.is_main_process():
                return None
            results = list(itertools.chain(*gathered))
        if any("segmentation" not in result for result in results):
            logger.warning("%s: detections without masks have no AP^r", self._dataset_name)
            return OrderedDict()
        truth = coco_ground_truth(self._dataset_name)
        _mark_difficult(truth, self._dataset_name)
        return OrderedDict(voc_segm=voc_metrics(truth, results, self._ignore_difficult))


def _mark_difficult(truth: COCO, dataset_name: str) -> None:
    """Adds the flag "difficult", which Detectron2's conversion to COCO's format drops."""
    from_file = MetadataCatalog.get(dataset_name).get("image_root") is not None
    if from_file or dataset_name not in DatasetCatalog.list():
        return  # a file in COCO's format has the flag itself
    annotations = truth.dataset.get("annotations", [])  # in the order of the dataset
    sources = [a for item in DatasetCatalog.get(dataset_name) for a in item.get("annotations", [])]
    for annotation, source in zip(annotations, sources, strict=True):
        annotation["difficult"] = source.get("difficult", False)


def voc_metrics(
    truth: COCO, results: List[Dict[str, Any]], ignore_difficult: bool = True
) -> Dict[str, float]:
    """Computes the metrics of :class:`VOCInstanceEvaluator`.

    Args:
        truth: ground truth with masks. Difficult annotations have ``difficult`` or, as in VOC's
            files in COCO's format, ``ignore``.
        results: detections with masks in COCO's results format.
        ignore_difficult: whether difficult annotations are ignored.

    Raises:
        ValueError: The mask of a detection differs in size from its image.
    """
    by_class: Dict[str, Dict[str, float]] = {}
    detections: Dict[Tuple[Any, int], List[Dict[str, Any]]] = {}
    for result in results:
        image = truth.imgs[result["image_id"]]
        size = [image["height"], image["width"]]
        if list(result["segmentation"]["size"]) != size:
            raise ValueError(
                f"size of a mask in image {image['id']} is {result['segmentation']['size']} "
                f"(height, width); allowed: the size of the image, {size}"
            )
        detections.setdefault((result["image_id"], result["category_id"]), []).append(result)
    annotated: Dict[Tuple[Any, int], List[Dict[str, Any]]] = {}
    for annotation in truth.anns.values():
        key = annotation["image_id"], annotation["category_id"]
        annotated.setdefault(key, []).append(annotation)

    for category in truth.getCatIds():
        images = [
            _overlaps(
                truth,
                detections.get((image_id, category), []),
                annotated.get((image_id, category), []),
                ignore_difficult,
            )
            for image_id in truth.getImgIds()
            if (image_id, category) in detections or (image_id, category) in annotated
        ]
        half, half_07 = _average_precision(images, 0.5)
        most, most_07 = _average_precision(images, 0.7)
        volume = [_average_precision(images, t, retry=True)[0] for t in _VOLUME_THRESHOLDS]
        by_class[truth.cats[category]["name"]] = {
            "AP50": half,
            "AP70": most,
            "AP50_07": half_07,
            "AP70_07": most_07,
            "APvol": float(np.mean(volume)),
        }

    metrics = {}
    for name in ("AP50", "AP70", "AP50_07", "AP70_07", "APvol"):
        values = [scores[name] for scores in by_class.values() if not np.isnan(scores[name])]
        metrics[name] = float(np.mean(values)) if values else float("nan")
    for label, scores in by_class.items():
        metrics.update({f"{name}-{label}": score for name, score in scores.items()})
    return metrics


class _Overlaps(NamedTuple):
    """Overlaps of the D detections, sorted by score, and G instances of a class in an image."""

    scores: np.ndarray  # (D,) float, descending
    iou: np.ndarray  # (D, G) float
    ignored: np.ndarray  # (G,) bool
    in_crowd: np.ndarray  # (D,) float, largest fraction of the detection inside one crowd


def _overlaps(
    truth: COCO,
    detections: List[Dict[str, Any]],
    annotations: List[Dict[str, Any]],
    ignore_difficult: bool,
) -> _Overlaps:
    detections = sorted(detections, key=lambda result: -result["score"])
    instances = [a for a in annotations if not a.get("iscrowd", 0)]
    crowds = [a for a in annotations if a.get("iscrowd", 0)]

    def overlaps(others: List[Dict[str, Any]], crowd: int) -> np.ndarray:
        if not detections or not others:
            return np.zeros((len(detections), len(others)))
        masks = [result["segmentation"] for result in detections]
        return mask_util.iou(masks, [truth.annToRLE(a) for a in others], [crowd] * len(others))

    ignored = [
        ignore_difficult and bool(a.get("difficult", False) or a.get("ignore", 0))
        for a in instances
    ]
    return _Overlaps(
        scores=np.array([result["score"] for result in detections], float),
        iou=overlaps(instances, 0),
        ignored=np.array(ignored, bool),
        in_crowd=overlaps(crowds, 1).max(axis=1, initial=0.0),
    )


def _average_precision(
    images: List[_Overlaps], threshold: float, retry: bool = False
) -> Tuple[float, float]:
    """Computes the average precision of one class in percent.

    Args:
        images: all images in which the class is annotated or detected.
        threshold: smallest IoU of a match, 0 to 1.
        retry: whether a detection is assigned only to instances that are not assigned yet.

    Returns:
        The area under the envelope, and the eleven-point average of VOC 2007.
    """
    num_truth = sum(int((~image.ignored).sum()) for image in images)
    if num_truth == 0:
        return float("nan"), float("nan")
    scores = np.concatenate([image.scores for image in images])
    outcomes = np.concatenate([_outcomes(image, threshold, retry) for image in images])
    # Equal scores keep the order of the dataset, however images are distributed over processes.
    outcomes = outcomes[np.argsort(-scores, kind="stable")]
    correct = outcomes[outcomes != _IGNORED] == _CORRECT
    true = correct.cumsum()
    precision = true / np.arange(1, len(true) + 1)
    # The best precision at this or a larger recall.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    area = envelope[correct].sum() / num_truth
    # Integers avoid rounding: the recall of 3 of 10 is 0.3, which 3 * 0.1 is not.
    attained = [np.flatnonzero(10 * true >= tenths * num_truth) for tenths in range(11)]
    eleven_points = sum(envelope[indices[0]] for indices in attained if len(indices)) / 11
    return 100 * float(area), 100 * float(eleven_points)


def _outcomes(image: _Overlaps, threshold: float, retry: bool) -> np.ndarray:
    """Returns (D,) int, whether each detection is correct, false or ignored."""
    outcomes = np.full(len(image.scores), _FALSE)
    assigned = np.zeros(len(image.ignored), bool)
    for index, row in enumerate(image.iou):
        if retry:
            row = np.where(assigned, -1.0, row)
        best = int(row.argmax()) if len(row) else None
        if best is not None and row[best] >= threshold:
            if image.ignored[best]:
                outcomes[index] = _IGNORED
            elif not assigned[best]:
                outcomes[index] = _CORRECT
                assigned[best] = True
        if outcomes[index] == _FALSE and image.in_crowd[index] >= threshold:
            outcomes[index] = _IGNORED
    return outcomes
