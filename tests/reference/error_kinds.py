"""The errors of TIDE (Bolya et al., ECCV 2020) in plain loops over dense masks of one image."""

from typing import Dict, List

import numpy as np


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.logical_and(a, b).sum() / np.logical_or(a, b).sum()


def analyze(images: List[dict]) -> Dict[str, object]:
    """Returns AP50, its gains and the numbers of errors.

    Args:
        images: dicts with "objects", a list of (mask, class), and "predictions", a list of
            (mask, class, score) without equal scores.
    """
    entries, objects = [], []  # (score, class, kind, object), and [class, found, reachable]
    for image in images:
        first = len(objects)
        objects += [[label, False, False] for _, label in image["objects"]]
        masks = [mask for mask, _ in image["objects"]]
        unmatched = []
        for mask, label, score in sorted(image["predictions"], key=lambda p: -p[2]):
            best, best_iou = None, 0.5
            for number, target in enumerate(masks):
                found_label, found, _ = objects[first + number]
                iou = mask_iou(mask, target)
                if found_label == label and not found and iou >= best_iou:
                    best, best_iou = first + number, iou
            if best is None:
                unmatched.append((mask, label, score))
            else:
                objects[best][1] = True
                entries.append((score, label, "true", best))
        for mask, label, score in unmatched:
            ious = [mask_iou(mask, target) for target in masks]
            same = [iou if objects[first + n][0] == label else -1 for n, iou in enumerate(ious)]
            other = [iou if objects[first + n][0] != label else -1 for n, iou in enumerate(ious)]
            target = None
            if masks and 0.1 <= max(same) < 0.5:
                kind, target = "localization", first + int(np.argmax(same))
            elif masks and max(other) >= 0.5:
                kind, target = "classification", first + int(np.argmax(other))
            elif masks and max(same) >= 0.5:
                kind = "duplicate"
            elif not masks or max(ious) <= 0.1:
                kind = "background"
            else:
                kind = "both"
            if target is not None:
                objects[target][2] = True
            entries.append((score, label, kind, target))
    entries.sort(key=lambda entry: -entry[0])

    points = [(score, label, kind == "true") for score, label, kind, _ in entries]
    labels = [label for label, _, _ in objects]
    base = ap50(points, labels, set(labels))
    result: Dict[str, object] = {"AP50": base}
    counts = {}
    for fixed in ("classification", "localization", "both", "duplicate", "background"):
        points, taken = [], [found for _, found, _ in objects]
        for score, label, kind, target in entries:
            if kind != fixed:
                points.append((score, label, kind == "true"))
            elif target is not None and not taken[target]:
                taken[target] = True
                points.append((score, labels[target], True))
        result[fixed] = ap50(points, labels, set(labels)) - base
        counts[fixed] = sum(kind == fixed for _, _, kind, _ in entries)
    points = [(score, label, kind == "true") for score, label, kind, _ in entries]
    kept = [label for label, found, reachable in objects if found or reachable]
    result["missed"] = ap50(points, kept, set(labels)) - base
    counts["missed"] = len(labels) - len(kept)
    found = [label for label, found, _ in objects if found]
    result["false_negatives"] = ap50(points, found, set(labels)) - base
    result["false_positives"] = ap50([p for p in points if p[2]], labels, set(labels)) - base
    return {**result, "counts": counts}


def ap50(points: List[tuple], labels: List[int], classes: set) -> float:
    """Returns the mean over classes of the precision at 101 recalls, in percent."""
    values = []
    for chosen in classes:
        of_class = [true for _, label, true in points if label == chosen]
        total = labels.count(chosen)
        if total == 0 or not of_class:
            values.append(1.0 if total == 0 and not of_class else 0.0)
            continue
        curve = []
        for count in range(1, len(of_class) + 1):
            true = sum(of_class[:count])
            curve.append((true / total, true / count))
        sampled = [
            max([p for r, p in curve if r >= recall], default=0.0)
            for recall in np.linspace(0, 1, 101)
        ]
        values.append(float(np.mean(sampled)))
    return 100 * float(np.mean(values))
