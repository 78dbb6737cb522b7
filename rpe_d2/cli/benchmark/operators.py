"""``rpe-d2 benchmark mean-shift | pair-loss | cluster``: operators against their dense forms."""

import argparse
import math
import statistics
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from tabulate import tabulate
from torch.nn import functional as F

from rpe_d2.engine.run_record import plain_numbers
from rpe_d2.ops.clustering import cluster_embeddings
from rpe_d2.ops.mean_shift import margin_bandwidth, mean_shift
from rpe_d2.ops.pair_loss import spherical_pair_loss

from ..arguments import positive
from .measure import measure_in_new_process, peak_memory_mb, synchronize, timed

_MARGIN = 0.5
_MERGE_COSINE = 0.9
# Timed next to the operator ("op") and its dense form: one torch.mm with as many operations.
_LIMIT = "matmul"
# Libraries allocate memory at their first use, so every form runs once with this number of points
# before its memory is measured.
_WARM_UP_POINTS = 128

Tensors = Tuple[torch.Tensor, ...]


class Case(NamedTuple):
    """One computation in several forms that must agree.

    Attributes:
        forms: functions that run the computation and return its results, by name: "op" and, where
            it fits into memory, "dense".
        operations: floating-point operations of the matrix products in the computation.
        difference: distance between the results of two forms, 0 if they agree.
    """

    forms: Dict[str, Callable[[], Tensors]]
    operations: float
    difference: Callable[[Tensors, Tensors], float]


