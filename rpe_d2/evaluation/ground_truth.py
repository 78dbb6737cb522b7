"""Ground truth and results in the form that COCOeval needs."""

import contextlib
import io
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from pycocotools.coco import COCO

from rpe_d2.utils.coco_annotations import (
    box_problem,
    mask_problem,
    raise_problems,
    registered_as_coco,
    replacement_box,
    usable_segmentation,
)
from rpe_d2.utils.label_maps import decode_labels


def has_semantic_maps(dataset_name: str) -> bool:
    """Returns whether a registered dataset has semantic label maps, with or without instances."""
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    return kind in ("sem_seg", "panoptic") or (
        kind == "coco" and metadata.get("stuff_classes") is not None
    )


def coco_ground_truth(dataset_name: str) -> COCO:
    """Loads a registered dataset in COCO's format and completes it for COCOeval."""
    path = MetadataCatalog.get(dataset_name).get("json_file")
    with contextlib.redirect_stdout(io.StringIO()):
        if path:
            truth = COCO(path)
            make_fit_for_cocoeval(truth)
            return truth
    return complete_ground_truth(registered_as_coco(dataset_name))


def complete_ground_truth(content: Dict[str, Any]) -> COCO:
    """Indexes data in COCO's format and completes them as :func:`make_fit_for_cocoeval` does.

    Args:
        content: the data, which are not modified.
    """
    truth = COCO()
    truth.dataset = {**content, "annotations": [dict(a) for a in content["annotations"]]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    make_fit_for_cocoeval(truth)
    return truth


def target_label_map(truth: COCO, image_id: Any) -> Tuple[np.ndarray, np.ndarray]:
    """Draws the objects of an image into a label map.

    Args:
        truth: ground truth as :func:`coco_ground_truth` returns it.
        image_id: id of the image.

    Returns:
        (H, W) int32 labels, 0 for background, with smaller objects in front; and (H, W) bool, where
        crowds are. Crowds have no label.
    """
    image = truth.imgs[image_id]
    size = image["height"], image["width"]
    objects, crowds = [], []
    for annotation in truth.imgToAnns[image_id]:
        (crowds if annotation["iscrowd"] else objects).append(truth.annToRLE(annotation))
    objects.sort(key=lambda rle: -int(mask_util.area(rle)))
    labels, crowd = decode_labels(objects, size), decode_labels(crowds, size) > 0
    labels[crowd] = 0
    return labels, crowd


def make_fit_for_cocoeval(truth: COCO) -> None:
    """Completes annotations in place, so that COCOeval neither fails nor miscounts.

    Ids are renumbered from 1, because COCOeval treats a match with the id 0 as no match. A missing
    ``iscrowd`` becomes 0, and a missing or zero ``area`` becomes that of the mask. A box that
    cannot be correct is replaced by :func:`replacement_box`, as in training. Masks come from
    :func:`usable_segmentation`: if there is none, it is the filled box. Annotations whose polygons
    all have fewer than three corners are removed, as in training.

    Args:
        truth: ground truth with its index.

    Raises:
        ValueError: A mask cannot be decoded, or a coordinate is far outside its image.
    """
    _check(truth)
    kept = []
    for annotation in truth.dataset.get("annotations", []):
        segmentation = usable_segmentation(annotation)
        if segmentation is None:
            continue
        kept.append(annotation)
        annotation["id"] = len(kept)
        annotation["segmentation"] = segmentation
        annotation.setdefault("iscrowd", 0)
        image = truth.imgs[annotation["image_id"]]
        box = replacement_box(annotation, image["height"], image["width"])
        if box:
            annotation["bbox"] = list(box)
        if not annotation.get("area"):
            annotation["area"] = float(mask_util.area(truth.annToRLE(annotation)))
    truth.dataset["annotations"] = kept
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()


def _check(truth: COCO) -> None:
    annotations = truth.dataset.get("annotations", [])
    problems = []
    for annotation in annotations:
        image = truth.imgs[annotation["image_id"]]
        size = image["height"], image["width"]
        problem = box_problem(annotation["bbox"], *size)
        if annotation.get("segmentation"):
            problem = mask_problem(annotation["segmentation"], *size) or problem
        if problem:
            problems.append((annotation["id"], problem))
    raise_problems("ground truth", len(annotations), problems)


def instance_results(
    output: Dict[str, Any], image_id: Any, metadata: Metadata
) -> List[Dict[str, Any]]:
    """Converts the instances of an image to COCO's results format, with the dataset's class ids."""
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    results = instances_to_coco_json(output["instances"].to("cpu"), image_id)
    if ids is not None:
        dataset_id = {contiguous: original for original, contiguous in ids.items()}
        for result in results:
            result["category_id"] = dataset_id[result["category_id"]]
    return results


def load_results(truth: COCO, results: Sequence[Dict[str, Any]], iou_type: str) -> COCO:
    """Loads results in COCO's format, possibly none, to evaluate them as "segm" or "bbox"."""
    if not results:  # COCO.loadRes does not accept an empty list
        empty = COCO()
        empty.dataset = {**truth.dataset, "annotations": []}
        empty.createIndex()
        return empty
    # COCO.loadRes infers the type from the first key it knows, and changes its argument.
    dropped = "bbox" if iou_type == "segm" else "segmentation"
    return truth.loadRes([{k: v for k, v in r.items() if k != dropped} for r in results])
