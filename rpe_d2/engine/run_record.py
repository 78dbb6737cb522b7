"""What a run was and what it measured, as one small JSON."""

import argparse
import json
import math
import os
import platform
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List

import torch
from detectron2.config import CfgNode
from tabulate import tabulate

from rpe_d2.utils.files import write_new_file

_REPOSITORY = Path(__file__).resolve().parents[2]
UNTITLED = (
    "OUTPUT_DIR",
    "SEED",
    "MODEL.WEIGHTS",
    "MODEL.DEVICE",
    "SOLVER.MAX_ITER",
    "SOLVER.CHECKPOINT_PERIOD",
)
_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR")
_SEMANTIC_COLUMNS = ("mIoU", "fwIoU", "mACC", "pACC")
_BOUNDARY_COLUMNS = ("ODS", "OIS", "AP")
_PROPOSAL_COLUMNS = ("AR@1", "AR@10", "AR@100", "AR@1000", "AUC", "R50@10", "R50@60", "AP", "AP50")


def write_run_record(
    cfg: CfgNode,
    args: argparse.Namespace,
    metrics: Dict[str, Any],
    seconds: float,
    iterations: int,
    resumed_from: int,
) -> Path:
    """Writes ``OUTPUT_DIR/result.json``, or ``result-2.json`` … where there is one already.

    It holds config file, overrides, seed, commit, hardware, time, command and metrics: what a figure in the README
    is traced back to. "cpu_seconds" is the time that this process has computed, all its threads together: what remains
    comparable where others compute on the same machine.

    Args:
        args: ``config_file``, ``opts``, ``command`` and ``commit`` of the run, taken when it started.
        seconds: wall time of training and evaluation.
        iterations: of the training; 0: none, an evaluation only.
        resumed_from: how many of them had been done before this command, of whose times the record knows nothing.

    Returns:
        Path of the file.
    """
    record = {
        "title": run_title(args.config_file, args.opts),
        "config": args.config_file,
        "overrides": list(args.opts),
        "command": args.command,
        "seed": cfg.SEED,
        "iterations": iterations,
        "resumed_from": resumed_from,
        "commit": args.commit,
        "hardware": hardware(cfg.MODEL.DEVICE),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "metrics": plain_numbers(metrics),
    }
    content = json.dumps(record, indent=1) + "\n"
    return write_new_file(Path(cfg.OUTPUT_DIR) / "result.json", content.encode())


def run_title(config_file: str, opts: List[str]) -> str:
    """The configuration's name and the overrides that have no column of their own in a table of results."""
    name = str(Path(config_file).with_suffix(""))
    pairs = [
        f"{key} {value}"
        for key, value in zip(opts[::2], opts[1::2])
        if key not in UNTITLED and not key.startswith("DATASETS.")
    ]
    return ", ".join([name.removeprefix("configs/"), *pairs])


def current_commit() -> str:
    """Commit of the source tree, with "+changes" where the code differs from it; "" outside a repository."""
    git = ["git", "-C", str(_REPOSITORY)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--", "rpe_d2", "configs", "tools"],
            capture_output=True,
            text=True,
        )
    except OSError:
        return ""
    if commit.returncode:
        return ""
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def hardware(device: str) -> str:
    """The device in words: GPU name, or processor architecture and the threads torch uses."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return f"{platform.machine()} CPU, {torch.get_num_threads()} of {os.cpu_count()} cores"


def plain_numbers(value: Any) -> Any:
    """Nested results with every number a rounded float, and None where it is not finite, as JSON wants it."""
    if isinstance(value, dict):
        return {str(key): plain_numbers(item) for key, item in value.items()}
    number = float(value)
    return round(number, 3) if math.isfinite(number) else None


def print_table(metrics: Dict[str, Any]) -> None:
    """Prints the scores (percent) of every task of every data set.

    AP and AR of instances, AR@n of proposals, IoU of maps, best F-measures and AP of boundaries.
    """
    instances, proposals, semantic, boundaries = [], [], [], []
    for name, result in metrics.items():
        # One data set: {task: scores}; several: {data set: {task: scores}}.
        nested = any(isinstance(scores, dict) for scores in result.values())
        tasks = (
            {f"{name} {task}": scores for task, scores in result.items()}
            if nested
            else {name: result}
        )
        for task, scores in tasks.items():
            rows, columns = instances, _COLUMNS
            if "AUC" in scores:
                rows, columns = proposals, _PROPOSAL_COLUMNS
            elif "mIoU" in scores:
                rows, columns = semantic, _SEMANTIC_COLUMNS
            elif "ODS" in scores:
                rows, columns = boundaries, _BOUNDARY_COLUMNS
            rows.append([task, *(scores.get(column) for column in columns)])
    for rows, columns in (
        (instances, _COLUMNS),
        (proposals, _PROPOSAL_COLUMNS),
        (semantic, _SEMANTIC_COLUMNS),
        (boundaries, _BOUNDARY_COLUMNS),
    ):
        if rows:
            print(tabulate(rows, headers=["", *columns], floatfmt=".1f", missingval="-"))
