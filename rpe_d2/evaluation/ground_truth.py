"""Ground truth and results as COCOeval needs them."""

import contextlib
import io
from typing import Any, Dict, List, Sequence

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils.file_io import PathManager
from PIL import Image
from pycocotools.coco import COCO

from rpe_d2.utils.coco_annotations import usable_segmentation


def coco_ground_truth(dataset_name: str) -> COCO:
    """A registered data set in COCO's form, fit for COCOeval."""
    path = MetadataCatalog.get(dataset_name).get("json_file")
    with contextlib.redirect_stdout(io.StringIO()):
        if path:
            truth = COCO(path)
        else:
            truth = COCO()
            truth.dataset = convert_to_coco_dict(dataset_name)
            truth.createIndex()
    make_fit_for_cocoeval(truth)
    return truth


def make_fit_for_cocoeval(truth: COCO) -> None:
    """Gives annotations, in place, everything without which COCOeval fails or miscounts.

    Ids are numbered anew from 1: to COCOeval a detection that matches the annotation 0 matches nothing. ``iscrowd`` is 0
    and ``area`` the mask's where they are missing. Masks are those of :func:`usable_segmentation`: filled boxes where
    there are none; annotations whose polygons all have fewer than 3 corners are left out, as in training.

    Args:
        truth: ground truth with its index.
    """
    kept = []
    for annotation in truth.dataset.get("annotations", []):
        segmentation = usable_segmentation(annotation)
        if segmentation is None:
            continue
        kept.append(annotation)
        annotation["id"] = len(kept)
        annotation["segmentation"] = segmentation
        annotation.setdefault("iscrowd", 0)
        if "area" not in annotation:
            annotation["area"] = float(mask_util.area(truth.annToRLE(annotation)))
    truth.dataset["annotations"] = kept
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()


def read_label_map(file_name: str, dtype: Any = np.int64) -> np.ndarray:
    """A semantic map (H, W) from an image file. Detectron2's reader fails with NumPy 2."""
    with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
        return np.array(image, dtype=dtype)


def instance_results(
    output: Dict[str, Any], image_id: Any, metadata: Metadata
) -> List[Dict[str, Any]]:
    """The instances of an image in COCO's results format, with the data set's category ids."""
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    results = instances_to_coco_json(output["instances"].to("cpu"), image_id)
    if ids is not None:
        dataset_id = {contiguous: original for original, contiguous in ids.items()}
        for result in results:
            result["category_id"] = dataset_id[result["category_id"]]
    return results


def load_results(truth: COCO, results: Sequence[Dict[str, Any]], iou_type: str) -> COCO:
    """Results in COCO's format, to be evaluated as "segm" or "bbox"; also none at all."""
    if not results:  # which COCO.loadRes does not take
        empty = COCO()
        empty.dataset = {**truth.dataset, "annotations": []}
        empty.createIndex()
        return empty
    # COCO.loadRes decides by the first key it knows, and changes what it is given.
    dropped = "bbox" if iou_type == "segm" else "segmentation"
    return truth.loadRes([{k: v for k, v in r.items() if k != dropped} for r in results])
