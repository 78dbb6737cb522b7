"""The command line of tools/eval_bsds.py: the boundary benchmark of BSDS500 on files."""

import argparse
import json
import platform
import shlex
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
from rpe_d2.visualization import precision_recall_plot
from rpe_d2.visualization.precision_recall import SOFTWARE

BENCHMARK = "bsds_boundaries"
_INTERRUPTED = 130
# Names that a line lists before it says "and so on".
_MOST_NAMES = 5
_NO_MAP = "no boundary map"


class _Counted(NamedTuple):
    """Counts of all images by name, why others have none, and how many were counted in this run."""

    counts: Dict[str, ImageCounts]
    left_out: Dict[str, str]
    new: int


def main(argv: Optional[List[str]] = None) -> int:
    """Evaluates a folder of boundary maps against BSDS500's human boundaries.

    Prints a table of the images and the scores, 0-1 as the benchmark states them. With ``--json
    FILE`` they also go into that file, and the counts of each image into the folder ``NAME_counts``
    beside it as soon as they are there: called again, also after it was killed, the tool counts
    only what is missing or has changed. ``--json`` and ``--plot`` replace files of this tool only.
    An image whose files are missing or at fault is left out, with a line that says why, and the
    report says how many were used.

    The human point is computed from the annotators of the same images: each one's boundaries,
        thinned, are taken as a
    prediction and matched with all the others'.

    Returns:
        Exit status: 0, 1 where no image could be used, 2 where an argument is at fault, in one
            line, 130 after Ctrl-C.
    """
    args = _parse(argv)
    arguments = sys.argv[1:] if argv is None else argv
    start = time.time()
    with one_line_errors():
        images, without_map = _find_images(args)
        _check_targets(args)
        store = _store(args)
        try:
            counted = _count(images, args, store)
        except KeyboardInterrupt:
            kept = f"the same command goes on from {store.folder}" if store else "nothing is kept"
            print(f"interrupted; {kept}", file=sys.stderr)
            return _INTERRUPTED
        counted.left_out.update({name: _NO_MAP for name in without_map})
        num_images = len(counted.counts) + len(counted.left_out)
        if not counted.counts:
            print(f"error: none of {num_images} images could be used", file=sys.stderr)
            return 1
        scores = boundary_scores(np.stack([c.matches for c in counted.counts.values()]))
        human = operating_point(sum(c.human for c in counted.counts.values()))
        human = human if human.f_measure else None  # one annotator an image has no others
        if args.plot:
            name = Path(args.pred).resolve().name
            content = precision_recall_plot(scores, human, name, len(counted.counts))
            with replacing_file(Path(args.plot)) as file:
                file.write(content)
        if args.json:
            record = _record(args, arguments, counted, scores, human, time.time() - start)
            with replacing_file(Path(args.json)) as file:
                file.write(json.dumps(record, indent=1).encode() + b"\n")
        # Last: whoever reads along may stop reading.
        _print_report(list(counted.counts), scores, human, num_images)
        for path in filter(None, (args.plot, args.json)):
            print(path)
    return 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="eval_bsds.py", description="The boundary benchmark of BSDS500: ODS, OIS, AP."
    )
    parser.add_argument(
        "--pred",
        required=True,
        metavar="DIR",
        help="boundary maps NAME.png, NAME.npy, or ucm2 in NAME.mat",
    )
    parser.add_argument(
        "--gt",
        required=True,
        metavar="DIR",
        help="human boundaries NAME.mat, as in BSDS500's groundTruth",
    )
    parser.add_argument(
        "--thresholds",
        type=_positive,
        default=99,
        metavar="N",
        help="evenly spaced inside (0, 1) (99)",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the scores here, and counts beside it, to go on from"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="write the precision-recall plot here, a .png"
    )
    cores = usable_cores()
    parser.add_argument(
        "--workers",
        type=_positive,
        default=cores,
        metavar="N",
        help=f"processes (all cores: {cores})",
    )
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}; allowed: 1 or more")
    return number


def _find_images(args: argparse.Namespace) -> Tuple[List[BoundaryImage], List[str]]:
    """Images with a boundary map and ground truth, and the names of those with ground truth alone."""
    for flag, folder in (("--pred", args.pred), ("--gt", args.gt)):
        if not Path(folder).is_dir():
            raise ValueError(f"{flag} {folder}: no such folder")
    images, without_map, without_truth = find_boundary_images(
        Path(args.pred), Path(args.gt), BOUNDARY_MAP_SUFFIXES
    )
    if not images:
        raise ValueError(
            f"--gt {args.gt} has {len(without_map)} .mat files, and --pred {args.pred} no "
            f"{', '.join(BOUNDARY_MAP_SUFFIXES)} of the same name, but {len(without_truth)} of others"
        )
    if without_truth:
        print(f"note: no ground truth for {_names(without_truth)}, not evaluated", file=sys.stderr)
    if without_map:
        print(f"skipped {_names(without_map)}: {_NO_MAP}", file=sys.stderr)
    return images, without_map


def _check_targets(args: argparse.Namespace) -> None:
    """Before hours of work: what is to be written can be, and replaces nothing but this tool's own files."""
    for flag, file, suffix, is_own in (
        ("--json", args.json, ".json", _is_own_json),
        ("--plot", args.plot, ".png", _is_own_plot),
    ):
        if not file:
            continue
        path = Path(file)
        if path.suffix.lower() != suffix:
            raise ValueError(f"{flag} {file}: allowed: a file with the ending {suffix}")
        if path.exists() and not is_own(path):
            raise ValueError(f"{flag} {file} was not written by this tool; it is not overwritten")
        path.parent.mkdir(parents=True, exist_ok=True)


def _is_own_json(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
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
        except OSError as error:
            leave_out(image, one_line(error))
            continue
        found = store.load(paths[image]) if store else None
        if found:
            counts[image.name] = found
        else:
            missing.append(image)
    if counts:
        print(f"{len(counts)} of {len(images)} images are counted already: {store.folder}")
    # Closed, and with it the processes, wherever an interruption strikes.
    with closing(count_images(missing, args.thresholds, args.workers)) as results:
        bar = tqdm(results, total=len(missing), desc="images", unit="image", disable=not missing)
        for image, found in bar:
            if isinstance(found, str):
                leave_out(image, found)
            elif store and store.path(image) != paths[image]:
                leave_out(image, "its files have changed while they were evaluated")
            else:
                counts[image.name] = found
                if store:
                    store.save(paths[image], found)
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
    arguments: Sequence[str],
    counted: _Counted,
    scores: BoundaryScores,
    human: Optional[OperatingPoint],
    seconds: float,
) -> Dict[str, Any]:
    """Content of the JSON file."""
    core_seconds = [c.seconds for c in counted.counts.values()]
    curve_counts = sum(c.matches for c in counted.counts.values())
    return {
        "benchmark": BENCHMARK,
        "command": shlex.join(["tools/eval_bsds.py", *arguments]),
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
