"""The command line of ``rpe-d2 evaluate``."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from rpe_d2.evaluation.label_metrics import label_metrics, mean_label_metrics
from rpe_d2.utils.errors import one_line_errors
from rpe_d2.utils.files import write_new_file
from rpe_d2.utils.image_files import image_stem, plane_names, printable
from rpe_d2.utils.label_folders import match_files
from rpe_d2.utils.label_maps import read_label_map

from .arguments import command_line, positive

# What is printed; the file has all of them.
_PRINTED = ("S@0.5", "S@0.75", "S", "F1@0.5", "PQ", "AJI", "AJI+", "SBD", "|DiC|", "pred", "true")


def main(argv: Optional[List[str]] = None) -> int:
    """Compares label maps with true ones and prints the measures of the fields that use them.

    Files are matched by their names. Label maps of several planes are compared plane by plane.

    Returns:
        Exit status: 0, or 2 with a one-line error if an argument or a file is wrong.
    """
    args = _parse(argv)
    with one_line_errors():
        kinds = [os.path.isdir(path) for path in (args.pred, args.truth)]
        if kinds[0] != kinds[1] and os.path.exists(args.pred) and os.path.exists(args.truth):
            raise ValueError(
                f"one of PRED {args.pred} and TRUTH {args.truth} is a folder; allowed: two folders "
                "or two files"
            )
        if any(kinds):
            pairs = match_files(("TRUTH", args.truth), ("PRED", args.pred))
        else:
            pairs = [(args.truth, args.pred)]
        images: Dict[str, Dict[str, float]] = {}
        for truth, pred in tqdm(pairs, desc="evaluate", unit="image", disable=None):
            images.update(_compare(pred, truth))
        mean = mean_label_metrics(list(images.values()))
        if args.json:
            content = {
                "command": command_line("tools/evaluate.py", argv),
                "mean": _plain(mean),
                "images": {name: _plain(metrics) for name, metrics in images.items()},
            }
            text = json.dumps(content, indent=1) + "\n"
            print(write_new_file(Path(args.json), text.encode()))
    rows = [[name, *_cells(metrics)] for name, metrics in images.items()]
    if len(rows) > args.rows:
        shown = sorted(rows, key=lambda row: (row[1] == "-", row[1]))[: args.rows]
        print(f"{args.rows} of {len(rows)} images, those with the lowest S@0.5:")
    else:
        shown = rows
    print(tabulate([*shown, ["all", *_cells(mean)]], ["image", *_PRINTED], numalign="right"))
    return 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compares label maps with true ones: S, F1, PQ, AJI, SBD and counts."
    )
    parser.add_argument("pred", metavar="PRED", help="a label map, or a folder of label maps")
    parser.add_argument("truth", metavar="TRUTH", help="the true label map, or a folder")
    parser.add_argument("--json", metavar="FILE", help="writes all measures of all images")
    parser.add_argument(
        "--rows", type=positive, default=10, metavar="N", help="images that are printed (10)"
    )
    return parser.parse_args(argv)


def _compare(pred: str, truth: str) -> Dict[str, Dict[str, float]]:
    """Returns the measures of every plane of a label map by its name."""
    planes = plane_names(pred), plane_names(truth)
    if len(planes[0]) != len(planes[1]):
        raise ValueError(
            f"{printable(pred)} has {len(planes[0])} planes; allowed with {printable(truth)}: "
            f"{len(planes[1])}"
        )
    metrics = {}
    for pred_plane, truth_plane in zip(*planes):
        maps = [read_label_map(name) for name in (pred_plane, truth_plane)]
        if maps[0].shape != maps[1].shape:
            sizes = ["{1} x {0}".format(*labels.shape) for labels in maps]
            raise ValueError(
                f"{printable(pred_plane)} is {sizes[0]} pixels; allowed with "
                f"{printable(truth_plane)}: {sizes[1]}"
            )
        metrics[image_stem(truth_plane)] = label_metrics(*maps)
    return metrics


def _plain(metrics: Dict[str, float]) -> Dict[str, Optional[float]]:
    """Returns metrics for JSON, which has no NaN."""
    return {k: None if np.isnan(v) else round(v, 6) for k, v in metrics.items()}


def _cells(metrics: Dict[str, float]) -> List[Any]:
    cells: List[Any] = []
    for name in _PRINTED:
        value = metrics[name]
        whole = name in ("pred", "true")
        cells.append("-" if np.isnan(value) else f"{value:.0f}" if whole else f"{value:.3f}")
    return cells


if __name__ == "__main__":
    sys.exit(main())
