"""Records of measurements of trained weights, with what the records of runs have."""

import argparse
import json
import shlex
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict

from detectron2.config import CfgNode

from rpe_d2.engine.run_record import current_commit, hardware


def write_measured_record(
    script: str, args: argparse.Namespace, cfg: CfgNode, start: float, measures: Dict[str, Any]
) -> None:
    """Writes the record of a measurement to ``args.record``.

    Args:
        script: path of the script below the repository.
        args: has ``config``, ``weights``, ``record`` and ``opts``.
        cfg: the configuration; its seed is that of the training.
        start: ``time.perf_counter()`` at the start of the script.
        measures: what was measured, added to the record.
    """
    record = {
        "config": args.config,
        "overrides": args.opts,
        "weights": args.weights,
        "command": shlex.join(["python", script, *sys.argv[1:]]),
        "seed": cfg.SEED,
        "commit": current_commit(),
        "hardware": hardware(cfg.MODEL.DEVICE),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time(), 1),
        **measures,
    }
    Path(args.record).write_text(json.dumps(record, indent=1) + "\n")
