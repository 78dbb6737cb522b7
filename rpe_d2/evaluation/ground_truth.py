"""Ground truth and results as COCOeval needs them."""

import contextlib
import io
from typing import Any, Dict, List, Sequence

import numpy as np
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils.file_io import PathManager
from PIL import Image
from pycocotools.coco import COCO


def coco_ground_truth(dataset_name: str) -> COCO:
    """A registered data set in COCO's form; annotations without a mask get their filled box."""
    path = MetadataCatalog.get(dataset_name).get("json_file")
    with contextlib.redirect_stdout(io.StringIO()):
        if path:
            truth = COCO(path)
        else:
            truth = COCO()
            truth.dataset = convert_to_coco_dict(dataset_name)
            truth.createIndex()
    fill_missing_masks(truth)
    return truth


def fill_missing_masks(truth: COCO) -> None:
    """Gives annotations without a mask their filled box, as the mapper does in training; COCOeval fails on them."""
    for annotation in truth.anns.values():
        if not annotation.get("segmentation"):
            x, y, width, height = annotation["bbox"]
            right, bottom = x + width, y + height
            annotation["segmentation"] = [[x, y, right, y, right, bottom, x, bottom]]


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
