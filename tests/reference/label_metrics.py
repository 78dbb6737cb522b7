"""Measures of label maps from dense masks of every object."""

import itertools
from typing import Dict, List

import numpy as np


def masks_of(labels: np.ndarray) -> List[np.ndarray]:
    return [labels == label for label in np.unique(labels) if label > 0]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def metrics(pred_labels: np.ndarray, target_labels: np.ndarray) -> Dict[str, float]:
    """Tries all assignments, so that there may be few objects only."""
    pred, target = masks_of(pred_labels), masks_of(target_labels)
    ious = np.array([[iou(p, t) for t in target] for p in pred]).reshape(len(pred), len(target))
    result = {"pred": len(pred), "true": len(target), "DiC": len(pred) - len(target)}
    result["|DiC|"] = abs(result["DiC"])
    if not pred and not target:
        return result
    thresholds = [0.5 + 0.05 * n for n in range(10)]
    for threshold in thresholds:
        true = max(
            sum(ious[pair] >= threshold - 1e-9 for pair in pairs)
            for pairs in assignments(len(pred), len(target))
        )
        result[f"S@{threshold:.2g}"] = true / (len(pred) + len(target) - true)
        result[f"F1@{threshold:.2g}"] = 2 * true / (len(pred) + len(target))
    result["S"] = np.mean([result[f"S@{threshold:.2g}"] for threshold in thresholds])
    good = ious[ious > 0.5]
    result["RQ"] = 2 * len(good) / (len(pred) + len(target))
    result["SQ"] = good.mean() if len(good) else 0.0
    result["PQ"] = result["RQ"] * result["SQ"]
    nearest = [
        (int(ious[:, t].argmax()), t) for t in range(len(target)) if pred and ious[:, t].max() > 0
    ]
    result["AJI"] = aji(pred, target, nearest)
    best = max(assignments(len(pred), len(target)), key=lambda pairs: sum(ious[p] for p in pairs))
    result["AJI+"] = aji(pred, target, [pair for pair in best if ious[pair] > 0])
    of_target = np.mean([max([dice(t, p) for p in pred], default=0) for t in target] or [0])
    of_pred = np.mean([max([dice(t, p) for t in target], default=0) for p in pred] or [0])
    result["SBD"] = min(of_target, of_pred)
    return result


def assignments(rows: int, columns: int):
    """Yields all ways to pair as many rows and columns as possible."""
    if rows <= columns:
        for chosen in itertools.permutations(range(columns), rows):
            yield list(zip(range(rows), chosen))
    else:
        for chosen in itertools.permutations(range(rows), columns):
            yield list(zip(chosen, range(columns)))


def aji(pred: List[np.ndarray], target: List[np.ndarray], pairs: List[tuple]) -> float:
    common = sum((pred[p] & target[t]).sum() for p, t in pairs)
    union = sum((pred[p] | target[t]).sum() for p, t in pairs)
    union += sum(mask.sum() for p, mask in enumerate(pred) if p not in {p for p, _ in pairs})
    union += sum(mask.sum() for t, mask in enumerate(target) if t not in {t for _, t in pairs})
    return common / union
