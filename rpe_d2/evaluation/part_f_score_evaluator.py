"""F-scores of parts in semantic label maps."""

from collections import OrderedDict
from typing import Any, Dict, List, Optional

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from rpe_d2.utils.label_maps import read_label_map


class PartFScoreEvaluator(DatasetEvaluator):
    """Evaluates the F-score of every part over all pixels of a dataset (Smith et al., CVPR 2013).

    A part is a group of classes that count as one. The metadata of the dataset define the parts in
    ``part_classes``. Results for "f_score" are in percent, one per part. If a part occurs neither
    in the ground truth nor in the prediction, it is NaN.
    """

    def __init__(self, dataset_name: str, distributed: bool = True):
        """
        Args:
            dataset_name: a registered dataset with semantic label maps and ``part_classes``.
            distributed: whether to gather the results of all processes. Only the main process
                returns metrics.
        """
        self._distributed = distributed
        metadata = MetadataCatalog.get(dataset_name)
        self._ignore_label = metadata.get("ignore_label", 255)
        self._parts = dict(metadata.part_classes)
        self._map_of_image = {
            item["file_name"]: item["sem_seg_file_name"]
            for item in DatasetCatalog.get(dataset_name)
        }
        self.reset()

    def reset(self) -> None:
        # Pixels by part: intersection, prediction, ground truth.
        self._counts = np.zeros((len(self._parts), 3), np.int64)

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """
        Args:
            inputs: dicts with ``file_name``.
            outputs: dicts with "sem_seg" scores (K, H, W).
        """
        for item, output in zip(inputs, outputs):
            pred = output["sem_seg"].argmax(dim=0).cpu().numpy()
            truth = read_label_map(self._map_of_image[item["file_name"]])
            valid = truth != self._ignore_label
            for number, classes in enumerate(self._parts.values()):
                one, other = np.isin(pred, classes) & valid, np.isin(truth, classes)
                self._counts[number] += (one & other).sum(), one.sum(), other.sum()

    def evaluate(self) -> Optional["OrderedDict[str, Dict[str, float]]"]:
        """Returns metrics on the main process and None on others."""
        counts = self._counts
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(counts, dst=0)
            if not comm.is_main_process():
                return None
            counts = sum(gathered)
        scores = {}
        for part, (both, pred, truth) in zip(self._parts, counts.tolist()):
            scores[part] = 100 * 2 * both / (pred + truth) if pred + truth else float("nan")
        return OrderedDict(f_score=scores)
