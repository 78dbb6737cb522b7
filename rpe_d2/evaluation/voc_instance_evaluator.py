"""AP^r: PASCAL VOC's average precision, with overlaps of masks in place of boxes."""

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

# What an overlap has to reach in the volume; n / 10, not n * 0.1: an overlap of 3 / 10 is .3.
_VOLUME_THRESHOLDS = tuple(n / 10 for n in range(1, 10))
_CORRECT, _FALSE, _NEITHER = 1, 0, -1


class VOCInstanceEvaluator(DatasetEvaluator):
    """AP^r of instances (Hariharan et al., Simultaneous Detection and Segmentation, ECCV 2014, section 4).

    For each class the detections of all images, best score first, take the ground truth of their class in their image
    that their mask overlaps most. A detection is correct if that IoU is at least the threshold and no better detection
    has taken the same instance; a second detection of an instance is false. Difficult instances neither count nor
    hurt, as in VOC's development kit, and so do crowds of data in COCO's format (a detection of which at least the
    threshold's share lies in a crowd). There is no limit on the number of detections.

    Void pixels of VOC's maps are background: they count in the area of a mask that covers them. The evaluations that
    were released with SDS and MNC use SBD's maps, where there are none, and count every instance.

    Results, in percent, for "voc_segm", means over the classes with ground truth and, as "AP50-person" and so on, each
    class (NaN without ground truth):

    * ``AP50``, ``AP70``: at IoU .5 and .7, area under the monotone precision envelope (VOC 2010 and later).
    * ``AP50_07``, ``AP70_07``: mean of that envelope at the recalls 0, .1 … 1 (VOC 2007; the release of MNC).
    * ``APvol``: AP^r_vol, mean of the areas at IoU .1, .2 … .9. As in the release of SDS a detection takes the instance
      that it overlaps most of those that are *left*. At .5 and above that is the same where instances do not overlap.
    """

    def __init__(self, dataset_name: str, distributed: bool = True, ignore_difficult: bool = True):
        """
        Args:
            dataset_name: registered, with annotations.
            distributed: gather what other processes found; only the main one returns results.
            ignore_difficult: False: difficult instances count like others, as in the releases of SDS and MNC.
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
            inputs: with ``image_id``.
            outputs: with "instances" in the original image's coordinates.
        """
        for item, output in zip(inputs, outputs):
            self._results += instance_results(output, item["image_id"], self._metadata)

    def evaluate(self) -> Optional["OrderedDict[str, Dict[str, float]]"]:
        """Metrics on the main process, None on others. Without any masks among the detections there are none."""
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
    """Takes over which annotations are difficult, which Detectron2 does not write into COCO's form."""
    from_file = MetadataCatalog.get(dataset_name).get("image_root") is not None
    if from_file or dataset_name not in DatasetCatalog.list():
        return  # a file in COCO's format says it itself
    annotations = truth.dataset.get("annotations", [])  # in the order of the data set
    sources = [a for item in DatasetCatalog.get(dataset_name) for a in item.get("annotations", [])]
    for annotation, source in zip(annotations, sources, strict=True):
        annotation["difficult"] = source.get("difficult", False)


