"""Choice of the settings of prediction on held-out images, for ``rpe-d2 fit``."""

from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from rpe_d2.evaluation.label_metrics import label_metrics, mean_label_metrics

from .fit_data import LabelMaps
from .segmenter import Segmenter

__all__ = ["TRIED", "Tuned", "measure_all", "tune"]

Opts = Tuple[Any, ...]  # KEY and VALUE by turns

MIN_SCORES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# Values that are tried one key after the other. A predicted group is larger with more foreground,
# and objects of other sizes are separated with another bandwidth.
TRIED: Dict[str, Sequence[Any]] = {
    "MODEL.RPE.FOREGROUND_THRESHOLD": (0.35, 0.65),
    "MODEL.MEAN_SHIFT.TEST_SCALES": ([1.0], [0.65, 1.0], [1.0, 1.5]),
}


class Tuned(NamedTuple):
    """Settings of prediction and what they reach.

    Attributes:
        opts: overrides of the configuration.
        min_score: objects with a lower score are left out.
        score: mean S over IoU .5 to .95 of the images, in 0-1.
        tried: opts, best min_score and score of every setting that was tried.
    """

    opts: Opts
    min_score: float
    score: float
    tried: List[Tuple[Opts, float, float]]


def tune(
    load: Callable[[Opts], Segmenter],
    truth: LabelMaps,
    chosen: Sequence[int],
    tried: Dict[str, Sequence[Any]],
) -> Tuned:
    """Chooses settings by the mean S of label maps.

    Args:
        load: returns a segmenter with overrides and a ``min_score`` of 0.
        truth: images and their objects.
        chosen: numbers of the images that are used.
        tried: values of each key that are tried, besides the present one.
    """
    opts: Opts = ()
    min_score, score = _best_min_score(load(opts), truth, chosen)
    history = [(opts, min_score, score)]
    for key, values in tried.items():
        better = opts
        for value in values:
            candidate = (*opts, key, value)
            found = _best_min_score(load(candidate), truth, chosen)
            history.append((candidate, *found))
            if found[1] > score:
                better, (min_score, score) = candidate, found
        opts = better
    return Tuned(opts, min_score, score, history)


def _best_min_score(
    segmenter: Segmenter, truth: LabelMaps, chosen: Sequence[int]
) -> Tuple[float, float]:
    by_score: Dict[float, List[Dict[str, float]]] = {score: [] for score in MIN_SCORES}
    for number in tqdm(chosen, "tune", unit="image", leave=False, disable=None):
        found, (target, crowd) = segmenter.predict(truth.file(number)), truth.target(number)
        for min_score in MIN_SCORES:
            # A pixel belongs to the object with the highest score, so that objects with lower ones
            # may be left out afterwards. Their scores decrease.
            count = int((found.scores >= min_score).sum())
            pred = np.where((found.labels <= count) & ~crowd, found.labels, 0)
            by_score[min_score].append(label_metrics(pred, target))
    means = {score: mean_label_metrics(metrics)["S"] for score, metrics in by_score.items()}
    best = max(means, key=lambda score: (means[score], -abs(score - 0.5)))
    return best, means[best]


def measure_all(segmenter: Segmenter, truth: LabelMaps) -> List[Dict[str, float]]:
    """Segments all images and returns the measures of their label maps."""
    metrics = []
    for number in tqdm(range(len(truth)), "evaluate", unit="image", disable=None):
        found, (target, crowd) = segmenter.predict(truth.file(number)), truth.target(number)
        metrics.append(label_metrics(np.where(crowd, 0, found.labels), target))
    return metrics
