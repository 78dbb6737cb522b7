"""The AP that each kind of error costs, for the predictions of any model.

The definitions are those of TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object
Detection Errors", ECCV 2020), with the IoU of masks or of boxes.
"""

import contextlib
import io
from collections import defaultdict
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .ground_truth import load_results

__all__ = ["ERROR_KINDS", "error_analysis", "with_true_classes", "with_true_scores"]

ERROR_KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")
_FOREGROUND = 0.5  # IoU at which a prediction finds an object
_BACKGROUND = 0.1  # IoU up to which a prediction has found nothing
_RECALLS = np.linspace(0, 1, 101)


class _Predictions(NamedTuple):
    """Predictions that are not ignored, from all images.

    Attributes:
        scores: (P,) float64.
        classes: (P,) int, index of the class.
        kinds: (P,) int, index of the error in ``ERROR_KINDS``, or -1 for a true positive.
        objects: (P,) int, the object that a correction would assign, or -1.
    """

    scores: np.ndarray
    classes: np.ndarray
    kinds: np.ndarray
    objects: np.ndarray


class _Objects(NamedTuple):
    """Objects that are not crowds, from all images.

    Attributes:
        classes: (G,) int, index of the class.
        found: (G,) bool, whether a prediction is matched with the object.
    """

    classes: np.ndarray
    found: np.ndarray


def error_analysis(
    truth: COCO,
    results: Sequence[Dict[str, Any]],
    detections_per_image: int = 100,
    iou_type: str = "segm",
) -> Dict[str, Any]:
    """Computes how much AP50 would rise if all errors of one kind were corrected.

    Predictions are matched with objects as by COCOeval, at an IoU of 0.5. Every other prediction is
    one of these errors, in this order:

    * ``localization``: its best IoU with an object of its class is between 0.1 and 0.5. Corrected,
      it covers that object.
    * ``classification``: its IoU with an object of another class is at least 0.5. Corrected, it has
      that class.
    * ``duplicate``: its IoU with an object of its class is at least 0.5, but another prediction is
      matched with it. Corrected, it is removed.
    * ``background``: its IoU with every object is at most 0.1. Corrected, it is removed.
    * ``both``: all others. Their best IoU with an object of another class is between 0.1 and 0.5.
      Corrected, they are removed.

    ``missed`` objects are those that are neither matched nor the object of a localization or
    classification error. Corrected, they do not count as objects. A class that then has neither
    objects nor predictions counts as perfect. If several corrections lead to one object, only the
    one with the highest score counts, and the others are removed. Corrections that lead to a
    matched object are all removed.

    Crowds are not objects, and predictions that COCOeval matches with crowds are left out.

    Args:
        truth: ground truth, see :func:`rpe_d2.evaluation.ground_truth.coco_ground_truth`.
        results: predictions in COCO's results format.
        detections_per_image: largest number of predictions of a class in an image, those with the
            highest scores.
        iou_type: "segm" or "bbox".

    Returns:
        ``AP50``, and for each of ``ERROR_KINDS`` the difference of AP50 after the correction, all
        in percent and NaN without objects. ``false_positives`` and ``false_negatives`` are the
        differences if all unmatched predictions, or all unmatched objects, did not count.
        ``counts`` has the number of errors of each kind.
    """
    predictions, objects = _classify(truth, results, detections_per_image, iou_type)
    matched = predictions.kinds == -1
    base = _ap50(predictions.scores, predictions.classes, matched, objects.classes)
    gains, counts = {}, {}
    for kind, name in enumerate(ERROR_KINDS):
        wrong = predictions.kinds == kind
        if name == "missed":
            reachable = np.zeros(len(objects.found), bool)
            reachable[predictions.objects[predictions.objects >= 0]] = True
            lost = ~objects.found & ~reachable
            gains[name] = _without_objects(predictions, objects, lost) - base
            counts[name] = int(lost.sum())
            continue
        corrected = _corrected(predictions, objects, wrong)
        keep = ~wrong | corrected
        classes = predictions.classes.copy()
        classes[corrected] = objects.classes[predictions.objects[corrected]]
        found = (matched | corrected)[keep]
        ap = _ap50(predictions.scores[keep], classes[keep], found, objects.classes)
        gains[name] = ap - base
        counts[name] = int(wrong.sum())
    positives = predictions.scores[matched], predictions.classes[matched], matched[matched]
    gains["false_positives"] = _ap50(*positives, objects.classes) - base
    gains["false_negatives"] = _without_objects(predictions, objects, ~objects.found) - base
    return {"AP50": base, **gains, "counts": counts}


