"""The command line of tools/benchmark.py: operators against their dense form, time and peak memory, in one run."""

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from tabulate import tabulate
from torch.nn import functional as F

from rpe_d2.engine.run_record import current_commit, hardware, plain_numbers
from rpe_d2.engine.setup import check_device
from rpe_d2.ops.clustering import cluster_embeddings
from rpe_d2.ops.mean_shift import margin_bandwidth, mean_shift
from rpe_d2.ops.pair_loss import spherical_pair_loss
from rpe_d2.utils.errors import one_line_errors
from rpe_d2.utils.files import make_writable_folder

from .memory import measure_in_new_process, peak_memory_mb
from .model import add_model_arguments, run_model_benchmark
from .processes import add_process_arguments, run_process_benchmark
from .proposals import add_proposal_arguments, run_proposal_benchmark
from .spn import add_spn_arguments, run_spn_benchmark

_MARGIN = 0.5
_MERGE_COSINE = 0.9
# What is timed beside the operator ("op") and its dense form: one torch.mm of as many operations.
_LIMIT = "matmul"
# Every form has run once at this many points before its memory is measured: libraries allocate on first use.
_WARM_UP_POINTS = 128

Tensors = Tuple[torch.Tensor, ...]


class Case(NamedTuple):
    """One computation in several forms that must agree.

    Attributes:
        forms: "op" and, where it fits into memory, "dense": each runs the computation and returns its results.
        operations: floating-point operations of the matrix products that the computation consists of.
        difference: of two forms' results, 0 where they agree.
    """

    forms: Dict[str, Callable[[], Tensors]]
    operations: float
    difference: Callable[[Tensors, Tensors], float]