def voc_metrics(
    truth: COCO, results: List[Dict[str, Any]], ignore_difficult: bool = True
) -> Dict[str, float]:
    """The metrics of :class:`VOCInstanceEvaluator`.

    Args:
        truth: ground truth with masks; an annotation may be ``difficult`` (or ``ignore``, as VOC's files in COCO's
            format have it).
        results: in COCO's results format, with masks.
        ignore_difficult: otherwise they count.

    Raises:
        ValueError: a mask of the results has another size than its image.
    """
    by_class: Dict[str, Dict[str, float]] = {}
    found: Dict[Tuple[Any, int], List[Dict[str, Any]]] = {}
    for result in results:
        image = truth.imgs[result["image_id"]]
        size = [image["height"], image["width"]]
        if list(result["segmentation"]["size"]) != size:
            raise ValueError(
                f"image {image['id']}: a mask of {result['segmentation']['size']} pixels (height, width) was found; "
                f"the data set says that the image has {size}"
            )
        found.setdefault((result["image_id"], result["category_id"]), []).append(result)
    annotated: Dict[Tuple[Any, int], List[Dict[str, Any]]] = {}
    for annotation in truth.anns.values():
        key = annotation["image_id"], annotation["category_id"]
        annotated.setdefault(key, []).append(annotation)

    for category in truth.getCatIds():
        images = [
            _overlaps(
                truth,
                found.get((image_id, category), []),
                annotated.get((image_id, category), []),
                ignore_difficult,
            )
            for image_id in truth.getImgIds()
            if (image_id, category) in found or (image_id, category) in annotated
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
    """Detections (D), best score first, and ground truth (G) of one class in one image."""

    scores: np.ndarray  # (D,) float
    iou: np.ndarray  # (D, G) float
    ignored: np.ndarray  # (G,) bool
    in_crowd: np.ndarray  # (D,) float, largest share of the detection that lies in one crowd


def _overlaps(
    truth: COCO,
    found: List[Dict[str, Any]],
    annotations: List[Dict[str, Any]],
    ignore_difficult: bool,
) -> _Overlaps:
    found = sorted(found, key=lambda result: -result["score"])
    instances = [a for a in annotations if not a.get("iscrowd", 0)]
    crowds = [a for a in annotations if a.get("iscrowd", 0)]

    def overlaps(others: List[Dict[str, Any]], crowd: int) -> np.ndarray:
        if not found or not others:
            return np.zeros((len(found), len(others)))
        masks = [result["segmentation"] for result in found]
        return mask_util.iou(masks, [truth.annToRLE(a) for a in others], [crowd] * len(others))

    ignored = [
        ignore_difficult and bool(a.get("difficult", False) or a.get("ignore", 0))
        for a in instances
    ]
    return _Overlaps(
        scores=np.array([result["score"] for result in found], float),
        iou=overlaps(instances, 0),
        ignored=np.array(ignored, bool),
        in_crowd=overlaps(crowds, 1).max(axis=1, initial=0.0),
    )


def _average_precision(
    images: List[_Overlaps], threshold: float, retry: bool = False
) -> Tuple[float, float]:
    """Average precision of one class in percent: area under the curve, and by VOC 2007's eleven points.

    Args:
        images: all in which the class is annotated or detected.
        threshold: in 0-1, which the IoU has to reach.
        retry: a detection looks for its instance only among those that are left.
    """
    num_truth = sum(int((~image.ignored).sum()) for image in images)
    if num_truth == 0:
        return float("nan"), float("nan")
    scores = np.concatenate([image.scores for image in images])
    outcomes = np.concatenate([_outcomes(image, threshold, retry) for image in images])
    # Equal scores stay in the data set's order, however the images were shared out to processes.
    outcomes = outcomes[np.argsort(-scores, kind="stable")]
    correct = outcomes[outcomes != _NEITHER] == _CORRECT
    true = correct.cumsum()
    precision = true / np.arange(1, len(true) + 1)
    # The best precision at this recall or more.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    area = envelope[correct].sum() / num_truth
    # In integers: the recall of 3 of 10 is .3, which 3 * 0.1 is not.
    reached = [np.flatnonzero(10 * true >= tenths * num_truth) for tenths in range(11)]
    eleven_points = sum(envelope[places[0]] for places in reached if len(places)) / 11
    return 100 * float(area), 100 * float(eleven_points)


def _outcomes(image: _Overlaps, threshold: float, retry: bool) -> np.ndarray:
    """(D,) int: whether each detection is correct, false or neither."""
    outcomes = np.full(len(image.scores), _FALSE)
    taken = np.zeros(len(image.ignored), bool)
    for place, row in enumerate(image.iou):
        if retry:
            row = np.where(taken, -1.0, row)
        best = int(row.argmax()) if len(row) else None
        if best is not None and row[best] >= threshold:
            if image.ignored[best]:
                outcomes[place] = _NEITHER
            elif not taken[best]:
                outcomes[place] = _CORRECT
                taken[best] = True
        if outcomes[place] == _FALSE and image.in_crowd[place] >= threshold:
            outcomes[place] = _NEITHER
    return outcomes
