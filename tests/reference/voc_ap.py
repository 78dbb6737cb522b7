"""AP^r of VOC's development kit and SDS with boolean masks and plain loops."""

from typing import Dict, List, NamedTuple, Tuple

import numpy as np


class Truth(NamedTuple):
    image: int
    label: int
    mask: np.ndarray  # (H, W) bool
    difficult: bool = False
    crowd: bool = False


class Detection(NamedTuple):
    image: int
    label: int
    score: float
    mask: np.ndarray  # (H, W) bool


def _areas(one: np.ndarray, other: np.ndarray) -> Tuple[int, int]:
    common = united = 0
    for a, b in zip(one.ravel().tolist(), other.ravel().tolist()):
        common += a and b
        united += a or b
    return common, united


def mask_iou(one: np.ndarray, other: np.ndarray) -> float:
    common, united = _areas(one, other)
    return common / united if united else 0.0


def precision_and_recall(
    truths: List[Truth], detections: List[Detection], label: int, threshold: float, retry: bool
) -> Tuple[List[float], List[float]]:
    """Returns precision and recall after each detection of a class that is not ignored."""
    of_class = [truth for truth in truths if truth.label == label]
    count = len([truth for truth in of_class if not (truth.difficult or truth.crowd)])
    taken: List[int] = []
    true = false = 0
    precision, recall = [], []
    for detection in sorted(detections, key=lambda d: d.score, reverse=True):
        if detection.label != label:
            continue
        best, best_iou = None, -1.0
        in_crowd = False
        for index, truth in enumerate(of_class):
            if truth.image != detection.image:
                continue
            if truth.crowd:
                common, _ = _areas(truth.mask, detection.mask)
                in_crowd |= common / int(detection.mask.sum()) >= threshold
                continue
            if retry and index in taken:
                continue
            iou = mask_iou(truth.mask, detection.mask)
            if iou > best_iou:
                best, best_iou = index, iou
        hit = best is not None and best_iou >= threshold
        if hit and of_class[best].difficult:
            continue
        if hit and best not in taken:
            taken.append(best)
            true += 1
        elif in_crowd:
            continue
        else:
            false += 1
        precision.append(true / (true + false))
        recall.append(true / count if count else 0.0)
    return precision, recall


def area_under_curve(precision: List[float], recall: List[float], count: int) -> float:
    """Averages the best precision at which each of the ``count`` instances is detected."""
    total = 0.0
    for number in range(1, count + 1):
        result = [p for p, r in zip(precision, recall) if round(r * count) >= number]
        total += max(result, default=0.0)
    return total / count


def eleven_points(precision: List[float], recall: List[float]) -> float:
    total = 0.0
    for tenths in range(11):
        result = [p for p, r in zip(precision, recall) if r * 10 >= tenths - 1e-9]
        total += max(result, default=0.0)
    return total / 11


def voc_ap(truths: List[Truth], detections: List[Detection], labels: range) -> Dict[str, float]:
    """Computes the metrics of VOCInstanceEvaluator; names end with the number of the label."""
    metrics: Dict[str, float] = {}
    for label in labels:
        count = sum(t.label == label and not (t.difficult or t.crowd) for t in truths)
        for name in ("AP50", "AP70", "AP50_07", "AP70_07", "APvol"):
            metrics[f"{name}-{label}"] = float("nan")
        if count == 0:
            continue
        for name, threshold in (("AP50", 0.5), ("AP70", 0.7)):
            curve = precision_and_recall(truths, detections, label, threshold, retry=False)
            metrics[f"{name}-{label}"] = 100 * area_under_curve(*curve, count)
            metrics[f"{name}_07-{label}"] = 100 * eleven_points(*curve)
        volume = 0.0
        for tenths in range(1, 10):
            curve = precision_and_recall(truths, detections, label, tenths / 10, retry=True)
            volume += area_under_curve(*curve, count) / 9
        metrics[f"APvol-{label}"] = 100 * volume
    for name in ("AP50", "AP70", "AP50_07", "AP70_07", "APvol"):
        values = [metrics[f"{name}-{label}"] for label in labels]
        values = [value for value in values if value == value]
        metrics[name] = sum(values) / len(values) if values else float("nan")
    return metrics
