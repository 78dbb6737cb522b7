"""COCO metrics of instance segmentation, average recall included."""

from typing import Dict, List, Optional

from detectron2.evaluation import COCOEvaluator


class InstanceEvaluator(COCOEvaluator):
    """Detectron2's COCO evaluator that also keeps average recall, which COCOeval computes and Detectron2 drops.

    For every task ("bbox", "segm") the results gain, in percent: "AR1", "AR10" (at most that many detections an
    image), "AR" (all that are evaluated) and "ARs", "ARm", "ARl" by object size.
    """

    def __init__(self, dataset_name: str, output_dir: Optional[str], detections_per_image: int):
        """
        Args:
            dataset_name: registered, in COCO format or convertible to it.
            output_dir: where predictions are written; None: nowhere.
            detections_per_image: so many enter the metrics, at least COCO's 100.
        """
        super().__init__(
            dataset_name,
            output_dir=output_dir,
            max_dets_per_image=max(100, detections_per_image),
            use_fast_impl=False,  # needs Detectron2's compiled extension
            allow_cached_coco=False,  # an old output folder may hold another version of the data
        )

    def _derive_coco_results(
        self, coco_eval, iou_type: str, class_names: Optional[List[str]] = None
    ) -> Dict[str, float]:
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if iou_type == "keypoints":  # has other statistics
            return results
        names = ("AR1", "AR10", "AR", "ARs", "ARm", "ARl")
        for position, name in enumerate(names, start=6):
            recall = float("nan") if coco_eval is None else float(coco_eval.stats[position])
            results[name] = 100 * recall if recall >= 0 else float("nan")
        return results
