"""Boundary precision and recall as defined by the Berkeley benchmark (BSDS500)."""

from typing import List, NamedTuple, Optional, Sequence

import numpy as np

from .boundary_matching import match_boundaries
from .thinning import thin

# Largest distance between two matched pixels, as a fraction of the image diagonal.
TOLERANCE = 0.0075
# Columns of the counts: matched and total pixels of the ground truth, then of the prediction.
COUNTS = ("matched_truth", "truth", "matched_predicted", "predicted")
# Number of interpolated points between two thresholds, both included, where the best F-measure is
# searched.
_POINTS_BETWEEN = 100


class OperatingPoint(NamedTuple):
    """A point of a precision-recall curve.

    Attributes:
        threshold: 0 to 1, or None where no single threshold applies.
        recall: 0 to 1.
        precision: 0 to 1.
        f_measure: harmonic mean of precision and recall, 0 to 1.
    """

    threshold: Optional[float]
    recall: float
    precision: float
    f_measure: float


class BoundaryScores(NamedTuple):
    """Boundary scores of a dataset.

    Attributes:
        ods: best F-measure with one threshold for the whole dataset (optimal dataset scale).
        ois: F-measure with the best threshold of each image (optimal image scale).
        ap: area under the precision-recall curve, 0 to 1.
        images: best point of each image.
        curve: curve of the dataset, one point per threshold.
    """

    ods: OperatingPoint
    ois: OperatingPoint
    ap: float
    images: List[OperatingPoint]
    curve: List[OperatingPoint]


def boundary_thresholds(num_thresholds: int) -> np.ndarray:
    """Returns (T,) ascending thresholds, evenly spaced inside (0, 1), such as 0.01, 0.02 … 0.99."""
    return np.linspace(1 / (num_thresholds + 1), 1 - 1 / (num_thresholds + 1), num_thresholds)


def count_boundary_matches(
    boundaries: np.ndarray, annotations: Sequence[np.ndarray], num_thresholds: int
) -> np.ndarray:
    """Counts the matched boundary pixels of one image at all thresholds.

    At each threshold, the predicted pixels at or above it are thinned and matched one to one with
    the boundaries of every annotator separately. Ground-truth pixels are summed over the
    annotators. A predicted pixel counts once, and it is matched if it is matched with any annotator
    (Martin et al., PAMI 2004, section 5, and ``boundaryBench`` of BSDS500).

    Args:
        boundaries: (H, W) float in 0 to 1, the predicted boundary probability.
        annotations: one (H, W) bool map per annotator.
        num_thresholds: number of thresholds T.

    Returns:
        (T, 4) int64 with the columns :data:`COUNTS`.
    """
    thresholds = boundary_thresholds(num_thresholds)
    # NumPy before 2 rounds the thresholds to the type of the map.
    boundaries = np.asarray(boundaries, dtype=np.float64)
    above = [int((boundaries >= threshold).sum()) for threshold in thresholds]
    counts = np.zeros((num_thresholds, 4), dtype=np.int64)
    for index, threshold in enumerate(thresholds):
        # The pixels above ascending thresholds are nested: equal numbers mean equal sets.
        if index and above[index] == above[index - 1]:
            counts[index] = counts[index - 1]
        else:
            counts[index] = _count(thin(boundaries >= threshold), annotations)
    return counts


def count_human_matches(annotations: Sequence[np.ndarray]) -> np.ndarray:
    """Counts the matched pixels of each annotator's boundaries against all other annotators'.

    Args:
        annotations: one (H, W) bool map per annotator.

    Returns:
        (4,) int64 with the columns :data:`COUNTS`, summed over the annotators. All are 0 if there
        is only one annotator.
    """
    counts = np.zeros(4, dtype=np.int64)
    for index, annotation in enumerate(annotations):
        others = [*annotations[:index], *annotations[index + 1 :]]
        if others:
            counts += _count(thin(annotation), others)
    return counts


