"""Linking the objects of neighboring planes of a stack."""

import numpy as np

from rpe_d2.evaluation.label_metrics import label_overlaps

__all__ = ["stitch_planes"]


def stitch_planes(planes: np.ndarray, min_iou: float) -> np.ndarray:
    """Gives the objects of neighboring planes that overlap one label.

    Pairs of objects are linked one to one, the largest IoU first.

    Args:
        planes: (Z, H, W) integer label maps, 0 for background. A label is an object of its plane.
        min_iou: lowest IoU of objects that are linked, above 0.

    Returns:
        (Z, H, W) uint32 labels from 1 without gaps.
    """
    stitched = np.zeros(planes.shape, np.uint32)
    count = 0
    for z, plane in enumerate(planes):
        names, index = np.unique(plane, return_inverse=True)
        new = np.zeros(len(names), np.uint32)
        if z:
            overlaps = label_overlaps(plane, stitched[z - 1])
            before = np.unique(stitched[z - 1])
            before = before[before > 0]
            objects = np.flatnonzero(names > 0)
            iou, used = overlaps.iou, set()
            for pair in np.argsort(-iou, kind="stable"):
                here, there = objects[overlaps.pred[pair]], int(before[overlaps.target[pair]])
                if iou[pair] < min_iou:
                    break
                if not new[here] and there not in used:
                    new[here] = there
                    used.add(there)
        unlinked = (new == 0) & (names > 0)
        new[unlinked] = np.arange(count + 1, count + 1 + unlinked.sum())
        count += int(unlinked.sum())
        stitched[z] = new[index].reshape(plane.shape)
    return stitched
