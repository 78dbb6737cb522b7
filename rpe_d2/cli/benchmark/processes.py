"""``rpe-d2 benchmark processes``: a training step on several processes."""

import argparse
import itertools
import json
import statistics
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable, Dict, List

import torch
import torch.distributed as dist
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from tabulate import tabulate

from rpe_d2.data import seed_all
from rpe_d2.engine.launcher import launch
from rpe_d2.engine.run_record import plain_numbers
from rpe_d2.engine.setup import load_config
from rpe_d2.engine.train_step import TrainStep
from rpe_d2.engine.trainer import Trainer, distributed

from .arguments import add_noise_arguments, add_override_argument
from .measure import random_input, timed

_PREDICTED = (4, 8, 16, 64)


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of ``processes``."""
    parser.add_argument("config", metavar="CONFIG", help="configuration file")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes (1 2)"
    )
    add_noise_arguments(parser, 256)
    parser.add_argument("--batch", type=int, default=1, help="noise images per process (1)")
    add_override_argument(parser)


def run_process_benchmark(args: argparse.Namespace) -> dict:
    """Times a training step with ``--threads`` threads and ``--batch`` images in every process.

    Returns:
        By number of processes: median seconds of a training step, of its computation alone, and of
        an all-reduce of as many bytes as the gradients have. The entry "model" has the arguments of
        :func:`predicted_seconds` and its predictions.
    """
    results: Dict[str, Any] = {}
    for processes in args.processes:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "seconds.json")
            launch(_measure, args, path, device=args.device, processes=processes)
            results[str(processes)] = json.loads(Path(path).read_text())
    several = [result for result in results.values() if result["processes"] > 1]
    if several:
        results["model"] = _fit(several[-1])
        for count in _PREDICTED:
            results["model"][f"seconds_on_{count}"] = predicted_seconds(count, results["model"])
    _print(results)
    return plain_numbers(results)


def predicted_seconds(processes: int, model: Dict[str, float]) -> float:
    """Predicts the seconds of a training step on processes that each have a machine or GPU.

    A ring all-reduce sends and receives 2 (n - 1) / n of the gradients' bytes in each process
    (Patarasuk & Yuan, 2009). The time that a measured step takes beyond its computation is assumed
    to be communication, and to grow by this factor.

    Args:
        processes: number of processes, each with the same batch size.
        model: "compute_seconds" of one process, and "exchange_seconds" for sending all gradients
            once.
    """
    return model["compute_seconds"] + 2 * (processes - 1) / processes * model["exchange_seconds"]


def _fit(measured: Dict[str, float]) -> Dict[str, float]:
    count = measured["processes"]
    beyond = max(measured["step_seconds"] - measured["compute_seconds"], 0.0)
    return {
        "compute_seconds": measured["compute_seconds"],
        "exchange_seconds": beyond / (2 * (count - 1) / count),
        "bytes_all_reduced": measured["bytes_all_reduced"],
    }


def _measure(args: argparse.Namespace, path: str) -> None:
    """Measures the three times in each process; the main process writes them to ``path``."""
    torch.set_num_threads(args.threads)
    cfg = load_config(args.config, [*args.opts, "MODEL.DEVICE", args.device, "MODEL.WEIGHTS", ""])
    seed_all(0)
    model = distributed(build_model(cfg), cfg.SOLVER.FIND_UNUSED_PARAMETERS).train()
    optimizer = Trainer.build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # every repetition does the same work
    batch = [random_input(args, seed) for seed in range(args.batch)]
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    buffer = torch.zeros(gradients // 4, device=args.device)
    several = comm.get_world_size() > 1

    step = TrainStep(model, itertools.repeat(batch), optimizer, seed=0)
    step.iter = 0

    def run_step() -> None:
        with EventStorage():
            step.run_step()

    def compute() -> None:
        """Runs a training step without communication."""
        seed_all(0)
        optimizer.zero_grad()
        with EventStorage(), model.no_sync() if several else nullcontext():
            loss = sum(model(batch).values())
            loss.backward()
        optimizer.step()

    forms: Dict[str, Callable[[], Any]] = {"step_seconds": run_step, "compute_seconds": compute}
    if several:
        forms["all_reduce_seconds"] = lambda: dist.all_reduce(buffer)
    seconds: Dict[str, List[float]] = {name: [] for name in forms}
    for repetition in range(args.repeat + 1):  # the first is the warm-up
        for name, form in forms.items():
            comm.synchronize()
            elapsed = timed(form, args.device)
            if repetition:
                seconds[name].append(elapsed)
    if comm.is_main_process():
        result = {name: statistics.median(values) for name, values in seconds.items()}
        result["processes"] = comm.get_world_size()
        result["bytes_all_reduced"] = gradients if several else 0
        Path(path).write_text(json.dumps(result))


def _print(results: dict) -> None:
    rows = []
    for name, result in results.items():
        if name == "model":
            continue
        rate = result["processes"] / result["step_seconds"]
        first = rows[0][2] if rows else result["step_seconds"]
        rows.append(
            [
                name,
                "measured",
                result["step_seconds"],
                result["compute_seconds"],
                result.get("all_reduce_seconds"),
                result["bytes_all_reduced"] / 1e6,
                rate,
                first / result["step_seconds"],
            ]
        )
    model = results.get("model")
    for count in _PREDICTED if model else ():
        seconds = model[f"seconds_on_{count}"]
        rows.append(
            [
                count,
                "predicted",
                seconds,
                model["compute_seconds"],
                None,
                model["bytes_all_reduced"] / 1e6,
                count / seconds,
                rows[0][2] / seconds,
            ]
        )
    headers = [
        "processes",
        "",
        "step s",
        "compute s",
        "all-reduce s",
        "MB all-reduced",
        "batches / s",
        "efficiency",
    ]
    print(tabulate(rows, headers, floatfmt=".3f", missingval=""))
