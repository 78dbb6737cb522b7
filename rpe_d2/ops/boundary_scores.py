"""Precision and recall of boundaries as the Berkeley benchmark (BSDS500) defines them: counts and what follows."""

from typing import List, NamedTuple, Optional, Sequence

import numpy as np

from .boundary_matching import match_boundaries
from .thinning import thin

# The largest distance of two pixels that may be matched, as a share of the image's diagonal.
TOLERANCE = 0.0075
# Columns of counts: matched pixels and all pixels, of the ground truth and of the prediction.
COUNTS = ("matched_truth", "truth", "matched_predicted", "predicted")
# The curve is interpolated at so many points between two thresholds, both included, in search of the best F-measure.
_POINTS_BETWEEN = 100


class OperatingPoint(NamedTuple):
    """A point on, or of, precision–recall curves.

    Attributes:
        threshold: 0-1; None where every image has its own, or there is none.
        recall, precision: 0-1.
        f_measure: their harmonic mean.
    """

    threshold: Optional[float]
    recall: float
    precision: float
    f_measure: float


class BoundaryScores(NamedTuple):
    """Scores of a data set.

    Attributes:
        ods: best F-measure with one threshold for the data set.
        ois: F-measure with the best threshold of each image.
        ap: area under the precision–recall curve, 0-1.
        images: of each image by itself, the best point.
        curve: of the data set, one point a threshold.
    """

    ods: OperatingPoint
    ois: OperatingPoint
    ap: float
    images: List[OperatingPoint]
    curve: List[OperatingPoint]


def boundary_thresholds(num_thresholds: int) -> np.ndarray:
    """(T,) ascending, evenly spaced inside (0, 1): 99 of them are 0.01, 0.02 … 0.99."""
    return np.linspace(1 / (num_thresholds + 1), 1 - 1 / (num_thresholds + 1), num_thresholds)


def count_boundary_matches(
    boundaries: np.ndarray, annotations: Sequence[np.ndarray], num_thresholds: int
) -> np.ndarray:
    """Matches of one image's predicted boundaries with each annotator's, at all thresholds.

    At each threshold the pixels at or above it are thinned and matched one to one with every annotator's boundaries
    on their own. The pixels of the annotators are added up; a predicted pixel counts once, as matched where any
    annotator has a partner for it (Martin et al., PAMI 2004, section 5; BSDS500's ``boundaryBench``).

    Args:
        boundaries: (H, W) float, 0-1.
        annotations: (H, W) bool each.
        num_thresholds: T.

    Returns:
        (T, 4) int64, columns :data:`COUNTS`.
    """
    thresholds = boundary_thresholds(num_thresholds)
    above = [int((boundaries >= threshold).sum()) for threshold in thresholds]
    counts = np.zeros((num_thresholds, 4), dtype=np.int64)
    for index, threshold in enumerate(thresholds):
        if index and above[index] == above[index - 1]:  # the sets are nested: it is the same one
            counts[index] = counts[index - 1]
        else:
            counts[index] = _count(thin(boundaries >= threshold), annotations)
    return counts


def count_human_matches(annotations: Sequence[np.ndarray]) -> np.ndarray:
    """Matches of each annotator's boundaries, taken as the prediction, with all the others'.

    Args:
        annotations: (H, W) bool each.

    Returns:
        (4,) int64, columns :data:`COUNTS`, added up over the annotators; zeros where there is only one.
    """
    counts = np.zeros(4, dtype=np.int64)
    for index, annotation in enumerate(annotations):
        others = [*annotations[:index], *annotations[index + 1 :]]
        if others:
            counts += _count(thin(annotation), others)
    return counts


def operating_point(counts: np.ndarray, threshold: Optional[float] = None) -> OperatingPoint:
    """Recall and precision of counts (4,); 0 where there is nothing to count."""
    matched_truth, truth, matched_predicted, predicted = map(float, counts)
    recall = matched_truth / truth if truth else 0.0
    precision = matched_predicted / predicted if predicted else 0.0
    return OperatingPoint(threshold, recall, precision, float(_f_measure(recall, precision)))


def boundary_scores(counts: np.ndarray) -> BoundaryScores:
    """ODS, OIS and AP as BSDS500's ``collect_eval_bdry`` takes them from the counts of all images.

    The best F-measure (ODS, and of an image by itself) is sought on the curve, interpolated linearly between
    neighbouring thresholds; for OIS each image contributes its counts at its best threshold, without interpolation; AP
    is .01 times the sum of the precision at recall 0, .01 … 1, interpolated linearly, and 0 beyond the curve's ends: so
    also 0 where all thresholds have the same recall.

    Args:
        counts: (N, T, 4), N and T at least 1, columns :data:`COUNTS`.
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
    """Counts (4,) of thinned predicted boundaries (H, W) bool."""
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
    """Of the largest F-measure on a curve between its thresholds; of the lowest threshold where there are several."""
    ends = np.array([point[:3] for point in curve])  # (T, 3): threshold, recall, precision
    share = np.linspace(0, 1, _POINTS_BETWEEN)[:, None]
    between = ends[1:, None] * share + ends[:-1, None] * (1 - share)  # (T - 1, 100, 3)
    points = np.concatenate([ends[:1], between.reshape(-1, 3)])
    f_measures = _f_measure(points[:, 1], points[:, 2])
    best = int(np.argmax(f_measures))
    return OperatingPoint(*points[best].tolist(), float(f_measures[best]))


def _average_precision(curve: Sequence[OperatingPoint]) -> float:
    # Of thresholds with the same recall the lowest counts.
    recall, first = np.unique([point.recall for point in curve], return_index=True)
    if recall.size < 2:
        return 0.0
    precision = np.array([point.precision for point in curve])[first]
    at = np.linspace(0, 1, 101)
    return float(np.interp(at, recall, precision, left=0, right=0).sum() / 100)
