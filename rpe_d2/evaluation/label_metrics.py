"""Measures of instance label maps that the fields of microscopy and plants publish.

All objects are of one class, and a pixel belongs to at most one object of a label map. Definitions:

* S, F1: Weigert et al., MICCAI 2018; Stringer et al., Nature Methods 2021 (as average precision).
* PQ, SQ, RQ: Kirillov et al., CVPR 2019.
* AJI: Kumar et al., IEEE TMI 2017. AJI+: Graham et al., Medical Image Analysis 2019.
* SBD, DiC: Scharr et al., Machine Vision and Applications 2016. Background is not an object.
"""

from typing import Dict, NamedTuple, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_bipartite_matching, min_weight_full_bipartite_matching

__all__ = ["S_THRESHOLDS", "LabelOverlaps", "label_metrics", "label_overlaps", "mean_label_metrics"]

S_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
# IoUs are ratios of whole numbers: smaller differences to a threshold are rounding.
_EPSILON = 1e-9


class LabelOverlaps(NamedTuple):
    """Overlaps of the objects of two label maps.

    Attributes:
        pred_areas: (P,) int64 areas of the predicted objects, in pixels.
        target_areas: (T,) int64 areas of the true objects, in pixels.
        pred: (M,) int64, the predicted object of each pair with common pixels.
        target: (M,) int64, the true object of each pair.
        common: (M,) int64, number of the common pixels, above 0.
    """

    pred_areas: np.ndarray
    target_areas: np.ndarray
    pred: np.ndarray
    target: np.ndarray
    common: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """(M,) float64 IoU of each pair."""
        union = self.pred_areas[self.pred] + self.target_areas[self.target] - self.common
        return self.common / union

    @property
    def dice(self) -> np.ndarray:
        """(M,) float64 Dice coefficient of each pair."""
        return 2 * self.common / (self.pred_areas[self.pred] + self.target_areas[self.target])


def label_overlaps(pred: np.ndarray, target: np.ndarray) -> LabelOverlaps:
    """Counts the common pixels of the objects of two label maps.

    Memory grows with the number of pixels and of overlapping pairs, not with all pairs.

    Args:
        pred: label map of any shape and integer type, 0 for background. Labels may have gaps.
        target: label map of the same shape.

    Raises:
        ValueError: The shapes differ, or a map does not hold integers from 0.
    """
    pred, target = np.asarray(pred), np.asarray(target)
    if pred.shape != target.shape:
        raise ValueError(
            f"pred has shape {pred.shape}; allowed with target of shape {target.shape}: the same"
        )
    for name, labels in (("pred", pred), ("target", target)):
        if labels.dtype.kind not in "iub":
            raise ValueError(f"{name} has type {labels.dtype}; allowed: integers")
        if labels.size and labels.min() < 0:
            raise ValueError(f"{name} has the label {labels.min()}; allowed: 0 or more")
    pred_names, pred_index = np.unique(pred, return_inverse=True)
    target_names, target_index = np.unique(target, return_inverse=True)
    pair = pred_index.reshape(-1).astype(np.int64) * len(target_names) + target_index.reshape(-1)
    pairs, common = np.unique(pair, return_counts=True)
    rows, columns = np.divmod(pairs, max(1, len(target_names)))
    pred_areas = np.bincount(rows, common, len(pred_names)).astype(np.int64)
    target_areas = np.bincount(columns, common, len(target_names)).astype(np.int64)
    # Background is left out, which comes first where there is any.
    skipped_pred = int(len(pred_names) > 0 and pred_names[0] == 0)
    skipped_target = int(len(target_names) > 0 and target_names[0] == 0)
    kept = (rows >= skipped_pred) & (columns >= skipped_target)
    return LabelOverlaps(
        pred_areas[skipped_pred:],
        target_areas[skipped_target:],
        rows[kept] - skipped_pred,
        columns[kept] - skipped_target,
        common[kept],
    )


def label_metrics(pred: np.ndarray, target: np.ndarray) -> Dict[str, float]:
    """Compares a predicted label map with the true one.

    Args:
        pred, target: label maps, see :func:`label_overlaps`.

    Returns:
        Numbers in 0 to 1, except for the counts:

        * ``S@0.5`` to ``S@0.95``: TP / (TP + FP + FN), where a predicted and a true object are a
          pair if their IoU is at least the threshold, and every object is in one pair at most.
          ``S`` is their mean.
        * ``F1@0.5`` to ``F1@0.95``: 2 TP / (2 TP + FP + FN).
        * ``RQ``, ``SQ``, ``PQ``: F1 of the pairs with an IoU above 0.5, their mean IoU, and the
          product of both. SQ is 0 without pairs.
        * ``AJI``: every true object is compared with the predicted one of the largest IoU, which
          may be the same for several. Common pixels of all pairs are divided by their unions and
          the areas of predicted objects that were never chosen.
        * ``AJI+``: the same with pairs one to one, of the largest sum of IoUs.
        * ``SBD``: the smaller one of two means: over the true objects, of the largest Dice
          coefficient with a predicted one; and over the predicted objects with the true ones.
        * ``DiC``, ``|DiC|``: difference of the numbers of objects, predicted minus true.
        * ``pred``, ``true``: the numbers of objects.

        All but the counts are NaN if both maps have no objects, and 0 if only one has none.
    """
    return overlap_metrics(label_overlaps(pred, target))