def add_mean_shift_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of ``mean-shift``."""
    _add_point_arguments(parser, 4096, 20)
    parser.add_argument("--loops", type=positive, default=5, help="mean-shift loops (5)")


def add_pair_loss_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of ``pair-loss``."""
    _add_point_arguments(parser, 4096, 20)


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of ``cluster``."""
    _add_point_arguments(parser, 65536, 400)
    parser.add_argument(
        "--dense-points",
        type=positive,
        default=8192,
        help="number of pixels for the comparison with the dense form (8192)",
    )


def _add_point_arguments(parser: argparse.ArgumentParser, points: int, groups: int) -> None:
    parser.add_argument("--points", type=positive, default=points, help=f"pixels ({points})")
    parser.add_argument("--dim", type=positive, default=32, help="embedding dimensions (32)")
    parser.add_argument("--groups", type=positive, default=groups, help=f"objects ({groups})")
    parser.add_argument(
        "--no-dense",
        action="store_true",
        help="leave out the dense form, which needs N x N memory",
    )


# ---- Operators and their dense forms


def _sphere_points(points: int, dim: int, groups: int, spread: float, device: str) -> Tensors:
    """Samples unit vectors (N, D) around random centers, and their groups (N,); fixed seed."""
    generator = torch.Generator().manual_seed(0)
    centers = F.normalize(torch.randn(groups, dim, generator=generator), dim=1)
    labels = torch.randint(groups, (points,), generator=generator)
    noise = torch.randn(points, dim, generator=generator) * spread / math.sqrt(dim)
    return F.normalize(centers[labels] + noise, dim=1).to(device), labels.to(device)


def dense_mean_shift(x: torch.Tensor, bandwidth: float, num_loops: int) -> torch.Tensor:
    """Gaussian blurring mean shift on the sphere, with all N x N weights (Kong & Fowlkes, sec. 4).

    Args:
        x: (N, D) unit vectors.
        bandwidth: bandwidth of the kernel.
        num_loops: number of updates.

    Returns:
        The shifted unit vectors (N, D).
    """
    for _ in range(num_loops):
        weights = ((x @ x.T - 1) / bandwidth**2).exp()  # (N, N)
        x = F.normalize(weights @ x / weights.sum(dim=1, keepdim=True), dim=1)
    return x


def dense_pair_loss(embeddings: torch.Tensor, labels: torch.Tensor, margin: float) -> torch.Tensor:
    """The linear pair loss with joint normalization, computed from N x N matrices.

    Args:
        embeddings: (N, D), of any length.
        labels: (N,) int, the object of each pixel.
        margin: margin of the similarity of different objects.
    """
    x = F.normalize(embeddings, dim=1)
    similarity = (1 + x @ x.T) / 2
    same = labels[:, None] == labels
    weights = 1 / same.sum(dim=1).to(x.dtype)
    pair_weights = weights[:, None] * weights
    terms = torch.where(same, 1 - similarity, (similarity - margin).clamp(min=0))
    return (pair_weights * terms).sum() / pair_weights.sum()


def dense_clusters(x: torch.Tensor, threshold: float) -> torch.Tensor:
    """Clusters x (N, D) in one pass over its N x N adjacency.

    The first point without a cluster starts one and takes its neighbors that have none.

    Returns:
        The cluster of each point, (N,) int.
    """
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

    # Two matrix products per loop: the similarities, and the weights times the points.
    operations = 4.0 * args.points**2 * args.dim * args.loops
    return {
        "forward": Case(
            {"op": lambda: forward(mean_shift), "dense": lambda: forward(dense_mean_shift)},
            operations,
            _relative_difference,
        ),
        # The backward pass has two more products for each one.
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
        # The spread of embeddings after mean shift.
        x, _ = _sphere_points(points, args.dim, args.groups, 0.1, args.device)
        forms = {"op": lambda x=x: (cluster_embeddings(x, _MERGE_COSINE),)}
        if points <= args.dense_points:
            forms["dense"] = lambda x=x: (dense_clusters(x, _MERGE_COSINE),)
        # The minimum for assigning every point to one of the centers.
        operations = 2.0 * points * min(args.groups, points) * args.dim
        cases[f"{points} points"] = Case(forms, operations, _regrouped)
    return cases


def _relative_difference(actual: Tensors, expected: Tensors) -> float:
    """Returns the largest ratio, over the tensors, of the norm of the difference to the norm."""
    # Not entry by entry: at the kink of the hinge, rounding decides on which side a pair is.
    return max(float((a - b).norm() / b.norm()) for a, b in zip(actual, expected))


def _regrouped(actual: Tensors, expected: Tensors) -> float:
    """Returns the share of points whose cluster has different members in the two results.

    The numbering of the clusters does not matter.
    """
    (actual,), (expected,) = actual, expected
    pairs = actual * (int(expected.max()) + 1) + expected
    sizes = [
        torch.unique(labels, return_inverse=True, return_counts=True)[1:]
        for labels in (actual, expected, pairs)
    ]
    of_actual, of_expected, of_pair = (counts[group] for group, counts in sizes)
    return 1 - float(((of_pair == of_actual) & (of_pair == of_expected)).float().mean())


_CASES = {
    "mean-shift": _mean_shift_cases,
    "pair-loss": _pair_loss_cases,
    "cluster": _cluster_cases,
}


# ---- Measuring


def run_operator_benchmark(args: argparse.Namespace) -> dict:
    """Measures time and memory of all forms of an operator and prints a table.

    Returns:
        By case: for each form the median, fastest and slowest milliseconds and the peak memory in
        MB; the ratios of the dense form to the operator; the difference between their results.
    """
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
    """Times the forms in turn.

    Returns:
        The seconds of every repetition by form, and the difference between the results of the
        operator and the dense form, None without the latter.
    """
    side = max(1, round((case.operations / 2) ** (1 / 3)))
    matrix = torch.ones(side, side, device=args.device)
    forms = {**case.forms, _LIMIT: lambda: (torch.mm(matrix, matrix),)}
    outputs = {name: form() for name, form in forms.items()}  # also the warm-up
    difference = case.difference(outputs["op"], outputs["dense"]) if "dense" in outputs else None
    del outputs
    seconds = {name: [] for name in forms}
    for _ in range(args.repeat):
        for name, form in forms.items():
            synchronize(args.device)
            seconds[name].append(timed(form, args.device))
    return seconds, difference


def _compare(case: Case, seconds: Dict[str, List[float]], memory: Dict[str, float]) -> dict:
    """Returns medians, ranges, memory and ratios of a case for the JSON record."""
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
    """Measures the memory of one run beyond its inputs, MB; called in a new process."""
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
