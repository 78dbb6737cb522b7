"""Registration and reports of the data sets of a configuration, and checks that they fit."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from rpe_d2.config import check_config, value_of
from rpe_d2.data import (
    CocoReport,
    check_voc_files,
    coco_report,
    register_bsds,
    register_coarse_dirs,
    register_coco_jsons,
    register_digits,
    register_digits_authors,
    register_frame_pairs,
    register_helen,
    register_label_dirs,
    register_mask_proposals,
    register_sem_seg_dirs,
    register_voc,
)
from rpe_d2.data.datasets.coco_report import PERCENTILES
from rpe_d2.utils.files import replacing_file

from .host_models import check_object_areas, is_class_agnostic, num_classes_keys

REPORT_FILE = "data_report.json"

logger = logging.getLogger("rpe_d2")


def register_datasets(cfg: CfgNode) -> None:
    """Registers every data set that the configuration gives files for.

    Raises:
        FileNotFoundError, ValueError: A file is missing or wrong.
    """
    for register in _registrations(cfg):
        register()


def register_present_datasets(cfg: CfgNode, required: Optional[str] = None) -> None:
    """Registers the data sets whose files are present, and warns about the others.

    Args:
        cfg: the configuration.
        required: the name of a data set that must be present.

    Raises:
        FileNotFoundError: The required data set is missing.
        ValueError: An entry or a file is wrong.
    """
    missing = []
    for register in _registrations(cfg):
        try:
            register()
        except FileNotFoundError as error:
            missing.append(str(error))
    if missing and required and required not in DatasetCatalog:
        raise FileNotFoundError(f"{required} is not available; {'; '.join(missing)}")
    for reason in missing:
        logger.warning("data set skipped: %s", reason)


def _registrations(cfg: CfgNode) -> List[Callable[[], None]]:
    """Returns a function without arguments for every entry that names data files."""
    check_config(cfg, "DATASETS")
    data, head = cfg.DATASETS, cfg.MODEL.SEM_SEG_HEAD
    return [
        *(partial(register_coco_jsons, [entry]) for entry in data.COCO_JSONS),
        *(partial(register_label_dirs, [entry]) for entry in data.LABEL_DIRS),
        partial(register_digits, data.DIGITS),
        partial(register_digits_authors, data.DIGITS_AUTHORS),
        partial(register_helen, data.HELEN),
        partial(register_voc, data.VOC),
        partial(register_bsds, data.BSDS),
        *(
            partial(register_sem_seg_dirs, [entry], head.NUM_CLASSES, head.IGNORE_VALUE)
            for entry in data.SEM_SEG_DIRS
        ),
        *(partial(register_frame_pairs, [entry]) for entry in data.FRAME_PAIRS),
        # Last, because they add to the others.
        *(partial(register_coarse_dirs, [entry]) for entry in data.COARSE_DIRS),
        *(
            partial(register_mask_proposals, f"DATASETS.{key}", [entry])
            for key in ("PROPOSAL_MASKS_TRAIN", "PROPOSAL_MASKS_TEST")
            for entry in data[key]
        ),
    ]


def number_of_classes(cfg: CfgNode) -> Dict[str, int]:
    """Returns the model's numbers of classes, by "thing_classes" and "stuff_classes".

    A kind is omitted if the model does not declare the key of its number of classes.
    """
    keys = {"stuff": "MODEL.SEM_SEG_HEAD.NUM_CLASSES", **num_classes_keys(cfg)}
    return {f"{kind}_classes": value_of(cfg, key) for kind, key in keys.items()}


def check_datasets(cfg: CfgNode) -> None:
    """Checks that the data sets exist, and that their classes agree with each other and the model.

    Raises:
        ValueError: The message is one line with the key or data set and what is allowed.
    """
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                raise ValueError(
                    f"DATASETS.{key} names {name!r}, which is not registered; own data: "
                    'DATASETS.COCO_JSONS "name=path.json:image_root", '
                    'DATASETS.LABEL_DIRS, SEM_SEG_DIRS or FRAME_PAIRS "name=images/:labels/"'
                )
            check_voc_files(name)
            _report(key, name)
    _check_object_crops(cfg)
    if is_class_agnostic(cfg):
        return
    # If a model declares no number of classes, the data sets must still agree with each other.
    for kind, class_key in (num_classes_keys(cfg) or {"thing": ""}).items():
        _check_classes(cfg, kind, class_key)


def _check_object_crops(cfg: CfgNode) -> None:
    crop = cfg.INPUT.OBJECT_CROP
    lacking = [
        name
        for name in cfg.DATASETS.TRAIN
        if MetadataCatalog.get(name).get("stuff_classes") is None
    ]
    if crop and (lacking or cfg.DATASETS.COARSE_DIRS):
        reason = f"{lacking[0]} has no semantic maps" if lacking else "DATASETS.COARSE_DIRS is set"
        raise ValueError(f"INPUT.OBJECT_CROP is {crop:g}; {reason}, allowed: 0")


def _report(key: str, name: str) -> None:
    """Stores the report of a dataset of ``COCO_JSONS`` or ``LABEL_DIRS`` in its metadata.

    Raises:
        ValueError: The dataset is used for training and has no instances.
    """
    metadata = MetadataCatalog.get(name)
    if not metadata.get("has_report"):
        return
    report = metadata.get("report")
    if report is None:
        report = coco_report(name)
        metadata.report = report
    if key == "TRAIN" and not report.num_instances:
        raise ValueError(
            f"DATASETS.TRAIN: {report.warnings[0]}; allowed: data with at least one instance"
        )


def _check_classes(cfg: CfgNode, kind: str, class_key: str) -> None:
    """Checks the classes of one kind.

    Args:
        cfg: the configuration.
        kind: "thing" or "stuff".
        class_key: the key of the model's number of classes, or "" if there is none.
    """
    first = None
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            classes = MetadataCatalog.get(name).get(f"{kind}_classes")
            if classes is None:
                if kind == "stuff":
                    raise ValueError(
                        f"DATASETS.{key}: {name} has no semantic maps, from which "
                        f"{cfg.MODEL.META_ARCHITECTURE} learns"
                    )
                continue
            first = first or (name, classes)
            if classes != first[1]:
                raise ValueError(
                    f"DATASETS.{key}: {name} has the classes {_listed(classes)}; "
                    f"{first[0]} has {_listed(first[1])}; "
                    "allowed: the same, in the order of their category ids"
                )
            if class_key and len(classes) != value_of(cfg, class_key):
                raise ValueError(
                    f"{class_key} is {value_of(cfg, class_key)}; {name} has {len(classes)} "
                    "classes, which is the only value allowed"
                )
            ignored = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
            label = MetadataCatalog.get(name).get("ignore_label", ignored)
            if kind == "stuff" and label != ignored:
                raise ValueError(
                    f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {ignored}; "
                    f"the unlabeled pixels of {name} are {label}"
                )


def _listed(names: List[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f", … ({len(names)})" if len(names) > limit else "")


def reports_of(cfg: CfgNode) -> Dict[str, CocoReport]:
    """Returns the reports of the data sets of a configuration that have one, by name."""
    reports = {}
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        report = MetadataCatalog.get(name).get("report")
        if report is not None:
            reports[name] = report
    return reports


def log_reports(cfg: CfgNode) -> None:
    """Logs the reports of the data sets of a configuration, with their warnings."""
    for report in reports_of(cfg).values():
        logger.info(report.summary)
        for warning in report.warnings:
            logger.warning(warning)


def warn_of_unreachable_objects(cfg: CfgNode) -> None:
    """Logs a warning for each setting with which annotated objects cannot be found.

    Every warning names the key, its value and a value that would do.
    """
    reports = reports_of(cfg)
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    counts = {name: report.most_in_one_image for name, report in reports.items()}
    name = max(counts, key=counts.get, default="")
    if name and counts[name] > limit:
        logger.warning(
            "TEST.DETECTIONS_PER_IMAGE is %d, but an image of %s, %s, has %d instances; "
            "at least %d can find all of them",
            limit,
            name,
            reports[name].fullest_image,
            counts[name],
            counts[name],
        )
    sides = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    areas = {name: _areas(cfg, report, *sides) for name, report in reports.items()}
    check_object_areas(cfg, {name: own[own > 0] for name, own in areas.items() if own.any()})


def write_data_report(cfg: CfgNode) -> None:
    """Writes the reports to ``OUTPUT_DIR/data_report.json``, where the data sets have any."""
    reports = reports_of(cfg)
    if not reports:
        return
    content = {name: _plain(cfg, report) for name, report in reports.items()}
    with replacing_file(Path(cfg.OUTPUT_DIR) / REPORT_FILE) as file:
        file.write(json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")


def _plain(cfg: CfgNode, report: CocoReport) -> Dict[str, Any]:
    train = int(np.mean(cfg.INPUT.MIN_SIZE_TRAIN)), cfg.INPUT.MAX_SIZE_TRAIN
    test = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    return {
        "summary": report.summary,
        "warnings": report.warnings,
        "instances": report.num_instances,
        "most_in_one_image": report.most_in_one_image,
        "fullest_image": report.fullest_image,
        "percentiles": list(PERCENTILES),
        "sides_px": _sides(report.areas),
        "sides_px_at_training_scale": _sides(_areas(cfg, report, *train)),
        "sides_px_at_test_scale": _sides(_areas(cfg, report, *test)),
    }


def _areas(cfg: CfgNode, report: CocoReport, min_size: int, max_size: int) -> np.ndarray:
    """Returns the areas of objects in the network's input, in images resized to these sides."""
    if cfg.INPUT.SCALE:
        return report.areas * cfg.INPUT.SCALE**2
    return report.areas_at_scale(min_size, max_size)


def _sides(areas: np.ndarray) -> List[float]:
    """Returns percentiles of the square roots of areas."""
    return np.percentile(np.sqrt(areas), PERCENTILES).round(1).tolist() if len(areas) else []