def with_true_classes(truth: COCO, results: Sequence[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Gives every prediction the class of the object that it overlaps most, if there is one.

    Args:
        truth: ground truth.
        results: predictions in COCO's results format, with masks.

    Returns:
        Copies of the predictions, in the same order.
    """
    changed = []
    for result, iou, classes in _overlaps(truth, results):
        if len(iou) and iou.max() > 0:
            result = {**result, "category_id": classes[int(iou.argmax())]}
        changed.append(result)
    return changed


def with_true_scores(truth: COCO, results: Sequence[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Gives every prediction its largest IoU with an object of its class as score.

    Args:
        truth: ground truth.
        results: predictions in COCO's results format, with masks.

    Returns:
        Copies of the predictions, in the same order.
    """
    changed = []
    for result, iou, classes in _overlaps(truth, results):
        own = [x for x, label in zip(iou.tolist(), classes) if label == result["category_id"]]
        changed.append({**result, "score": max(own, default=0.0)})
    return changed


def _overlaps(
    truth: COCO, results: Sequence[Dict[str, Any]]
) -> Iterator[Tuple[Dict[str, Any], np.ndarray, List[Any]]]:
    """Yields each prediction with its IoU with the objects of its image, and their classes."""
    targets: Dict[Any, Tuple[List[dict], List[Any]]] = {}
    for result in results:
        image_id = result["image_id"]
        if image_id not in targets:
            objects = [a for a in truth.imgToAnns.get(image_id, ()) if not a["iscrowd"]]
            masks = [truth.annToRLE(a) for a in objects]
            targets[image_id] = masks, [a["category_id"] for a in objects]
        masks, classes = targets[image_id]
        iou = mask_util.iou([result["segmentation"]], masks, [0] * len(masks)) if masks else []
        yield result, np.asarray(iou, float).reshape(-1), classes


def _classify(
    truth: COCO, results: Sequence[Dict[str, Any]], detections_per_image: int, iou_type: str
) -> Tuple[_Predictions, _Objects]:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, load_results(truth, results, iou_type), iou_type)
        evaluation.params.iouThrs = np.array([_FOREGROUND])
        evaluation.params.maxDets = [detections_per_image]
        evaluation.params.areaRng = [evaluation.params.areaRng[0]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
    class_index = {category: n for n, category in enumerate(evaluation.params.catIds)}
    by_image = defaultdict(list)
    for entry in filter(None, evaluation.evalImgs):
        by_image[entry["image_id"]].append(entry)
    predictions, objects, num_objects = [], [], 0
    for image_id, entries in by_image.items():
        ids = [i for e in entries for i, ignored in zip(e["gtIds"], e["gtIgnore"]) if not ignored]
        matches = np.concatenate([e["dtMatches"][0] for e in entries]).astype(int)
        targets = [truth.anns[i] for i in ids]
        objects.append(
            _Objects(
                np.array([class_index[a["category_id"]] for a in targets], int),
                np.isin(ids, matches),
            )
        )
        kept = ~np.concatenate([e["dtIgnore"][0] for e in entries]).astype(bool)
        pred_ids = [i for e in entries for i in e["dtIds"]]
        pred = [evaluation.cocoDt.anns[i] for i, keep in zip(pred_ids, kept) if keep]
        classes = np.array([class_index[p["category_id"]] for p in pred], int)
        iou = _iou(truth, pred, targets, iou_type)
        kinds, assigned = _kinds(iou, classes, objects[-1], matches[kept] > 0)
        scores = np.array([p["score"] for p in pred], float)
        assigned = np.where(assigned >= 0, assigned + num_objects, -1)
        predictions.append(_Predictions(scores, classes, kinds, assigned))
        num_objects += len(ids)
    if not by_image:
        return _Predictions(*np.zeros((4, 0), int)), _Objects(*np.zeros((2, 0), int))
    return (
        _Predictions(*map(np.concatenate, zip(*predictions))),
        _Objects(*map(np.concatenate, zip(*objects))),
    )


def _iou(truth: COCO, pred: List[dict], targets: List[dict], iou_type: str) -> np.ndarray:
    """Returns the IoU (P, G) of an image's predictions and objects."""
    if not pred or not targets:
        return np.zeros((len(pred), len(targets)))
    if iou_type == "segm":
        masks = [p["segmentation"] for p in pred], [truth.annToRLE(a) for a in targets]
    else:
        masks = [p["bbox"] for p in pred], [a["bbox"] for a in targets]
    return np.asarray(mask_util.iou(*masks, [0] * len(targets)))


def _kinds(
    iou: np.ndarray, classes: np.ndarray, objects: _Objects, matched: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Returns the kind of error (P,) and the object of its correction (P,), -1 for none."""
    kinds, assigned = np.full(len(iou), -1), np.full(len(iou), -1)
    iou = np.concatenate([iou, np.full((len(iou), 1), -1.0)], axis=1)  # there may be no object
    same = np.append(objects.classes, -1)[None] == classes[:, None]
    own, other = np.where(same, iou, -1.0), np.where(same, -1.0, iou)
    own_iou, other_iou = own.max(axis=1), other.max(axis=1)
    cases = {
        "localization": (own_iou >= _BACKGROUND) & (own_iou < _FOREGROUND),
        "classification": other_iou >= _FOREGROUND,
        "duplicate": own_iou >= _FOREGROUND,
        "background": np.maximum(own_iou, other_iou) <= _BACKGROUND,
        "both": np.ones(len(iou), bool),
    }
    open_ = ~matched
    for name, holds in cases.items():
        kinds[open_ & holds] = ERROR_KINDS.index(name)
        if name in ("localization", "classification"):
            targets = (own if name == "localization" else other).argmax(axis=1)
            assigned = np.where(open_ & holds, targets, assigned)
        open_ &= ~holds
    return kinds, assigned


def _without_objects(predictions: _Predictions, objects: _Objects, left_out: np.ndarray) -> float:
    # A class that loses all its objects has AP 0 or none, and keeps its place in the mean.
    matched = predictions.kinds == -1
    return _ap50(
        predictions.scores,
        predictions.classes,
        matched,
        objects.classes[~left_out],
        np.unique(objects.classes),
    )


def _corrected(predictions: _Predictions, objects: _Objects, wrong: np.ndarray) -> np.ndarray:
    """Returns (P,) bool, the wrong predictions that would become true positives."""
    corrected = np.zeros(len(wrong), bool)
    taken = objects.found.copy()
    candidates = np.flatnonzero(wrong & (predictions.objects >= 0))
    for index in candidates[np.argsort(-predictions.scores[candidates], kind="mergesort")]:
        target = predictions.objects[index]
        corrected[index] = not taken[target]
        taken[target] = True
    return corrected


def _ap50(
    scores: np.ndarray,
    classes: np.ndarray,
    found: np.ndarray,
    object_classes: np.ndarray,
    all_classes: Optional[np.ndarray] = None,
) -> float:
    """Returns the mean over classes of the 101-point AP in percent, as COCOeval computes it."""
    values = []
    for label in np.unique(object_classes) if all_classes is None else all_classes:
        count = int((object_classes == label).sum())
        of_class = np.flatnonzero(classes == label)
        of_class = of_class[np.argsort(-scores[of_class], kind="mergesort")]
        true = np.cumsum(found[of_class])
        if count == 0 or not len(true):
            values.append(float(count == 0 and not len(true)))
            continue
        precision = true / np.arange(1, len(true) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(true / count, _RECALLS, side="left")
        values.append(float(np.append(precision, 0.0)[places].mean()))
    return 100 * float(np.mean(values)) if values else float("nan")
