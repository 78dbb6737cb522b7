"""The command line of ``rpe-d2 benchmark``."""

import argparse
import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional

import torch

from rpe_d2.engine.run_record import current_commit, hardware
from rpe_d2.engine.setup import check_device
from rpe_d2.utils.errors import one_line_errors
from rpe_d2.utils.files import make_writable_folder

from ..arguments import command_line, positive
from .model import add_model_arguments, run_model_benchmark
from .operators import (
    add_cluster_arguments,
    add_mean_shift_arguments,
    add_pair_loss_arguments,
    run_operator_benchmark,
)
from .processes import add_process_arguments, run_process_benchmark
from .proposals import add_proposal_arguments, run_proposal_benchmark
from .refine import add_refine_arguments, run_refine_benchmark
from .spn import add_spn_arguments, run_spn_benchmark


class Benchmark(NamedTuple):
    """A benchmark that the command line offers.

    Attributes:
        help: one line for ``--help``.
        add_arguments: declares the flags.
        run: measures, prints a table and returns the ``results`` of the JSON record.
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], dict]


BENCHMARKS = {
    "mean-shift": Benchmark(
        "mean shift on the sphere, forward and forward+backward",
        add_mean_shift_arguments,
        run_operator_benchmark,
    ),
    "pair-loss": Benchmark(
        "the pair loss over all pairs, with its gradient",
        add_pair_loss_arguments,
        run_operator_benchmark,
    ),
    "cluster": Benchmark(
        "clustering of shifted embeddings", add_cluster_arguments, run_operator_benchmark
    ),
    "model": Benchmark(
        "training step and inference of configurations", add_model_arguments, run_model_benchmark
    ),
    "proposals": Benchmark(
        "proposal generators after the backbone", add_proposal_arguments, run_proposal_benchmark
    ),
    "spn": Benchmark(
        "spatial propagation, forward and forward+backward", add_spn_arguments, run_spn_benchmark
    ),
    "refine": Benchmark(
        "refinement of label maps by rpe_d2.refine", add_refine_arguments, run_refine_benchmark
    ),
    "processes": Benchmark(
        "a training step on several processes", add_process_arguments, run_process_benchmark
    ),
}


def main(argv: Optional[List[str]] = None) -> int:
    """Runs one benchmark and prints its table; with ``--json``, also writes it to a new file.

    Returns:
        Exit status: 0, or 2 with a one-line error if an argument or a file is wrong.
    """
    args = _parse(argv)
    with one_line_errors():
        check_device("--device", args.device)
        if args.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device is {args.device} and CUDA is not available")
        if args.json:
            _check_record(Path(args.json))
    if args.threads:
        torch.set_num_threads(args.threads)
    args.threads = torch.get_num_threads()
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"note: other processes are running (load {load:.1f}) and distort the measurements")
    with one_line_errors():
        results = BENCHMARKS[args.benchmark].run(args)
    if args.json:
        record = {
            "benchmark": args.benchmark,
            "command": command_line("tools/benchmark.py", argv),
            "settings": {k: v for k, v in vars(args).items() if k not in ("benchmark", "json")},
            "commit": current_commit(),
            "hardware": hardware(args.device),
            "load_before": round(load, 2),  # processes that competed for the processor
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "results": results,
        }
        with one_line_errors((OSError,)), open(args.json, "x") as file:
            json.dump(record, file, indent=1)
            file.write("\n")
    return 0


def _check_record(path: Path) -> None:
    """Checks before the measurement that its record can be written.

    Raises:
        ValueError: The file exists, or its folder cannot be written.
    """
    if path.exists():
        raise ValueError(f"{path} exists already; it is not overwritten")
    make_writable_folder("--json", path.parent)


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measures time and peak memory of operators, models, proposal generators and "
        "processes."
    )
    subparsers = parser.add_subparsers(dest="benchmark", required=True)
    for name, benchmark in BENCHMARKS.items():
        subparser = subparsers.add_parser(name, help=benchmark.help, description=benchmark.help)
        benchmark.add_arguments(subparser)
        subparser.add_argument(
            "--repeat", type=positive, default=5, help="interleaved repetitions (5)"
        )
        subparser.add_argument(
            "--threads", type=positive, help="CPU threads; default: torch's own number"
        )
        subparser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 … (cpu)")
        subparser.add_argument("--json", metavar="FILE", help="write the results to this new file")
    return parser.parse_args(argv)
