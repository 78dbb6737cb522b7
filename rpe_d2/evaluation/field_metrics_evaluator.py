"""Measures of label maps for the instances of a model."""

import itertools
from collections import OrderedDict
from typing import Any, Dict, List, Optional

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from .ground_truth import coco_ground_truth, target_label_map
from .label_metrics import label_metrics, mean_label_metrics

_COUNTS = ("DiC", "|DiC|", "pred", "true")


class FieldMetricsEvaluator(DatasetEvaluator):
    """Evaluates instances by the measures of :func:`rpe_d2.evaluation.label_metrics.label_metrics`.

    The instances of an image become a label map, in which the one with the highest score is in
    front. So do its objects, with the smaller one in front. Classes are not used, and crowds are
    ignored: the pixels of a crowd belong to no object of either map.

    Results for "labels" are the means over the images, in percent except for the counts.
    """

    def __init__(self, dataset_name: str, min_score: float, distributed: bool = True):
        """
        Args:
            dataset_name: a registered dataset with annotations.
            min_score: instances with a lower score are left out.
            distributed: whether to gather the results of all processes. Only the main process
                returns metrics.
        """
        self._truth = coco_ground_truth(dataset_name)
        self._min_score = min_score
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        self._metrics: List[Dict[str, float]] = []
        self._has_masks = True

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """
        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with "instances" in coordinates of the original image.
        """
        for item, output in zip(inputs, outputs):
            instances = output["instances"].to("cpu")
            if not instances.has("pred_masks"):
                self._has_masks = False
                continue
            instances = instances[instances.scores >= self._min_score]
            pred = np.zeros(instances.image_size, np.int64)
            for number in instances.scores.argsort(stable=True).tolist():
                pred[instances.pred_masks[number].numpy()] = number + 1
            target, crowd = target_label_map(self._truth, item["image_id"])
            pred[crowd] = 0
            self._metrics.append(label_metrics(pred, target))

    def evaluate(self) -> Optional["OrderedDict[str, Dict[str, float]]"]:
        """Returns metrics on the main process and None on others.

        There are none if the model predicts no masks.
        """
        metrics, has_masks = self._metrics, self._has_masks
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather((metrics, has_masks), dst=0)
            if not comm.is_main_process():
                return None
            metrics = list(itertools.chain(*(part for part, _ in gathered)))
            has_masks = all(part for _, part in gathered)
        if not has_masks or not metrics:
            return OrderedDict()
        mean = mean_label_metrics(metrics)
        scaled = {k: v if k in _COUNTS else 100 * v for k, v in mean.items()}
        return OrderedDict(labels=scaled)
