"""F-scores of parts in semantic maps."""

from collections import OrderedDict
from typing import Any, Dict, List, Optional

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from .ground_truth import read_label_map


class PartFScoreEvaluator(DatasetEvaluator):
    """F-score of every part, from pixels counted over the whole data set (Smith et al., CVPR 2013).

    A part consists of classes of the semantic map that count as one; the data set's metadata name them in
    ``part_classes``. Results, in percent: "f_score" with each part; NaN for one that is neither there nor found.
    """

    def __init__(self, dataset_name: str, distributed: bool = True):
        """
        Args:
            dataset_name: registered, with semantic maps and ``part_classes``.
            distributed: gather what other processes found; only the main one returns results.
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
        self._counts = np.zeros((len(self._parts), 3), np.int64)  # found and there, found, there

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """
        Args:
            inputs: with ``file_name``.
            outputs: with "sem_seg" scores (K, H, W).
        """
        for item, output in zip(inputs, outputs):
            found = output["sem_seg"].argmax(dim=0).cpu().numpy()
            truth = read_label_map(self._map_of_image[item["file_name"]])
            counted = truth != self._ignore_label
            for number, classes in enumerate(self._parts.values()):
                one, other = np.isin(found, classes) & counted, np.isin(truth, classes)
                self._counts[number] += (one & other).sum(), one.sum(), other.sum()

    def evaluate(self) -> Optional["OrderedDict[str, Dict[str, float]]"]:
        """Metrics on the main process, None on others."""
        counts = self._counts
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(counts, dst=0)
            if not comm.is_main_process():
                return None
            counts = sum(gathered)
        scores = {}
        for part, (common, found, there) in zip(self._parts, counts.tolist()):
            scores[part] = 100 * 2 * common / (found + there) if found + there else float("nan")
        return OrderedDict(f_score=scores)
