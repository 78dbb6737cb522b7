"""What the scripts share that measure trained weights: arguments, the model, and the record."""

import argparse
import json
import shlex
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, Tuple

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from rpe_d2.engine.run_record import current_commit, hardware
from rpe_d2.engine.setup import load_config


def parse_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Adds the arguments that the scripts share, after their own, and parses the command line."""
    for name in ("config", "weights", "record"):
        parser.add_argument(name)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    return parser.parse_args()


def load_model(config: str, weights: str, opts: list) -> Tuple[CfgNode, nn.Module]:
    """Returns the configuration and the model on the CPU, with its weights, for evaluation."""
    cfg = load_config(config, ["MODEL.DEVICE", "cpu", *opts])
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(weights)
    return cfg, model


def write_record(
    path: str,
    script: str,
    config: Any,
    overrides: list,
    seed: int,
    start: float,
    measures: Dict[str, Any],
    device: str = "cpu",
) -> None:
    """Writes the record of a measurement.

    Args:
        path: the file.
        script: path of the script below the repository.
        config: the configuration, or several.
        overrides: its overrides.
        seed: the seed.
        start: ``time.perf_counter()`` at the start of the script.
        measures: what was measured, added to the record.
        device: the device that it was measured on.
    """
    record = {
        "config": config,
        "overrides": overrides,
        "command": shlex.join(["python", script, *sys.argv[1:]]),
        "seed": seed,
        "commit": current_commit(),
        "hardware": hardware(device),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time(), 1),
        **measures,
    }
    Path(path).write_text(json.dumps(record, indent=1) + "\n")


def write_measured_record(
    script: str, args: argparse.Namespace, cfg: CfgNode, start: float, measures: Dict[str, Any]
) -> None:
    """Writes the record of a measurement of weights to ``args.record``.

    Args:
        script: path of the script below the repository.
        args: has ``config``, ``weights``, ``record`` and ``opts``.
        cfg: the configuration; its seed is that of the training.
        start: ``time.perf_counter()`` at the start of the script.
        measures: what was measured, added to the record.
    """
    measures = {"weights": args.weights, **measures}
    write_record(
        args.record, script, args.config, args.opts, cfg.SEED, start, measures, cfg.MODEL.DEVICE
    )
