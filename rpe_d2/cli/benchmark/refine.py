"""``rpe-d2 benchmark refine``: the time of ``rpe_d2.refine`` for one image."""

import argparse
import statistics
import time
from typing import Dict, List

import cv2
import numpy as np
from tabulate import tabulate

from rpe_d2.refinement.label_geometry import boundary_pixels
from rpe_d2.refinement.network import build_refiner_network
from rpe_d2.refinement.refine import LabelRefiner

from ..arguments import positive
from .measure import synchronize, timed


def add_refine_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of ``refine``."""
    parser.add_argument("--sizes", type=positive, nargs="+", default=[512], metavar="PIXELS")
    parser.add_argument("--objects", type=positive, nargs="+", default=[1, 20, 200], metavar="N")


def run_refine_benchmark(args: argparse.Namespace) -> dict:
    """Times the refiner, with random weights, on label maps of disks.

    Returns:
        By size and number of objects: median milliseconds of the network that predicts the gates,
        and of everything else; the number of boundary pixels.
    """
    refiner = LabelRefiner(build_refiner_network(), args.device)
    spent: List[float] = []
    starts: List[float] = []

    def started(*_: object) -> None:
        synchronize(args.device)
        starts.append(time.perf_counter())

    def ended(*_: object) -> None:
        synchronize(args.device)
        spent.append(time.perf_counter() - starts.pop())

    refiner.network.register_forward_pre_hook(started)
    refiner.network.register_forward_hook(ended)
    results: Dict[str, Dict[str, float]] = {}
    for size in args.sizes:
        for count in args.objects:
            image, labels = _scene(size, count)
            network, rest = [], []
            for _ in range(args.repeat + 1):  # the first is the warm-up
                spent.clear()
                total = timed(lambda: refiner.refine(image, labels), args.device)
                network.append(sum(spent))
                rest.append(total - sum(spent))
            results[f"{size} x {size}, {count} objects"] = {
                "network_ms": 1e3 * statistics.median(network[1:]),
                "rest_ms": 1e3 * statistics.median(rest[1:]),
                "boundary_pixels": int(boundary_pixels(labels).sum()),
            }
    rows = [[name, *values.values()] for name, values in results.items()]
    headings = ["label map", "network, ms", "rest, ms", "boundary pixels"]
    print(tabulate(rows, headings, floatfmt=".0f"))
    return results


def _scene(size: int, count: int) -> tuple:
    """Draws disks that cover about a quarter of an image, whatever their number."""
    random = np.random.default_rng(0)
    labels = np.zeros((size, size), np.int32)
    radius = max(3, int(size * np.sqrt(0.25 / (np.pi * count))))
    for label in range(1, count + 1):
        center = tuple(int(v) for v in random.integers(0, size, 2))
        cv2.circle(labels, center, radius, label, -1)
    return random.integers(0, 256, (size, size, 3), dtype=np.uint8), labels
