"""Boundary AP of instances and Boundary IoU of semantic label maps (Cheng et al., CVPR 2021)."""

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

from rpe_d2.utils.label_maps import read_label_map

from .coco_scores import precision_by_size
from .ground_truth import (
    coco_ground_truth,
    has_semantic_maps,
    instance_results,
    load_results,
)
from .mask_boundaries import boundary_rle, boundary_width, mask_boundary

# Suffix of a result's name -> boundary width in pixels, None for 2 % of the image diagonal.
_WIDTHS = {"": None, "_2px": 2, "_1px": 1}


class BoundaryAPEvaluator(DatasetEvaluator):
    """Evaluates the quality of mask boundaries (Cheng et al., CVPR 2021).

    Boundary AP is COCO's AP with the smaller of the IoU of two masks and the IoU of their
    boundaries instead of mask IoU. The paper's boundaries are 2 % of the image diagonal wide. On
    small objects that is most of the mask, so fixed widths of 2 pixels and 1 pixel are evaluated
    as well.

    Results are in percent:

    * If the dataset has annotations, "segm_boundary", "segm_boundary_2px" and "segm_boundary_1px"
      with ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm`` and ``APl``.
    * If it has semantic label maps, "sem_seg_boundary" and so on with the ``IoU`` of every class
      and their mean ``mIoU``. Intersections and unions of boundaries are summed over the dataset.

    A result without ground truth is NaN. ``mIoU`` is the mean over the classes that occur, as in
    Detectron2's ``SemSegEvaluator``.
    """

    def __init__(
        self, dataset_name: str, detections_per_image: int = 100, distributed: bool = True
    ):
        """
        Args:
            dataset_name: a registered dataset with annotations or semantic label maps.
            detections_per_image: largest number of instances evaluated in an image, at least COCO's
                100.
            distributed: whether to gather the results of all processes. Only the main process
                returns metrics.
        """
        self._dataset_name = dataset_name
        self._detections_per_image = max(100, detections_per_image)
        self._distributed = distributed
        self._metadata = MetadataCatalog.get(dataset_name)
        kind = self._metadata.get("evaluator_type")
        self._semantic = has_semantic_maps(dataset_name)
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
        # (widths, 3, K): areas of intersection, union and ground truth
        count = len(self._metadata.stuff_classes) if self._semantic else 0
        self._areas = np.zeros((len(_WIDTHS), 3, count), np.int64)

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """
        Args:
            inputs: dicts with ``image_id`` (instances) and ``file_name`` (label maps).
            outputs: dicts with "instances" if the dataset has annotations, and with "sem_seg"
                scores (K, H, W) if it has label maps.
        """
        for item, output in zip(inputs, outputs):
            if self._semantic:
                pred = output["sem_seg"].argmax(dim=0).cpu().numpy()
                truth = read_label_map(self._map_of_image[item["file_name"]])
                self._areas += boundary_areas(
                    pred, truth, self._areas.shape[2], self._metadata.get("ignore_label", 255)
                )
            if self._has_instances:
                self._results += instance_results(output, item["image_id"], self._metadata)

    def evaluate(self) -> Optional["OrderedDict[str, Dict[str, float]]"]:
        """Returns metrics on the main process and None on others."""
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
    """COCOeval with the smaller of mask IoU and boundary IoU as the overlap of two instances."""

    def __init__(self, truth: COCO, results: COCO, width: Optional[int]):
        """
        Args:
            truth: ground truth with masks.
            results: detections with masks.
            width: boundary width in pixels, or None for 2 % of the image diagonal.
        """
        super().__init__(truth, results, "segm")
        self._width = width

    def _prepare(self) -> None:
        super()._prepare()  # converts every segmentation to RLE
        for annotations in itertools.chain(self._gts.values(), self._dts.values()):
            for annotation in annotations:
                rle = annotation["segmentation"]
                width = self._width or boundary_width(rle["size"])
                annotation["boundary"] = boundary_rle(rle, width)

    def computeIoU(self, imgId: int, catId: int):
        """Computes (D, G) overlaps of detections in descending order of score with ground truth."""
        overlaps = super().computeIoU(imgId, catId)
        if len(overlaps) == 0:
            return overlaps
        categories = [catId] if self.params.useCats else self.params.catIds
        truth = [a for c in categories for a in self._gts[imgId, c]]
        preds = [a for c in categories for a in self._dts[imgId, c]]
        # Sort as COCOeval does.
        order = np.argsort([-a["score"] for a in preds], kind="mergesort")
        boundaries = [preds[i]["boundary"] for i in order[: self.params.maxDets[-1]]]
        crowd = [int(a["iscrowd"]) for a in truth]
        boundary_iou = mask_util.iou(boundaries, [a["boundary"] for a in truth], crowd)
        return np.minimum(overlaps, boundary_iou)


def boundary_metrics(
    truth: COCO,
    results: List[Dict[str, Any]],
    detections_per_image: int,
    width: Optional[int] = None,
) -> Dict[str, float]:
    """Computes Boundary AP in percent, by IoU threshold and by object size.

    Args:
        truth: ground truth with masks.
        results: detections with masks in COCO's results format.
        detections_per_image: largest number of detections evaluated in an image.
        width: boundary width in pixels, or None for 2 % of the image diagonal.

    Returns:
        ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm`` and ``APl``.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = BoundaryCOCOeval(truth, load_results(truth, results, "segm"), width)
        evaluation.params.maxDets = [1, 10, detections_per_image]
        evaluation.evaluate()
        evaluation.accumulate()
    return precision_by_size(evaluation)


def boundary_areas(
    pred: np.ndarray, truth: np.ndarray, num_classes: int, ignore_label: int
) -> np.ndarray:
    """Counts the pixels of intersections and unions of the boundaries in two label maps.

    Args:
        pred: (H, W) integer.
        truth: (H, W) integer. Pixels with ``ignore_label`` belong to no class in both maps.
        num_classes: number of classes K.
        ignore_label: label to ignore, also if it is in 0 to K - 1.

    Returns:
        (widths, 3, K) int64: for each boundary width the areas of intersection, union and ground
        truth.
    """
    pred = np.where(truth == ignore_label, ignore_label, pred)
    areas = np.zeros((len(_WIDTHS), 3, num_classes), np.int64)
    present = np.union1d(pred, truth)
    present = present[(present >= 0) & (present < num_classes) & (present != ignore_label)]
    for label in present:
        for number, width in enumerate(_WIDTHS.values()):
            width = width or boundary_width(truth.shape)
            one, other = (mask_boundary(labels == label, width) for labels in (pred, truth))
            areas[number, :, label] = (one & other).sum(), (one | other).sum(), other.sum()
    return areas


def _semantic_metrics(areas: np.ndarray, names: List[str]) -> Dict[str, float]:
    """Computes IoU in percent from (3, K) areas of intersection, union and ground truth."""
    intersection, union, truth = areas
    with np.errstate(invalid="ignore"):
        iou = np.where(truth > 0, 100 * intersection / union, np.nan)
    mean = float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")
    return {"mIoU": mean, **{f"IoU-{name}": float(value) for name, value in zip(names, iou)}}
