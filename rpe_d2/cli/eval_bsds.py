"""The command line of ``rpe-d2 eval-bsds`` and tools/eval_bsds.py."""

import argparse
import json
import platform
import sys
import time
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import scipy
from PIL import Image
from tabulate import tabulate
from tqdm import tqdm

from rpe_d2.engine.run_record import current_commit
from rpe_d2.evaluation.bsds_counts import (
    BoundaryImage,
    CountStore,
    ImageCounts,
    count_images,
    find_boundary_images,
    usable_cores,
)
from rpe_d2.evaluation.bsds_files import BOUNDARY_MAP_SUFFIXES
from rpe_d2.ops.boundary_scores import (
    COUNTS,
    TOLERANCE,
    BoundaryScores,
    OperatingPoint,
    boundary_scores,
    operating_point,
)
from rpe_d2.utils.errors import one_line, one_line_errors
from rpe_d2.utils.files import replacing_file
from rpe_d2.utils.json_text import parse_json
from rpe_d2.visualization import precision_recall_plot
from rpe_d2.visualization.precision_recall import SOFTWARE

from .arguments import command_line, positive

BENCHMARK = "bsds_boundaries"
_INTERRUPTED = 130
# The largest number of names that a line lists.
_MOST_NAMES = 5
_NO_MAP = "no boundary map"


class _Counted(NamedTuple):
    """The counts of a run.

    Attributes:
        counts: counts by image name.
        left_out: the reason, by image name, for every image without counts.
        new: number of images that this run has counted.
    """

    counts: Dict[str, ImageCounts]
    left_out: Dict[str, str]
    new: int


def main(argv: Optional[List[str]] = None) -> int:
    """Evaluates a folder of contour maps with the boundary benchmark of BSDS500.

    Prints a table of the images and the scores, which are 0-1 as in the benchmark. ``--json FILE``
    also writes them to that file, and the counts of each image to the folder ``NAME_counts`` beside
    it as soon as they are known. When the command is called again, even after it was killed, it
    counts only the images that are missing or have changed. ``--json`` and ``--plot`` replace only
    files that this command has written. An image whose files are missing or invalid is left out,
    with a line that gives the reason, and the report gives the number of images used.

    The human score is computed from the annotators of the same images. The thinned boundaries of
    each annotator are taken as a prediction and matched with those of all others.

    Returns:
        Exit status: 0, 1 if no image could be used, 2 with a one-line error if an argument is
        wrong, or 130 after Ctrl-C.
    """
    args = _parse(argv)
    start = time.monotonic()
    with one_line_errors():
        images, without_map = _find_images(args)
        _check_targets(args)
        store = _store(args)
        try:
            counted = _count(images, args, store)
        except KeyboardInterrupt:
            kept = f"the same command continues from {store.folder}" if store else "nothing is kept"
            print(f"interrupted; {kept}", file=sys.stderr)
            return _INTERRUPTED
        counted.left_out.update({name: _NO_MAP for name in without_map})
        num_images = len(counted.counts) + len(counted.left_out)
        if not counted.counts:
            print(f"error: none of {num_images} images could be used", file=sys.stderr)
            return 1
        scores = boundary_scores(np.stack([c.matches for c in counted.counts.values()]))
        human = operating_point(sum(c.human for c in counted.counts.values()))
        human = human if human.f_measure else None  # 0 if every image has a single annotator
        if args.plot:
            name = Path(args.pred).resolve().name
            content = precision_recall_plot(scores, human, name, len(counted.counts))
            with replacing_file(Path(args.plot)) as file:
                file.write(content)
        if args.json:
            record = _record(args, argv, counted, scores, human, time.monotonic() - start)
            with replacing_file(Path(args.json)) as file:
                file.write(json.dumps(record, indent=1).encode() + b"\n")
        # Last, because a reader of the pipe may close it.
        _print_report(list(counted.counts), scores, human, num_images)
        for path in filter(None, (args.plot, args.json)):
            print(path)
    return 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Runs the boundary benchmark of BSDS500: ODS, OIS and AP."
    )
    parser.add_argument(
        "--pred",
        required=True,
        metavar="DIR",
        help="folder of contour maps NAME.png, NAME.npy, or ucm2 in NAME.mat",
    )
    parser.add_argument(
        "--gt",
        required=True,
        metavar="DIR",
        help="folder of human boundaries NAME.mat, as in BSDS500's groundTruth",
    )
    parser.add_argument(
        "--thresholds",
        type=positive,
        default=99,
        metavar="N",
        help="number of thresholds, evenly spaced inside (0, 1) (99)",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the scores to this file, and counts beside it to continue from",
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="write the precision-recall plot to this .png"
    )
    cores = usable_cores()
    parser.add_argument(
        "--workers",
        type=positive,
        default=cores,
        metavar="N",
        help=f"number of processes (all cores: {cores})",
    )
    return parser.parse_args(argv)


def _find_images(args: argparse.Namespace) -> Tuple[List[BoundaryImage], List[str]]:
    """Returns the images with a map and ground truth, and the names of those without a map."""
    for flag, folder in (("--pred", args.pred), ("--gt", args.gt)):
        if not Path(folder).is_dir():
            raise ValueError(f"{flag} {folder}: no such folder")
    images, without_map, without_truth = find_boundary_images(
        Path(args.pred), Path(args.gt), BOUNDARY_MAP_SUFFIXES
    )
    if not images:
        raise ValueError(
            f"--gt {args.gt} has {len(without_map)} .mat files, and --pred {args.pred} has no "
            f"{', '.join(BOUNDARY_MAP_SUFFIXES)} with the same names, but {len(without_truth)} "
            "with others"
        )
    if without_truth:
        print(f"note: no ground truth for {_names(without_truth)}, not evaluated", file=sys.stderr)
    if without_map:
        print(f"skipped {_names(without_map)}: {_NO_MAP}", file=sys.stderr)
    return images, without_map


