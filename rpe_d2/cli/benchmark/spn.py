"""``rpe-d2 benchmark spn``: spatial propagation, compared with autograd loops and a dense CRF."""

import argparse
import math
import statistics
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from tabulate import tabulate
from torch.nn import functional as F

from rpe_d2.engine.run_record import plain_numbers
from rpe_d2.evaluation import DenseCRF
from rpe_d2.ops.propagation import normalize_gates, spatial_propagation

from .measure import timed

# (B, C, H, W): masks of a hundred regions, maps of a semantic head, large maps.
_SHAPES = ((100, 1, 28, 28), (1, 32, 64, 64), (1, 32, 256, 256))
# Above this number of values, the forms that keep every step for autograd take minutes and
# gigabytes.
_LARGEST_NAIVE = 1 << 18
_CRF_SIZE, _CRF_CLASSES, _CRF_CHANNELS = 512, 21, 32


def add_spn_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of ``spn``."""
    parser.add_argument(
        "--shape",
        type=_shape,
        action="append",
        metavar="BxCxHxW",
        help="shape of the maps instead of the default shapes; may be repeated",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also time torch.compile, which takes a minute to start",
    )
    parser.add_argument("--no-crf", action="store_true", help="leave out the dense CRF")
    parser.add_argument(
        "--crf-iterations", type=int, default=5, help="iterations of mean-field inference (5)"
    )


def run_spn_benchmark(args: argparse.Namespace) -> dict:
    """Times propagation in all four directions, in turn with naive forms, and prints a table.

    The forms are "op", the operator; "torch", the same without C++ (on a CPU); "unbind", autograd
    through a Python loop over ``x.unbind()``; "index", the same over ``x[t]``; and on request
    "compile", the compiled form of "unbind".

    The limit is a lower bound of the time. It is the time for reading and writing every value as
    often as the computation has to, at the bandwidth of a copy. On a GPU it is the largest of that
    time, of the time for the columns, which depend on each other, and of the time of an empty
    kernel. All of them are measured in the same run.

    Returns:
        By shape and pass: median milliseconds of each form, the ratios to "op", and the limit. The
        entry "dense_crf" has the times of the dense CRF.
    """
    results = {}
    bandwidth, launch = _copy_bandwidth(args), 0.0
    if args.device.startswith("cuda"):
        launch = _launch_seconds(args)
    for shape in args.shape or _SHAPES:
        step = _step_seconds(max(shape[2:]), args) if launch else 0.0
        limits = _Limits(bandwidth, launch, step)
        for backward in (False, True):
            name = "x".join(map(str, shape)) + (" forward+backward" if backward else " forward")
            results[name] = _run_shape(shape, backward, limits, args)
    _print(results)
    results["copy_gb_per_second"] = round(bandwidth / 1e9, 2)
    print(f"copy: {bandwidth / 1e9:.1f} GB/s")
    if launch:
        results["launch_microseconds"] = round(1e6 * launch, 2)
        print(f"launch: {1e6 * launch:.1f} µs")
    if not args.no_crf:
        results["dense_crf"] = _run_crf(args)
    return results


def _shape(text: str) -> Tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split("x"))
    except ValueError:
        shape = ()
    if len(shape) != 4 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text}; allowed: four sizes, 1x32x64x64")
    return shape


def _copy_bandwidth(args: argparse.Namespace) -> float:
    """Returns the bytes per second that a copy of 256 MB reads and writes."""
    source = torch.ones(1 << 25, device=args.device)
    target = torch.empty_like(source)
    seconds = [timed(lambda: target.copy_(source), args.device) for _ in range(args.repeat + 1)]
    return 2 * source.numel() * source.element_size() / statistics.median(seconds[1:])


def _launch_seconds(args: argparse.Namespace) -> float:
    """Returns the seconds for launching a minimal kernel and waiting for it."""
    value = torch.zeros(1, device=args.device)
    return _median_seconds(value.zero_, args)


def _step_seconds(side: int, args: argparse.Namespace) -> float:
    """Returns the seconds for one more column of a single map whose height is about ``side``.

    The time is the difference between two square maps, divided by the difference of their sides. It
    excludes the constant time of a call. A single map leaves processors idle, so it is the time for
    which columns wait for each other. Both sides have the same next power of two, which is the size
    of a block of the kernel.
    """
    large = 1 << (side - 1).bit_length()
    small = large // 2 + 1
    if small >= large:
        return 0.0
    seconds = []
    for size in (small, large):
        x = torch.randn(1, 1, size, size, device=args.device)
        gates = normalize_gates(torch.randn(1, 1, 12, size, size, device=args.device))
        with torch.no_grad():
            seconds.append(_median_seconds(lambda: spatial_propagation(x, gates, "none"), args))
    return max(0.0, (seconds[1] - seconds[0]) / (large - small))


def _median_seconds(form: Callable, args: argparse.Namespace) -> float:
    """Returns the median over many repetitions, because each one is short."""
    seconds = [timed(form, args.device) for _ in range(10 * args.repeat + 1)]
    return statistics.median(seconds[1:])


class _Limits(NamedTuple):
    """Lower bounds of the time of a propagation.

    Attributes:
        bandwidth: bytes per second that a copy reads and writes.
        launch: seconds of an empty kernel; 0 on a CPU.
        step: seconds from one column to the next; 0 on a CPU.
    """

    bandwidth: float
    launch: float
    step: float

    def seconds(self, shape: Tuple[int, ...], value_size: int, backward: bool) -> float:
        """Returns the lower bound for the four directions, in seconds.

        Args:
            shape: (B, C, H, W) of the maps.
            value_size: bytes per value.
            backward: include the backward pass.
        """
        # Each direction reads x and three gates and writes h, and the running maximum is read and
        # written. The backward pass reads x, gates, h and a gradient, and writes the gradients of x
        # and of the gates.
        passes = 23 if not backward else 23 + 4 * 10
        scans = 2 if backward else 1  # one after the other
        return max(
            passes * math.prod(shape) * value_size / self.bandwidth,
            scans * max(shape[2:]) * self.step,
            self.launch,
        )


def _run_shape(
    shape: Tuple[int, ...], backward: bool, limits: _Limits, args: argparse.Namespace
) -> dict:
    generator = torch.Generator().manual_seed(0)
    batch, channels, height, width = shape
    x = torch.randn(shape, generator=generator).to(args.device)
    raw = torch.randn(batch, channels, 12, height, width, generator=generator)
    gates = normalize_gates(raw.to(args.device))
    forms: Dict[str, Callable] = {"op": lambda x, g: spatial_propagation(x, g, "max")}
    if args.device == "cpu":
        forms["torch"] = lambda x, g: spatial_propagation(x, g, "max", "torch")
    if x.numel() <= _LARGEST_NAIVE and height == width:
        forms["unbind"] = lambda x, g: naive_propagation(x, g, unbind=True)
        forms["index"] = lambda x, g: naive_propagation(x, g, unbind=False)
        if args.compile:
            forms["compile"] = torch.compile(forms["unbind"])

    def run(form: Callable) -> List[torch.Tensor]:
        if not backward:
            with torch.no_grad():
                return [form(x, gates)]
        leaves = x.clone().requires_grad_(), gates.clone().requires_grad_()
        form(*leaves).sum().backward()
        return [leaf.grad for leaf in leaves]

    outputs = {name: run(form) for name, form in forms.items()}  # also the warm-up
    # Relative to the norm of all values: where two directions are nearly equal, rounding decides
    # which one is larger, and the gradient of that pixel flows to another direction.
    difference = max(
        float((one - other).norm() / other.norm())
        for output in outputs.values()
        for one, other in zip(output, outputs["op"])
    )
    del outputs
    seconds: Dict[str, List[float]] = {name: [] for name in forms}
    for _ in range(args.repeat):
        for name, form in forms.items():
            seconds[name].append(timed(lambda form=form: run(form), args.device))
    median = {name: statistics.median(times) for name, times in seconds.items()}
    limit = limits.seconds(shape, x.element_size(), backward)
    return {
        **plain_numbers({f"{name}_milliseconds": 1e3 * time for name, time in median.items()}),
        **{
            f"op_faster_than_{name}": round(median[name] / median["op"], 2)
            for name in median
            if name != "op"
        },
        "limit_milliseconds": round(1e3 * limit, 4),
        "fraction_of_limit": round(limit / median["op"], 3),
        "relative_difference": float(f"{difference:.2g}"),
    }


def naive_propagation(x: torch.Tensor, gates: torch.Tensor, unbind: bool) -> torch.Tensor:
    """Computes :func:`spatial_propagation` with merge "max" by a loop that autograd differentiates.

    All directions are computed in the same loop.

    Args:
        x: (B, C, N, N), square maps.
        gates: (B, C, 12, N, N).
        unbind: whether columns are taken by ``unbind``, or else by indexing each one.

    Returns:
        The propagated maps (B, C, N, N).
    """
    # All directions, rotated to left-to-right, with the columns first: (N, 4, B, C, N).
    turned = torch.stack([turn(x) for turn, _ in _TURNS]).permute(4, 0, 1, 2, 3)
    parts = gates.unflatten(2, (4, 3)).unbind(2)
    parts = torch.stack([turn(part) for (turn, _), part in zip(_TURNS, parts)])
    a, b, c = parts.permute(5, 0, 1, 2, 3, 4).unbind(4)
    # Gates that point out of the image are ignored.
    a, c = F.pad(a[..., 1:], (1, 0)), F.pad(c[..., :-1], (0, 1))
    columns = [turned, 1 - a - b - c, a, b, c]
    if unbind:
        columns = [part.unbind(0) for part in columns]
    h = [columns[0][0]]
    for t in range(1, len(turned)):
        x_t, own, a_t, b_t, c_t = (part[t] for part in columns)
        before = F.pad(h[-1], (1, 1))
        h.append(
            own * x_t + a_t * before[..., :-2] + b_t * before[..., 1:-1] + c_t * before[..., 2:]
        )
    directions = torch.stack(h).permute(1, 2, 3, 4, 0)
    return torch.stack([back(part) for (_, back), part in zip(_TURNS, directions)]).amax(dim=0)


# Functions that rotate a direction to left-to-right, and back.
_TURNS = (
    (lambda maps: maps, lambda maps: maps),
    (lambda maps: maps.flip(-1), lambda maps: maps.flip(-1)),
    (lambda maps: maps.transpose(-1, -2), lambda maps: maps.transpose(-1, -2)),
    (
        lambda maps: maps.flip(-2).transpose(-1, -2),
        lambda maps: maps.transpose(-1, -2).flip(-2),
    ),
)


def _print(results: Dict[str, dict]) -> None:
    forms = [
        form
        for form in ("op", "torch", "unbind", "index", "compile")
        if any(f"{form}_milliseconds" in row for row in results.values())
    ]
    rows = [
        [
            name,
            *(row.get(f"{form}_milliseconds") for form in forms),
            *(row.get(f"op_faster_than_{form}") for form in forms[1:]),
            100 * row["fraction_of_limit"],
            row["relative_difference"],
        ]
        for name, row in results.items()
    ]
    headers = ["", *(f"{form} ms" for form in forms), *(f"/ {form}" for form in forms[1:])]
    formats = ("", *[".3f"] * len(forms), *[".1f"] * (len(forms) - 1), ".0f", ".0e")
    print(tabulate(rows, [*headers, "% of limit", "difference"], floatfmt=formats, missingval="-"))


# ---- A dense CRF


def _run_crf(args: argparse.Namespace) -> Optional[dict]:
    """Compares two propagation units on maps of half the size, as in the semantic head, with a CRF.

    Both refine synthetic scores of 21 classes for an image of 512 x 512 pixels. The CRF runs on one
    CPU thread.

    Returns:
        Median seconds of both and their ratio, or None without pydensecrf.
    """
    try:
        refine = DenseCRF(args.crf_iterations)
    except ValueError as error:
        print(f"skipped: {error}")
        return None
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (_CRF_SIZE, _CRF_SIZE, 3), dtype=np.uint8)
    scores = generator.random((_CRF_CLASSES, _CRF_SIZE, _CRF_SIZE), dtype=np.float32)
    probabilities = scores / scores.sum(axis=0)
    side = _CRF_SIZE // 2
    x = torch.randn(1, _CRF_CHANNELS, side, side, device=args.device)
    gates = normalize_gates(torch.randn(1, _CRF_CHANNELS, 12, side, side, device=args.device))

    @torch.no_grad()
    def propagate() -> torch.Tensor:
        return spatial_propagation(spatial_propagation(x, gates), gates)

    seconds: Dict[str, List[float]] = {"crf": [], "two_units": []}
    for repetition in range(min(args.repeat, 3) + 1):
        crf = timed(lambda: refine(picture, probabilities), "cpu")
        units = timed(propagate, args.device)
        if repetition:  # the first is the warm-up
            seconds["crf"].append(crf)
            seconds["two_units"].append(units)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = median["crf"] / median["two_units"]
    print(
        f"dense CRF, {args.crf_iterations} iterations at {_CRF_SIZE} x {_CRF_SIZE} x "
        f"{_CRF_CLASSES}: {median['crf']:.2f} s; two units at {_CRF_CHANNELS} x {side} x {side}: "
        f"{median['two_units']:.2f} s, {ratio:.1f} times faster"
    )
    return {
        "crf_seconds": round(median["crf"], 3),
        "two_units_seconds": round(median["two_units"], 3),
        "faster": round(ratio, 2),
        "iterations": args.crf_iterations,
    }
