"""The contour detection benchmark of BSDS500: ODS, OIS and AP."""

import itertools
import logging
from collections import OrderedDict
from typing import Any, Dict, List, Optional

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from rpe_d2.ops.boundary_scores import boundary_scores, count_boundary_matches

from .bsds_files import as_boundary_map, check_sizes, read_boundary_annotations


class BSDSBoundaryEvaluator(DatasetEvaluator):
    """Evaluates contour maps against several annotators (BSDS500; Martin et al., PAMI 2004).

    The dataset dicts need ``boundary_file_name``, the path of a .mat file with the annotators'
    contours as in BSDS500. The model's output is ``boundaries``, (H, W) float in 0 to 1, at the
    size of the original image. See :mod:`rpe_d2.ops.boundary_scores` for the definition of the
    scores.

    Matching takes about 4 seconds per image at 99 thresholds, in the process that predicts. To use
    all cores, write predictions to files and evaluate them with ``tools/eval_bsds.py``.

    Results for "boundary" are in percent, except for the threshold and the number of images:

    * ``ODS``: best F-measure with one threshold, ``ODS_threshold`` (0 to 1), for the dataset.
    * ``OIS``: F-measure with the best threshold of each image.
    * ``AP``: area under the precision-recall curve.
    * ``images``: number of images evaluated. Images with an invalid ground truth or prediction are
      left out with a warning.

    Scores are NaN if no image could be evaluated.
    """

    def __init__(self, dataset_name: str, num_thresholds: int = 99, distributed: bool = True):
        """
        Args:
            dataset_name: name of the dataset in messages.
            num_thresholds: number of thresholds, evenly spaced inside (0, 1). The benchmark has 99.
            distributed: whether to gather the results of all processes. Only the main process
                returns metrics.

        Raises:
            ValueError: ``num_thresholds`` is below 1.
        """
        if num_thresholds < 1:
            raise ValueError(f"num_thresholds is {num_thresholds}; allowed: 1 or more")
        self._dataset_name = dataset_name
        self._num_thresholds = num_thresholds
        self._distributed = distributed
        self._logger = logging.getLogger(__name__)
        self.reset()

    def reset(self) -> None:
        self._counts: List[np.ndarray] = []
        self._left_out = 0

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """
        Args:
            inputs: dicts with ``boundary_file_name``, and ``file_name`` or ``image_id``.
            outputs: dicts with ``boundaries``, a tensor (H, W) in 0 to 1.

        Raises:
            ValueError: One of these keys is missing.
        """
        for item, output in zip(inputs, outputs):
            name = str(item.get("file_name", item.get("image_id", "image")))
            if "boundary_file_name" not in item:
                raise ValueError(
                    f"{name} of {self._dataset_name} has no boundary_file_name, "
                    "the .mat file of its human boundaries"
                )
            if "boundaries" not in output:
                keys = ", ".join(output) or "nothing"
                raise ValueError(f"the model's output for {name} has no boundaries, found {keys}")
            try:
                annotations = read_boundary_annotations(item["boundary_file_name"])
                boundaries = as_boundary_map(
                    output["boundaries"].detach().cpu().double().numpy(), name
                )
                check_sizes(boundaries, annotations, name)
            except (ValueError, OSError) as error:
                self._logger.warning(f"{name} is left out: {error}")
                self._left_out += 1
                continue
            self._counts.append(
                count_boundary_matches(boundaries, annotations, self._num_thresholds)
            )

    def evaluate(self) -> Optional["OrderedDict[str, Dict[str, float]]"]:
        """Returns metrics on the main process and None on others."""
        counts, left_out = self._counts, self._left_out
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather((counts, left_out), dst=0)
            if not comm.is_main_process():
                return None
            counts = list(itertools.chain(*(part for part, _ in gathered)))
            left_out = sum(number for _, number in gathered)
        if left_out:
            self._logger.warning(
                f"{self._dataset_name}: {len(counts)} of {len(counts) + left_out} images are used"
            )
        if not counts:
            nan = float("nan")
            result = {"ODS": nan, "ODS_threshold": nan, "OIS": nan, "AP": nan}
        else:
            scores = boundary_scores(np.stack(counts))
            result = {
                "ODS": 100 * scores.ods.f_measure,
                "ODS_threshold": scores.ods.threshold,
                "OIS": 100 * scores.ois.f_measure,
                "AP": 100 * scores.ap,
            }
        return OrderedDict(boundary={**result, "images": len(counts)})
