"""A tiny network with random weights, for tools that need some model."""

from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from rpe_d2 import add_rpe_config
from tests.conftest import ROOT

CONFIG = str(ROOT / "configs" / "quickstart" / "rpe_shapes.yaml")
TINY = (
    "MODEL.DEVICE cpu INPUT.MIN_SIZE_TEST 64 "
    "MODEL.RPE.MAX_GROUPS 20 MODEL.MEAN_SHIFT.TEST_LOOPS 2 MODEL.MEAN_SHIFT.MAX_KEYS 256"
).split()


def save_random(config: str, opts: list, path: Path) -> str:
    """Writes random weights of a configuration's model, the same every time; returns the path."""
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.merge_from_file(config)
    cfg.merge_from_list(opts)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, path)
    return str(path)