def operating_point(counts: np.ndarray, threshold: Optional[float] = None) -> OperatingPoint:
    """Computes recall, precision and F-measure from counts (4,), 0 where a denominator is 0."""
    matched_truth, truth, matched_predicted, predicted = map(float, counts)
    recall = matched_truth / truth if truth else 0.0
    precision = matched_predicted / predicted if predicted else 0.0
    return OperatingPoint(threshold, recall, precision, float(_f_measure(recall, precision)))


def boundary_scores(counts: np.ndarray) -> BoundaryScores:
    """Computes ODS, OIS and AP as ``collect_eval_bdry`` of BSDS500 does.

    - ODS, and the best point of each image, is the largest F-measure on the curve after linear
      interpolation between neighboring thresholds.
    - OIS sums each image's counts at its best threshold, without interpolation.
    - AP is 0.01 times the sum of the precision at the recalls 0, 0.01 … 1. The precision is
      interpolated linearly and is 0 beyond the ends of the curve. AP is therefore 0 if all
      thresholds have the same recall.

    Args:
        counts: (N, T, 4) of N >= 1 images and T >= 1 thresholds with the columns :data:`COUNTS`.
    """
    thresholds = boundary_thresholds(counts.shape[1])
    best_counts = np.zeros(4, dtype=np.int64)
    images = []
    for image_counts in counts:
        curve = _curve(image_counts, thresholds)
        best_counts += image_counts[int(np.argmax([point.f_measure for point in curve]))]
        images.append(_best_point(curve))
    curve = _curve(counts.sum(axis=0), thresholds)
    return BoundaryScores(
        _best_point(curve), operating_point(best_counts), _average_precision(curve), images, curve
    )


def _count(predicted: np.ndarray, annotations: Sequence[np.ndarray]) -> np.ndarray:
    """Counts (4,) the matched pixels of thinned predicted boundaries (H, W) bool."""
    max_distance = TOLERANCE * float(np.hypot(*predicted.shape))
    matched = np.zeros(predicted.size, dtype=bool)
    matched_truth = 0
    for annotation in annotations:
        pixels, partners = match_boundaries(predicted, annotation, max_distance)
        matched[pixels] = True
        matched_truth += partners.size
    truth = sum(int(annotation.sum()) for annotation in annotations)
    return np.array([matched_truth, truth, matched.sum(), predicted.sum()], dtype=np.int64)


def _f_measure(recall, precision):
    total = np.add(recall, precision)
    return 2 * np.multiply(recall, precision) / np.where(total == 0, 1, total)


def _curve(counts: np.ndarray, thresholds: np.ndarray) -> List[OperatingPoint]:
    return [operating_point(row, float(t)) for row, t in zip(counts, thresholds)]


def _best_point(curve: Sequence[OperatingPoint]) -> OperatingPoint:
    """Returns the point of largest F-measure on the interpolated curve.

    Ties go to the lowest threshold.
    """
    ends = np.array([point[:3] for point in curve])  # (T, 3): threshold, recall, precision
    share = np.linspace(0, 1, _POINTS_BETWEEN)[:, None]
    between = ends[1:, None] * share + ends[:-1, None] * (1 - share)  # (T - 1, 100, 3)
    points = np.concatenate([ends[:1], between.reshape(-1, 3)])
    f_measures = _f_measure(points[:, 1], points[:, 2])
    best = int(np.argmax(f_measures))
    return OperatingPoint(*points[best].tolist(), float(f_measures[best]))


def _average_precision(curve: Sequence[OperatingPoint]) -> float:
    # Among thresholds of equal recall the lowest one counts.
    recall, first = np.unique([point.recall for point in curve], return_index=True)
    if recall.size < 2:
        return 0.0
    precision = np.array([point.precision for point in curve])[first]
    at = np.linspace(0, 1, 101)
    return float(np.interp(at, recall, precision, left=0, right=0).sum() / 100)