class Benchmark(NamedTuple):
    """A subcommand.

    Attributes:
        help: one line.
        add_arguments: declares its flags.
        run: measures, prints a table and returns what belongs into the JSON's ``results``.
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], dict]


def main(argv: Optional[List[str]] = None) -> int:
    """Runs one benchmark, prints its table and with ``--json`` writes it to a new file.

    Returns:
        Exit status: 0, 2 where an argument or a file is at fault, in one line.
    """
    args = _parse(argv)
    arguments = sys.argv[1:] if argv is None else argv
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
        print(f"note: other processes are busy (load {load:.1f}); they distort what is measured")
    with one_line_errors():
        results = BENCHMARKS[args.benchmark].run(args)
    if args.json:
        record = {
            "benchmark": args.benchmark,
            "command": shlex.join(["tools/benchmark.py", *arguments]),
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
    """Before anything is measured: a record that cannot be written would be lost.

    Raises:
        ValueError: there is a file already, or its folder cannot be written.
    """
    if path.exists():
        raise ValueError(f"{path} exists already; it is not overwritten")
    make_writable_folder("--json", path.parent)


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmark.py",
        description="Time and peak memory of operators against their dense form.",
    )
    subparsers = parser.add_subparsers(dest="benchmark", required=True)
    for name, benchmark in BENCHMARKS.items():
        subparser = subparsers.add_parser(name, help=benchmark.help, description=benchmark.help)
        benchmark.add_arguments(subparser)
        subparser.add_argument(
            "--repeat", type=_positive, default=5, help="repetitions, interleaved (5)"
        )
        subparser.add_argument(
            "--threads", type=_positive, help="of the processor; default: torch's"
        )
        subparser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 … (cpu)")
        subparser.add_argument("--json", metavar="FILE", help="write the results to this new file")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}; allowed: 1 or more")
    return number


# ---- Operators and their dense forms


def _sphere_points(points: int, dim: int, groups: int, spread: float, device: str) -> Tensors:
    """Unit vectors (N, D) around random centres, and their groups (N,); the same every time."""
    generator = torch.Generator().manual_seed(0)
    centers = F.normalize(torch.randn(groups, dim, generator=generator), dim=1)
    labels = torch.randint(groups, (points,), generator=generator)
    noise = torch.randn(points, dim, generator=generator) * spread / math.sqrt(dim)
    return F.normalize(centers[labels] + noise, dim=1).to(device), labels.to(device)


def dense_mean_shift(x: torch.Tensor, bandwidth: float, num_loops: int) -> torch.Tensor:
    """Gaussian blurring mean shift of x (N, D) on the sphere with all N x N weights (Kong & Fowlkes, section 4)."""
    for _ in range(num_loops):
        weights = ((x @ x.T - 1) / bandwidth**2).exp()  # (N, N)
        x = F.normalize(weights @ x / weights.sum(dim=1, keepdim=True), dim=1)
    return x


def dense_pair_loss(embeddings: torch.Tensor, labels: torch.Tensor, margin: float) -> torch.Tensor:
    """The linear pair loss with joint normalisation from N x N matrices."""
    x = F.normalize(embeddings, dim=1)
    similarity = (1 + x @ x.T) / 2
    same = labels[:, None] == labels
    weights = 1 / same.sum(dim=1).to(x.dtype)
    pair_weights = weights[:, None] * weights
    terms = torch.where(same, 1 - similarity, (similarity - margin).clamp(min=0))
    return (pair_weights * terms).sum() / pair_weights.sum()


def dense_clusters(x: torch.Tensor, threshold: float) -> torch.Tensor:
    """Groups x (N, D) in one pass over its N x N adjacency: the next free point takes its free neighbours."""
    near = x @ x.T >= threshold
    labels = torch.full((len(x),), -1, device=x.device)
    free = torch.ones(len(x), dtype=torch.bool, device=x.device)
    cluster = 0
    while bool(free.any()):
        members = near[int(free.to(torch.uint8).argmax())] & free
        labels[members] = cluster
        free &= ~members
        cluster += 1
    return labels


def _mean_shift_cases(args: argparse.Namespace) -> Dict[str, Case]:
    x, _ = _sphere_points(args.points, args.dim, args.groups, 0.5, args.device)
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    bandwidth = margin_bandwidth(_MARGIN)

    def forward(function: Callable) -> Tensors:
        with torch.no_grad():
            return (function(x, bandwidth, args.loops),)

    def backward(function: Callable) -> Tensors:
        leaf = x.clone().requires_grad_()
        (function(leaf, bandwidth, args.loops) * target).sum().backward()
        return (leaf.grad,)

    operations = (
        4.0 * args.points**2 * args.dim * args.loops
    )  # similarities, and weights times points
    return {
        "forward": Case(
            {"op": lambda: forward(mean_shift), "dense": lambda: forward(dense_mean_shift)},
            operations,
            _relative_difference,
        ),
        # Each product has two more in the backward pass.
        "forward+backward": Case(
            {"op": lambda: backward(mean_shift), "dense": lambda: backward(dense_mean_shift)},
            3 * operations,
            _relative_difference,
        ),
    }


def _pair_loss_cases(args: argparse.Namespace) -> Dict[str, Case]:
    x, labels = _sphere_points(args.points, args.dim, args.groups, 1.5, args.device)

    def run(function: Callable) -> Tensors:
        leaf = x.clone().requires_grad_()
        loss = function(leaf, labels, _MARGIN)
        loss.backward()
        return loss.detach(), leaf.grad

    forms = {"op": lambda: run(spherical_pair_loss), "dense": lambda: run(dense_pair_loss)}
    return {"forward+backward": Case(forms, 6.0 * args.points**2 * args.dim, _relative_difference)}


def _cluster_cases(args: argparse.Namespace) -> Dict[str, Case]:
    cases = {}
    for points in sorted({args.points, min(args.points, args.dense_points)}):
        # As tight as shifted embeddings.
        x, _ = _sphere_points(points, args.dim, args.groups, 0.1, args.device)
        forms = {"op": lambda x=x: (cluster_embeddings(x, _MERGE_COSINE),)}
        if points <= args.dense_points:
            forms["dense"] = lambda x=x: (dense_clusters(x, _MERGE_COSINE),)
        # The least that assigning every point to one of the centres takes.
        operations = 2.0 * points * min(args.groups, points) * args.dim
        cases[f"{points} points"] = Case(forms, operations, _regrouped)
    return cases


def _relative_difference(found: Tensors, expected: Tensors) -> float:
    """Norm of the difference over the norm, of the tensor where it is largest."""
    # Not entry by entry: where the hinge of the loss has its kink, rounding decides which side a pair is on.
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected))


def _regrouped(found: Tensors, expected: Tensors) -> float:
    """Share of points whose group has not exactly the same members in both, however groups are numbered."""
    (found,), (expected,) = found, expected
    pairs = found * (int(expected.max()) + 1) + expected
    sizes = [
        torch.unique(labels, return_inverse=True, return_counts=True)[1:]
        for labels in (found, expected, pairs)
    ]
    of_found, of_expected, of_pair = (counts[group] for group, counts in sizes)
    return 1 - float(((of_pair == of_found) & (of_pair == of_expected)).float().mean())


_CASES = {
    "mean-shift": _mean_shift_cases,
    "pair-loss": _pair_loss_cases,
    "cluster": _cluster_cases,
}


# ---- Measuring


def _run_cases(args: argparse.Namespace) -> dict:
    """Times and weighs all forms of a benchmark's cases and prints a table."""
    results = {}
    for name, case in _CASES[args.benchmark](args).items():
        if args.no_dense:
            case.forms.pop("dense", None)
        seconds, difference = _interleaved_times(case, args)
        results[name] = _compare(
            case,
            seconds,
            {
                form: measure_in_new_process(_measure_memory, args, name, form, device=args.device)
                for form in case.forms
            },
        )
        if difference is not None:
            results[name]["difference"] = float(f"{difference:.2g}")
    _print_table(results)
    return results


