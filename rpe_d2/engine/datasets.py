"""Registering the data sets that a configuration names."""

import logging
from functools import partial
from typing import Callable, List, Optional

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from rpe_d2.data import (
    register_bsds,
    register_coco_jsons,
    register_helen,
    register_sem_seg_dirs,
    register_voc,
)

logger = logging.getLogger("rpe_d2")


def register_datasets(cfg: CfgNode) -> None:
    """Registers all of them.

    Raises:
        FileNotFoundError, ValueError: one is missing or wrong.
    """
    for register in _registrations(cfg):
        register()


def register_present_datasets(cfg: CfgNode, needed: Optional[str] = None) -> None:
    """Registers the data sets that the configuration names; missing ones are left out with a warning.

    Args:
        needed: name of a data set that has to be there.

    Raises:
        FileNotFoundError: that one is missing.
        ValueError: an entry or a file is wrong.
    """
    missing = []
    for register in _registrations(cfg):
        try:
            register()
        except FileNotFoundError as error:
            missing.append(str(error))
    if missing and needed and needed not in DatasetCatalog:
        raise FileNotFoundError(f"{needed} is not there; {'; '.join(missing)}")
    for reason in missing:
        logger.warning("data left out, %s", reason)


def _registrations(cfg: CfgNode) -> List[Callable[[], None]]:
    """A call for everything that the configuration names as data."""
    data, head = cfg.DATASETS, cfg.MODEL.SEM_SEG_HEAD
    return [
        *(partial(register_coco_jsons, [entry]) for entry in data.COCO_JSONS),
        partial(register_helen, data.HELEN),
        partial(register_voc, data.VOC),
        partial(register_bsds, data.BSDS),
        *(
            partial(register_sem_seg_dirs, [entry], head.NUM_CLASSES, head.IGNORE_VALUE)
            for entry in data.SEM_SEG_DIRS
        ),
    ]