def _check_targets(args: argparse.Namespace) -> None:
    """Checks before the evaluation that its files can be written and replace only its own files."""
    for flag, file, suffix, is_own in (
        ("--json", args.json, ".json", _is_own_json),
        ("--plot", args.plot, ".png", _is_own_plot),
    ):
        if not file:
            continue
        path = Path(file)
        if path.suffix.lower() != suffix:
            raise ValueError(f"{flag} is {file}; allowed: a file with the suffix {suffix}")
        if path.exists() and not is_own(path):
            raise ValueError(
                f"{flag} {file} was not written by this command; it is not overwritten"
            )
        path.parent.mkdir(parents=True, exist_ok=True)


def _is_own_json(path: Path) -> bool:
    try:
        content = parse_json(path.read_bytes(), path)
    except (ValueError, OSError):
        return False
    return isinstance(content, dict) and content.get("benchmark") == BENCHMARK


def _is_own_plot(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == SOFTWARE
    except (OSError, SyntaxError, ValueError):
        return False


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _store(args: argparse.Namespace) -> Optional[CountStore]:
    if not args.json:
        return None
    path = Path(args.json)
    return CountStore(path.with_name(f"{path.stem}_counts"), args.thresholds)


def _count(
    images: Sequence[BoundaryImage], args: argparse.Namespace, store: Optional[CountStore]
) -> _Counted:
    counts, left_out, missing, paths = {}, {}, [], {}

    def leave_out(image: BoundaryImage, reason: str) -> None:
        left_out[image.name] = reason
        tqdm.write(f"skipped {image.name}: {reason}", file=sys.stderr)

    for image in images:
        try:
            paths[image] = store.path(image) if store else None
        except (OSError, ValueError) as error:
            leave_out(image, one_line(error))
            continue
        stored = store.load(paths[image]) if store else None
        if stored:
            counts[image.name] = stored
        else:
            missing.append(image)
    if counts:
        print(f"{len(counts)} of {len(images)} images are already counted: {store.folder}")
    # Closing the generator ends its processes, also after an interruption.
    with closing(count_images(missing, args.thresholds, args.workers)) as results:
        bar = tqdm(results, total=len(missing), desc="images", unit="image", disable=not missing)
        for image, result in bar:
            if isinstance(result, str):
                leave_out(image, result)
            elif store and store.path(image) != paths[image]:
                leave_out(image, "its files have changed during the evaluation")
            else:
                counts[image.name] = result
                if store:
                    store.save(paths[image], result)
    new = sum(image.name in counts for image in missing)
    return _Counted(dict(sorted(counts.items())), left_out, new)


def _print_report(
    names: Sequence[str], scores: BoundaryScores, human: Optional[OperatingPoint], num_images: int
) -> None:
    headers = ["image", "threshold", "recall", "precision", "F"]
    rows = [[name, *point] for name, point in zip(names, scores.images)]
    formats = ("", ".3f", ".4f", ".4f", ".4f")
    print(tabulate(rows, headers=headers, floatfmt=formats, disable_numparse=[0]))
    rows = [["ODS", *scores.ods], ["OIS", *scores.ois], ["AP", None, None, None, scores.ap]]
    if human:
        rows.append(["each annotator against the others", *human])
    headers[0] = f"{len(names)} of {num_images} images"
    print()
    print(tabulate(rows, headers=headers, floatfmt=formats, missingval="", disable_numparse=[0]))


def _record(
    args: argparse.Namespace,
    argv: Optional[List[str]],
    counted: _Counted,
    scores: BoundaryScores,
    human: Optional[OperatingPoint],
    seconds: float,
) -> Dict[str, Any]:
    """Returns the content of the JSON file."""
    core_seconds = [c.seconds for c in counted.counts.values()]
    curve_counts = sum(c.matches for c in counted.counts.values())
    return {
        "benchmark": BENCHMARK,
        "command": command_line("tools/eval_bsds.py", argv),
        "settings": {
            "thresholds": args.thresholds,
            "tolerance": TOLERANCE,
            "workers": args.workers,
        },
        "commit": current_commit(),
        "hardware": f"{platform.machine()} CPU, {usable_cores()} cores",
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "images_counted_in_these_seconds": counted.new,
        "core_seconds_per_image": round(sum(core_seconds) / len(core_seconds), 3),
        "images_used": len(counted.counts),
        "images_in_ground_truth": len(counted.counts) + len(counted.left_out),
        "left_out": dict(sorted(counted.left_out.items())),
        "results": {
            "ODS": _point(scores.ods),
            "OIS": _point(scores.ois),
            "AP": round(scores.ap, 6),
            "human": _point(human) if human else None,
        },
        "per_threshold": [
            {**_point(point), **dict(zip(COUNTS, row.tolist()))}
            for point, row in zip(scores.curve, curve_counts)
        ],
        "per_image": {name: _point(point) for name, point in zip(counted.counts, scores.images)},
    }


def _point(point: OperatingPoint) -> Dict[str, float]:
    return {name: round(v, 6) for name, v in point._asdict().items() if v is not None}