def overlap_metrics(overlaps: LabelOverlaps) -> Dict[str, float]:
    """Computes the metrics of :func:`label_metrics` from overlaps."""
    num_pred, num_target = len(overlaps.pred_areas), len(overlaps.target_areas)
    metrics: Dict[str, float] = {}
    for threshold in S_THRESHOLDS:
        pairs = _num_pairs(overlaps, threshold)
        rest = num_pred + num_target - 2 * pairs  # FP + FN
        metrics[f"S@{threshold:g}"] = _ratio(pairs, pairs + rest)
        metrics[f"F1@{threshold:g}"] = _ratio(2 * pairs, 2 * pairs + rest)
    good = overlaps.iou[overlaps.iou > 0.5]
    recognition = _ratio(2 * len(good), num_pred + num_target)
    metrics["RQ"] = recognition
    metrics["SQ"] = float(good.mean()) if len(good) else recognition  # 0, or NaN without objects
    metrics["PQ"] = _ratio(2 * float(good.sum()), num_pred + num_target)
    metrics["AJI"] = _aji(overlaps, _best_of_targets(overlaps))
    metrics["AJI+"] = _aji(overlaps, _one_to_one(overlaps))
    metrics["SBD"] = min(
        _mean_best(overlaps.dice, overlaps.target, num_target, num_pred),
        _mean_best(overlaps.dice, overlaps.pred, num_pred, num_target),
    )
    metrics["S"] = float(np.mean([metrics[f"S@{t:g}"] for t in S_THRESHOLDS]))
    metrics["DiC"] = float(num_pred - num_target)
    metrics["|DiC|"] = abs(metrics["DiC"])
    return {**metrics, "pred": float(num_pred), "true": float(num_target)}


def mean_label_metrics(metrics: Sequence[Dict[str, float]]) -> Dict[str, float]:
    """Averages the metrics of images. Images without any object are left out of all but counts.

    Args:
        metrics: those of :func:`label_metrics` for each image.

    Returns:
        The mean of each metric over the images, and the sums of ``pred`` and ``true``.
    """
    if not metrics:
        return {}
    means: Dict[str, float] = {}
    for name in metrics[0]:
        values = np.array([each[name] for each in metrics], float)
        if name in ("pred", "true"):
            means[name] = float(values.sum())
        else:
            known = values[~np.isnan(values)]
            means[name] = float(known.mean()) if len(known) else float("nan")
    return means


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else float("nan")


def _num_pairs(overlaps: LabelOverlaps, threshold: float) -> int:
    """Returns the largest number of pairs one to one whose IoU is at least a threshold."""
    good = overlaps.iou >= threshold - _EPSILON
    if not good.any():
        return 0
    shape = len(overlaps.pred_areas), len(overlaps.target_areas)
    # SciPy before 1.15 accepts 32-bit indices only.
    pairs = overlaps.pred[good].astype(np.int32), overlaps.target[good].astype(np.int32)
    graph = coo_array((np.ones(len(pairs[0])), pairs), shape).tocsr()
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def _best_of_targets(overlaps: LabelOverlaps) -> np.ndarray:
    """Returns the indices of the pairs of each true object with the predicted one of best IoU."""
    # The lowest predicted object comes first among equal IoUs.
    order = np.lexsort((overlaps.pred, -overlaps.iou, overlaps.target))
    _, first = np.unique(overlaps.target[order], return_index=True)
    return order[first]


def _one_to_one(overlaps: LabelOverlaps) -> np.ndarray:
    """Returns the indices of pairs one to one with the largest sum of IoUs."""
    count, num_pairs = len(overlaps.pred_areas), len(overlaps.iou)
    if num_pairs == 0:
        return np.zeros(0, np.int64)
    # A predicted object without a partner takes a column of its own, which has no gain. SciPy's
    # sparse assignment takes no zeros, so that 2 is added to every cost.
    rows = np.concatenate([overlaps.pred, np.arange(count)]).astype(np.int32)
    own = len(overlaps.target_areas) + np.arange(count)
    columns = np.concatenate([overlaps.target, own]).astype(np.int32)
    cost = np.concatenate([2 - overlaps.iou, np.full(count, 2.0)])
    shape = count, len(overlaps.target_areas) + count
    pred, target = min_weight_full_bipartite_matching(coo_array((cost, (rows, columns)), shape))
    number = coo_array((np.arange(1, num_pairs + 1), (overlaps.pred, overlaps.target)), shape)
    pairs = np.asarray(number.tocsr()[pred, target]).reshape(-1)
    return pairs[pairs > 0] - 1


def _aji(overlaps: LabelOverlaps, pairs: np.ndarray) -> float:
    """Returns the common pixels of pairs divided by their unions and the areas in no pair."""
    pred, target = overlaps.pred[pairs], overlaps.target[pairs]
    common = overlaps.common[pairs].sum()
    union = overlaps.pred_areas[pred].sum() + overlaps.target_areas[target].sum() - common
    unused = np.setdiff1d(np.arange(len(overlaps.pred_areas)), pred)
    missed = np.setdiff1d(np.arange(len(overlaps.target_areas)), target)
    union += overlaps.pred_areas[unused].sum() + overlaps.target_areas[missed].sum()
    return _ratio(common, union)


def _mean_best(values: np.ndarray, objects: np.ndarray, count: int, others: int) -> float:
    """Returns the mean over objects of their largest value, 0 for those in no pair."""
    if count == 0:
        return 0.0 if others else float("nan")
    best = np.zeros(count)
    np.maximum.at(best, objects, values)
    return float(best.mean())