def _interleaved_times(
    case: Case, args: argparse.Namespace
) -> Tuple[Dict[str, List[float]], Optional[float]]:
    """Seconds of every repetition of every form, taken in turns, and how much the forms' results differ."""
    side = max(1, round((case.operations / 2) ** (1 / 3)))
    matrix = torch.ones(side, side, device=args.device)
    forms = {**case.forms, _LIMIT: lambda: (torch.mm(matrix, matrix),)}
    outputs = {name: form() for name, form in forms.items()}  # also the warm-up
    difference = case.difference(outputs["op"], outputs["dense"]) if "dense" in outputs else None
    del outputs
    seconds = {name: [] for name in forms}
    for _ in range(args.repeat):
        for name, form in forms.items():
            _synchronize(args.device)
            start = time.perf_counter()
            form()
            _synchronize(args.device)
            seconds[name].append(time.perf_counter() - start)
    return seconds, difference


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _compare(case: Case, seconds: Dict[str, List[float]], memory: Dict[str, float]) -> dict:
    """Medians, range, memory and ratios of a case, as they enter the JSON."""
    median = {form: statistics.median(times) for form, times in seconds.items()}
    result = {
        form: plain_numbers(
            {
                "milliseconds": 1e3 * median[form],
                "fastest": 1e3 * min(times),
                "slowest": 1e3 * max(times),
                "peak_mb": memory.get(form, math.nan),
            }
        )
        for form, times in seconds.items()
    }
    result[_LIMIT].pop("peak_mb")
    ratios = {"fraction_of_matmul_peak": median[_LIMIT] / median["op"]}
    if "dense" in median:
        ratios["speedup"] = median["dense"] / median["op"]
        ratios["memory_ratio"] = memory["dense"] / memory["op"] if memory["op"] > 0 else math.nan
    return {**result, **plain_numbers({**ratios, "gflop": case.operations / 1e9})}


def _measure_memory(args: argparse.Namespace, case: str, form: str) -> float:
    """In the process of its own: what one run needs beyond its inputs, MB."""
    torch.set_num_threads(args.threads)
    make_cases = _CASES[args.benchmark]
    small = argparse.Namespace(
        **{**vars(args), "points": _WARM_UP_POINTS, "dense_points": _WARM_UP_POINTS}
    )
    for warm_up in make_cases(small).values():
        if form in warm_up.forms:
            warm_up.forms[form]()
    run = make_cases(args)[case].forms[form]
    return peak_memory_mb(run, args.device)


def _print_table(results: dict) -> None:
    rows = []
    for name, result in results.items():
        for form in ("op", "dense", _LIMIT):
            if form not in result:
                continue
            row = [name, form, result[form]["milliseconds"], result[form].get("peak_mb")]
            if form == "op":
                percent = 100 * result["fraction_of_matmul_peak"]
                row += [result.get("speedup"), result.get("memory_ratio"), percent]
                row.append(result.get("difference"))
            rows.append(row)
    headers = ["", "form", "ms", "peak MB", "faster", "less memory", "% of matmul", "difference"]
    formats = ("", "", ".1f", ".1f", ".1f", ".1f", ".0f", ".1e")
    print(tabulate(rows, headers=headers, floatfmt=formats, missingval=""))


# ---- Subcommands


def _points(points: int, groups: int) -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--points", type=_positive, default=points, help=f"pixels ({points})")
        parser.add_argument("--dim", type=_positive, default=32, help="of the embeddings (32)")
        parser.add_argument("--groups", type=_positive, default=groups, help=f"objects ({groups})")
        parser.add_argument(
            "--no-dense",
            action="store_true",
            help="leave out the dense form, which needs N x N memory",
        )

    return add


def _mean_shift_arguments(parser: argparse.ArgumentParser) -> None:
    _points(4096, 20)(parser)
    parser.add_argument("--loops", type=_positive, default=5, help="of mean shift (5)")


def _cluster_arguments(parser: argparse.ArgumentParser) -> None:
    _points(65536, 400)(parser)
    parser.add_argument(
        "--dense-points",
        type=_positive,
        default=8192,
        help="pixels at which the dense form is compared (8192)",
    )


BENCHMARKS = {
    "mean-shift": Benchmark(
        "mean shift on the sphere, forward and forward+backward", _mean_shift_arguments, _run_cases
    ),
    "pair-loss": Benchmark(
        "the pair loss of all pairs with its gradient", _points(4096, 20), _run_cases
    ),
    "cluster": Benchmark("from shifted embeddings to groups", _cluster_arguments, _run_cases),
    "model": Benchmark(
        "training step and inference of configurations", add_model_arguments, run_model_benchmark
    ),
    "proposals": Benchmark(
        "proposal generators after the backbone", add_proposal_arguments, run_proposal_benchmark
    ),
    "spn": Benchmark(
        "spatial propagation, forward and forward+backward", add_spn_arguments, run_spn_benchmark
    ),
    "processes": Benchmark(
        "a training step on several processes", add_process_arguments, run_process_benchmark
    ),
}
