"""Records of runs: the configuration, conditions and metrics of a run in a small JSON file."""

import argparse
import json
import math
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

import psutil
import torch
from detectron2.config import CfgNode
from tabulate import tabulate

from rpe_d2.utils.files import write_new_file

_REPOSITORY = Path(__file__).resolve().parents[2]
# Overrides that a run's title omits: tables show them in separate columns, or not at all.
UNTITLED = (
    "OUTPUT_DIR",
    "SEED",
    "MODEL.WEIGHTS",
    "MODEL.DEVICE",
    "SOLVER.MAX_ITER",
    "SOLVER.CHECKPOINT_PERIOD",
)
# The scores that a table shows, keyed by a score that identifies the kind of task.
_TABLES = {
    "AUC": ("AR@1", "AR@10", "AR@100", "AR@1000", "AUC", "R50@10", "R50@60", "AP", "AP50"),
    "mIoU": ("mIoU", "fwIoU", "mACC", "pACC"),
    "ODS": ("ODS", "OIS", "AP"),
    "AR10": ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR"),
}


class CPUTime(NamedTuple):
    """CPU seconds of a run, and those of training and of evaluation without the set-up."""

    whole: float
    training: float
    evaluation: float


def write_run_record(
    cfg: CfgNode,
    args: argparse.Namespace,
    metrics: Dict[str, Any],
    seconds: float,
    cpu_time: CPUTime,
    iterations: int,
    resumed_from: int,
) -> Path:
    """Writes ``OUTPUT_DIR/result.json``, or ``result-2.json`` and so on if that exists.

    The record holds everything needed to trace a published number to its run: configuration file,
    overrides, seed, commit, hardware, times, command and metrics. Unlike wall time, CPU time stays
    comparable on a machine that is shared: "cpu_seconds" is that of the whole run, and
    "evaluation_cpu_seconds" and "training_cpu_seconds" are its parts after the set-up.

    Args:
        cfg: the configuration of the run.
        args: has ``config_file``, ``opts``, ``command`` and ``commit``, taken when the run started.
        metrics: the results of the last evaluation.
        seconds: the wall time of training and evaluation.
        cpu_time: the CPU time of all processes of the run.
        iterations: the number of training iterations; 0 in an evaluation.
        resumed_from: the number of iterations that were complete before this command. They are not
            included in the times of the record.

    Returns:
        The path of the file.
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
        "cpu_seconds": round(cpu_time.whole, 1),
        "training_cpu_seconds": round(cpu_time.training, 1),
        "evaluation_cpu_seconds": round(cpu_time.evaluation, 1),
        "metrics": plain_numbers(metrics),
    }
    content = json.dumps(record, indent=1) + "\n"
    return write_new_file(Path(cfg.OUTPUT_DIR) / "result.json", content.encode())


def cpu_seconds() -> float:
    """Returns the CPU time of this process and of all its children, those that ended included."""
    process = psutil.Process()
    seconds = 0.0
    for each in (process, *process.children(recursive=True)):
        try:
            seconds += sum(each.cpu_times()[:4])  # user and system, its own and of ended children
        except psutil.NoSuchProcess:  # its parent counts it, unless nothing waited for it
            continue
    return seconds


def run_title(config_file: str, opts: List[str]) -> str:
    """Returns the title of a run in tables of results: its configuration and its overrides.

    Overrides of data sets and of the keys in ``UNTITLED`` are omitted.
    """
    name = str(Path(config_file).with_suffix(""))
    pairs = [
        f"{key} {value}"
        for key, value in zip(opts[::2], opts[1::2])
        if key not in UNTITLED and not key.startswith("DATASETS.")
    ]
    return ", ".join([name.removeprefix("configs/"), *pairs])


def current_commit() -> str:
    """Returns the commit of the source tree, or "" if rpe_d2 is not in its own git repository.

    An installed package can be inside another repository, such as that of a project whose
    environment is in a subfolder. The commit of that repository does not describe this code.
    "+changes" is appended if the code has uncommitted changes.
    """
    if not (_REPOSITORY / ".git").exists():  # a folder, or a file in a worktree
        return ""
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
    """Describes a device: the name of a GPU, or the architecture of a CPU and torch's threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return f"{platform.machine()} CPU, {torch.get_num_threads()} of {os.cpu_count()} cores"


def plain_numbers(value: Any) -> Any:
    """Converts nested results for JSON: numbers are rounded, and None if they are not finite."""
    if isinstance(value, dict):
        return {str(key): plain_numbers(item) for key, item in value.items()}
    number = float(value)
    return round(number, 3) if math.isfinite(number) else None


def print_table(metrics: Dict[str, Any]) -> None:
    """Prints tables of the scores of every task and data set.

    They show AP and AR of instances, AR@n of proposals, IoU of semantic maps, F-measures and AP of
    contours, and all scores of other tasks.

    Args:
        metrics: the results of an evaluation, {task: scores}, or {data set: {task: scores}}.
    """
    tables: Dict[Tuple[str, ...], List[List[Any]]] = {}
    for name, result in metrics.items():
        nested = any(isinstance(scores, dict) for scores in result.values())
        tasks = (
            {f"{name} {task}": scores for task, scores in result.items()}
            if nested
            else {name: result}
        )
        for task, scores in tasks.items():
            columns = _columns(scores)
            row = [task, *(scores.get(column) for column in columns)]
            tables.setdefault(columns, []).append(row)
    for columns, rows in tables.items():
        print(tabulate(rows, headers=["", *columns], floatfmt=".1f", missingval="-"))


def _columns(scores: Dict[str, Any]) -> Tuple[str, ...]:
    """Returns the scores of a task that a table shows, without those of single classes."""
    for score, columns in _TABLES.items():
        if score in scores:
            return columns
    return tuple(name for name in scores if "-" not in name)
