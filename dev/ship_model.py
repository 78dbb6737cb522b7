#!/usr/bin/env python3
"""Adds the model of a folder to those that come with rpe_d2, in rpe_d2/weights/.

usage: python dev/ship_model.py FOLDER NAME

Matrices are stored with 16 bits, vectors such as means and variances with 32. The card, README.md,
is written by hand beside them.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Dict, List, Optional

import torch
from safetensors.torch import save

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rpe_d2 import get_cfg  # noqa: E402
from rpe_d2.engine.run_classes import FILE as CLASSES  # noqa: E402
from rpe_d2.engine.setup import read_config  # noqa: E402
from rpe_d2.inference.model_folders import (  # noqa: E402
    CONFIG,
    SHIPPED_WEIGHTS,
    weights_of_folder,
)
from rpe_d2.utils.safe_loading import load_tensors  # noqa: E402

WEIGHTS = ROOT / "rpe_d2" / "weights"
# What a prediction does not need, and what names files of the machine that trained the model.
_RESET = "DATASETS", "OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE"
_MOST_MEGABYTES = 12
_REFINER = "LabelPropagationNet"


def main(argv: Optional[List[str]] = None) -> int:
    """Writes the folder of a model. Returns 0, or 2 if its weights are too large."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of a training or of rpe-d2 fit")
    parser.add_argument("name")
    args = parser.parse_args(argv)
    weights = weights_of_folder(args.folder)
    state = load_tensors("weights", weights)
    state = state.get("model", state)
    is_refiner = read_config(str(args.folder / CONFIG), []).MODEL.META_ARCHITECTURE == _REFINER
    if is_refiner:  # rpe_d2.refine builds the network without a configuration
        prefix = "network."
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    content = save(halved(state))
    if len(content) > 1e6 * _MOST_MEGABYTES:
        used = f"{len(content) / 1e6:.1f} MB"
        print(f"error: {weights} has {used}; allowed: {_MOST_MEGABYTES} MB", file=sys.stderr)
        return 2
    target = WEIGHTS / args.name
    target.mkdir(parents=True, exist_ok=True)
    (target / SHIPPED_WEIGHTS).write_bytes(content)
    if not is_refiner:
        (target / CONFIG).write_text(config_of(args.folder / CONFIG))
        shutil.copy(args.folder / CLASSES, target / CLASSES)
    print(f"{target}: {len(content) / 1e6:.1f} MB")
    return 0


def halved(state: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Returns tensors of two and more dimensions with 16 bits, and others as they are.

    Raises:
        ValueError: A value does not fit.
    """
    found = {}
    for name, value in state.items():
        value = value.contiguous()
        if value.is_floating_point() and value.ndim > 1:
            value = value.half()
            if not value.isfinite().all():
                raise ValueError(f"{name} has values beyond 65,504")
        found[name] = value
    return found


def config_of(path: Path) -> str:
    """Returns a configuration without the names of files."""
    cfg, default = read_config(str(path), []), get_cfg("Base-RPE-R18.yaml")
    for key in _RESET:
        *parents, last = key.split(".")
        node, other = cfg, default
        for parent in parents:
            node, other = node[parent], other[parent]
        node[last] = other[last]
    return cfg.dump()


if __name__ == "__main__":
    sys.exit(main())
