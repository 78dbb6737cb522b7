"""COCO metrics of instance segmentation, including average recall."""

import contextlib
import io
import itertools
from typing import Any, Dict, List, Optional

from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from detectron2.utils import comm

from .ground_truth import load_results, make_fit_for_cocoeval
from .touching import subset_metrics, touching_annotations


class InstanceSegmentationEvaluator(COCOEvaluator):
    """Detectron2's COCO evaluator with average recall, which Detectron2 computes but discards.

    For every task ("bbox", "segm") the results also have, in percent, "AR1" and "AR10" (at most
    that many detections per image), "AR" (all evaluated detections), and "ARs", "ARm" and "ARl" by
    object size. Optionally there is a task "segm_touching", which evaluates only instances whose
    mask, dilated by 2 pixels, overlaps another mask.

    Without any detections, metrics are 0 where there is ground truth and NaN elsewhere. Masks are
    evaluated whenever the model predicts them.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: Optional[str],
        detections_per_image: int,
        touching_instances: bool = False,
    ):
        """
        Args:
            dataset_name: a registered dataset in COCO's format or convertible to it.
            output_dir: folder to which predictions are written, or None.
            detections_per_image: largest number of detections evaluated in an image, at least
                COCO's 100.
            touching_instances: whether to add the task "segm_touching".
        """
        super().__init__(
            dataset_name,
            output_dir=output_dir,
            max_dets_per_image=max(100, detections_per_image),
            use_fast_impl=False,  # it needs Detectron2's compiled extension
            allow_cached_coco=False,  # an old output folder may have another version of the data
        )
        self._touching_instances = touching_instances
        make_fit_for_cocoeval(self._coco_api)

    def reset(self) -> None:
        super().reset()
        self._has_masks = False

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        # MaskProposalEvaluator evaluates proposals. Detectron2's recall leaves out images without
        # any proposal.
        kept = [{k: v for k, v in output.items() if k != "proposals"} for output in outputs]
        super().process(inputs, kept)
        # Detectron2 infers from the detections whether there are masks. Without detections, only
        # the fields of the output tell.
        self._has_masks |= any(
            "instances" in output and output["instances"].has("pred_masks") for output in outputs
        )

    def evaluate(self, img_ids=None) -> Dict[str, Dict[str, float]]:
        """Returns metrics by task on the main process and an empty dict on others."""
        if self._distributed:
            self._has_masks = any(comm.all_gather(self._has_masks))
        return super().evaluate(img_ids)

    def _tasks_from_predictions(self, predictions: List[Dict[str, Any]]) -> List[str]:
        tasks = super()._tasks_from_predictions(predictions)
        return sorted({*tasks, "segm"}) if self._has_masks else tasks

    def _eval_predictions(self, predictions, img_ids=None) -> None:
        super()._eval_predictions(predictions, img_ids)
        if not (self._touching_instances and self._do_evaluation and self._has_masks):
            return
        results = list(itertools.chain(*[item["instances"] for item in predictions]))
        with contextlib.redirect_stdout(io.StringIO()):
            touching = touching_annotations(self._coco_api)
            self._results["segm_touching"] = subset_metrics(
                self._coco_api, results, touching, self._max_dets_per_image[-1]
            )

    def _derive_coco_results(
        self, coco_eval, iou_type: str, class_names: Optional[List[str]] = None
    ) -> Dict[str, float]:
        if iou_type == "keypoints":  # its statistics are in another order
            return super()._derive_coco_results(coco_eval, iou_type, class_names)
        if coco_eval is None:
            self._logger.warning(f"{iou_type}: there are no detections")
            coco_eval = self._evaluate_no_detections(iou_type)
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        names = ("AR1", "AR10", "AR", "ARs", "ARm", "ARl")
        for position, name in enumerate(names, start=6):
            recall = float(coco_eval.stats[position])
            results[name] = 100 * recall if recall >= 0 else float("nan")
        return results

    def _evaluate_no_detections(self, iou_type: str) -> COCOevalMaxDets:
        empty = load_results(self._coco_api, [], iou_type)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOevalMaxDets(self._coco_api, empty, iou_type)
            evaluation.params.maxDets = self._max_dets_per_image
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation
