"""Average precision and IoU that depend on boundaries."""

import contextlib
import io
import itertools
from collections import OrderedDict
from typing import Any, Dict, List, Optional

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .boundaries import boundary_rle, boundary_width, mask_boundary
from .coco_scores import precision_by_size
from .ground_truth import coco_ground_truth, instance_results, load_results, read_label_map

# Suffix of a result's name: width of the boundary in pixels, None: 2 % of the picture's diagonal.
_WIDTHS = {"": None, "_2px": 2, "_1px": 1}


class BoundaryAPEvaluator(DatasetEvaluator):
    """Boundary AP of instances, Boundary IoU of semantic maps (Cheng et al., CVPR 2021).

    The overlap of two instances is the smaller of their masks' IoU and their boundaries' IoU; with it COCO's AP is
    computed. Boundaries are 2 % of the picture's diagonal wide; on small objects that is most of the mask, so the same
    is computed with a fixed width of 2 pixels and of 1 pixel.

    Results, in percent: for data with annotations "segm_boundary", "segm_boundary_2px" and "segm_boundary_1px", each with ``AP``,
    ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``; for data with semantic maps "sem_seg_boundary" and so on, each with
    ``mIoU`` and the ``IoU`` of every class: intersections and unions of boundaries, summed over the data set. NaN where
    there is no such ground truth: the mean is over the classes that occur, as Detectron2's ``SemSegEvaluator`` has it.
    """

    def __init__(
        self, dataset_name: str, detections_per_image: int = 100, distributed: bool = True
    ):
        """
        Args:
            dataset_name: registered, with annotations or with semantic maps.
            detections_per_image: so many instances enter, at least COCO's 100.
            distributed: gather what other processes found; only the main one returns results.
        """
        self._dataset_name = dataset_name
        self._detections_per_image = max(100, detections_per_image)
        self._distributed = distributed
        self._metadata = MetadataCatalog.get(dataset_name)
        kind = self._metadata.get("evaluator_type")
        self._semantic = kind in ("sem_seg", "panoptic")
        self._has_instances = kind != "sem_seg"
        self._map_of_image = {}
        if self._semantic:
            self._map_of_image = {
                item["file_name"]: item["sem_seg_file_name"]
                for item in DatasetCatalog.get(dataset_name)
            }
        self.reset()

    def reset(self) -> None:
        self._results: List[Dict[str, Any]] = []
        # (widths, intersection, union or ground truth, classes)
        count = len(self._metadata.stuff_classes) if self._semantic else 0
        self._areas = np.zeros((len(_WIDTHS), 3, count), np.int64)

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """
        Args:
            inputs: with ``image_id`` for instances and ``file_name`` for semantic maps.
            outputs: with "instances" and "sem_seg" scores (K, H, W), as the data set has annotations and maps.
        """
        for item, output in zip(inputs, outputs):
            if self._semantic:
                found = output["sem_seg"].argmax(dim=0).cpu().numpy()
                truth = read_label_map(self._map_of_image[item["file_name"]])
                self._areas += boundary_areas(
                    found, truth, self._areas.shape[2], self._metadata.get("ignore_label", 255)
                )
            if self._has_instances:
                self._results += instance_results(output, item["image_id"], self._metadata)

    def evaluate(self) -> Optional["OrderedDict[str, Dict[str, float]]"]:
        """Metrics on the main process, None on others."""
        results, areas = self._results, self._areas
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather((results, areas), dst=0)
            if not comm.is_main_process():
                return None
            results = list(itertools.chain(*(part for part, _ in gathered)))
            areas = sum(part for _, part in gathered)
        metrics = OrderedDict()
        if self._semantic:
            names = self._metadata.stuff_classes
            for suffix, part in zip(_WIDTHS, areas):
                metrics[f"sem_seg_boundary{suffix}"] = _semantic_metrics(part, names)
        if self._has_instances:
            truth = coco_ground_truth(self._dataset_name)
            for suffix, width in _WIDTHS.items():
                metrics[f"segm_boundary{suffix}"] = boundary_metrics(
                    truth, results, self._detections_per_image, width
                )
        return metrics


class BoundaryCOCOeval(COCOeval):
    """COCOeval in which two instances overlap as much as the less similar of their masks and of their boundaries."""

    def __init__(self, truth: COCO, results: COCO, width: Optional[int]):
        """
        Args:
            truth: ground truth with masks.
            results: detections with masks.
            width: of boundaries in pixels; None: 2 % of the picture's diagonal.
        """
        super().__init__(truth, results, "segm")
        self._width = width

    def _prepare(self) -> None:
        super()._prepare()  # makes every segmentation run-length encoded
        for annotations in itertools.chain(self._gts.values(), self._dts.values()):
            for annotation in annotations:
                rle = annotation["segmentation"]
                width = self._width or boundary_width(rle["size"])
                annotation["boundary"] = boundary_rle(rle, width)

    def computeIoU(self, imgId: int, catId: int):
        """(D, G) overlaps of the detections, by falling score, with the ground truth."""
        overlaps = super().computeIoU(imgId, catId)
        if len(overlaps) == 0:
            return overlaps
        categories = [catId] if self.params.useCats else self.params.catIds
        truth = [a for c in categories for a in self._gts[imgId, c]]
        found = [a for c in categories for a in self._dts[imgId, c]]
        # As COCOeval sorts them.
        order = np.argsort([-a["score"] for a in found], kind="mergesort")
        found = [found[i]["boundary"] for i in order[: self.params.maxDets[-1]]]
        crowd = [int(a["iscrowd"]) for a in truth]
        return np.minimum(overlaps, mask_util.iou(found, [a["boundary"] for a in truth], crowd))


def boundary_metrics(
    truth: COCO,
    results: List[Dict[str, Any]],
    detections_per_image: int,
    width: Optional[int] = None,
) -> Dict[str, float]:
    """Boundary AP, in percent, by IoU and by object size.

    Args:
        truth: ground truth with masks.
        results: in COCO's results format, with masks.
        detections_per_image: so many enter.
        width: of boundaries in pixels; None: 2 % of the picture's diagonal.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = BoundaryCOCOeval(truth, load_results(truth, results, "segm"), width)
        evaluation.params.maxDets = [1, 10, detections_per_image]
        evaluation.evaluate()
        evaluation.accumulate()
    return precision_by_size(evaluation)


def boundary_areas(
    found: np.ndarray, truth: np.ndarray, num_classes: int, ignore_label: int
) -> np.ndarray:
    """Common and united pixels of the boundaries in two semantic maps.

    Args:
        found: (H, W) integer.
        truth: (H, W) integer; pixels with ``ignore_label`` are no class's, in both maps.
        num_classes: K.
        ignore_label: if it is one of 0 to K - 1, that is no class.

    Returns:
        (widths, 3, K) int64: for each width of boundaries intersection, union and ground truth.
    """
    found = np.where(truth == ignore_label, ignore_label, found)
    areas = np.zeros((len(_WIDTHS), 3, num_classes), np.int64)
    present = np.union1d(found, truth)
    present = present[(present >= 0) & (present < num_classes) & (present != ignore_label)]
    for label in present:
        for number, width in enumerate(_WIDTHS.values()):
            width = width or boundary_width(truth.shape)
            one, other = (mask_boundary(labels == label, width) for labels in (found, truth))
            areas[number, :, label] = (one & other).sum(), (one | other).sum(), other.sum()
    return areas


def _semantic_metrics(areas: np.ndarray, names: List[str]) -> Dict[str, float]:
    """From (3, K) intersections, unions and ground truth."""
    common, united, truth = areas
    with np.errstate(invalid="ignore"):
        iou = np.where(truth > 0, 100 * common / united, np.nan)
    mean = float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")
    return {"mIoU": mean, **{f"IoU-{name}": float(value) for name, value in zip(names, iou)}}
