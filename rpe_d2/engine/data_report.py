"""Reports of the data of a run, and settings with which its objects cannot be found."""

import json
import logging
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from rpe_d2.data import CocoReport
from rpe_d2.data.datasets.coco_report import PERCENTILES
from rpe_d2.utils.files import replacing_file

from .host_models import check_object_areas

FILE_NAME = "data_report.json"

logger = logging.getLogger("rpe_d2")


def reports_of(cfg: CfgNode) -> Dict[str, CocoReport]:
    """Returns the reports of the data sets of a configuration that have one, by name."""
    reports = {}
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        report = MetadataCatalog.get(name).get("report")
        if report is not None:
            reports[name] = report
    return reports


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
    areas = {
        name: report.areas_at_scale(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        for name, report in reports.items()
    }
    check_object_areas(cfg, {name: own[own > 0] for name, own in areas.items() if own.any()})


def write_data_report(cfg: CfgNode) -> None:
    """Writes the reports to ``OUTPUT_DIR/data_report.json``, where the data sets have any."""
    reports = reports_of(cfg)
    if not reports:
        return
    content = {name: _plain(cfg, report) for name, report in reports.items()}
    with replacing_file(Path(cfg.OUTPUT_DIR) / FILE_NAME) as file:
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
        "sides_px_at_training_scale": _sides(report.areas_at_scale(*train)),
        "sides_px_at_test_scale": _sides(report.areas_at_scale(*test)),
    }


def _sides(areas: np.ndarray) -> List[float]:
    """Returns percentiles of the square roots of areas."""
    return np.percentile(np.sqrt(areas), PERCENTILES).round(1).tolist() if len(areas) else []
