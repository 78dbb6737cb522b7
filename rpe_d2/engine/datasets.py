"""Registration of the data sets of a configuration, and checks that they fit the model."""

import logging
from functools import partial
from typing import Any, Callable, Dict, List, Optional

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from rpe_d2.data import (
    check_voc_files,
    coco_report,
    register_bsds,
    register_coco_jsons,
    register_digits,
    register_digits_authors,
    register_helen,
    register_sem_seg_dirs,
    register_voc,
)

from .host_models import num_classes_keys

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
    data, head = cfg.DATASETS, cfg.MODEL.SEM_SEG_HEAD
    return [
        *(partial(register_coco_jsons, [entry]) for entry in data.COCO_JSONS),
        partial(register_digits, data.DIGITS),
        partial(register_digits_authors, data.DIGITS_AUTHORS),
        partial(register_helen, data.HELEN),
        partial(register_voc, data.VOC),
        partial(register_bsds, data.BSDS),
        *(
            partial(register_sem_seg_dirs, [entry], head.NUM_CLASSES, head.IGNORE_VALUE)
            for entry in data.SEM_SEG_DIRS
        ),
    ]


def number_of_classes(cfg: CfgNode) -> Dict[str, int]:
    """Returns the model's numbers of classes, by "thing_classes" and "stuff_classes".

    A kind is omitted if the model does not declare the key of its number of classes.
    """
    keys = {"stuff": "MODEL.SEM_SEG_HEAD.NUM_CLASSES", **num_classes_keys(cfg)}
    return {f"{kind}_classes": _value(cfg, key) for kind, key in keys.items()}


def _value(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


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
                    'DATASETS.SEM_SEG_DIRS "name=images/:labels/"'
                )
            check_voc_files(name)
            _report(key, name)
    # If a model declares no number of classes, the data sets must still agree with each other.
    for kind, class_key in (num_classes_keys(cfg) or {"thing": ""}).items():
        _check_classes(cfg, kind, class_key)


def _report(key: str, name: str) -> None:
    """Logs a report about a dataset of ``DATASETS.COCO_JSONS`` once.

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
        logger.info(report.summary)
        for warning in report.warnings:
            logger.warning(warning)
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
            if class_key and len(classes) != _value(cfg, class_key):
                raise ValueError(
                    f"{class_key} is {_value(cfg, class_key)}; {name} has {len(classes)} classes"
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
