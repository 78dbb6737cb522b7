"""The command line of ``rpe-d2 prepare-voc`` and tools/prepare_voc.py."""

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List, Optional

from tqdm import tqdm

from rpe_d2.data import VOCSplit, find_voc_splits
from rpe_d2.utils.errors import one_line_errors

_KINDS = {"images": "images", "object_maps": "object maps", "class_maps": "class maps"}


def main(argv: Optional[List[str]] = None) -> int:
    """Reports which VOC 2012 and SBD files are present.

    The files are the images, object maps and class maps that the image lists of the two data sets
    name. Prints for each list the number of files that exist and the first one that is missing, and
    the names of the data sets that can be used with DATASETS.VOC. Nothing is downloaded, changed or
    decoded.

    Returns:
        Exit status: 0 if at least one data set is complete, or 2 with a one-line error if there is
        none or if an argument is wrong.
    """
    parser = argparse.ArgumentParser(
        description="Reports which files of PASCAL VOC 2012 and SBD are present and which are "
        "missing. Downloads nothing."
    )
    parser.add_argument(
        "root",
        metavar="ROOT",
        help="folder with VOCdevkit/VOC2012 (or VOC2012 itself), and benchmark_RELEASE/dataset "
        "or sbd",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the report to this new file")
    args = parser.parse_args(argv)
    with one_line_errors():
        output = Path(args.json) if args.json else None
        if output and output.exists():
            raise ValueError(f"--json {output} exists already; it is not overwritten")
        report = examine(args.root)
        for name, split in report["splits"].items():
            print(_summary(name, split))
        available = ", ".join(report["available"]) or "no data set"
        print(f"DATASETS.VOC {args.root} provides: {available}")
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
            with open(output, "x") as file:
                json.dump(report, file, indent=1)
        if not report["available"]:
            missing = [line for split in report["splits"].values() for line in _missing(split)]
            raise ValueError(f"{args.root} holds no complete data set; {missing[0]}")
    return 0


def examine(root: str) -> Dict[str, Any]:
    """Counts the files of VOC 2012 and SBD in a folder.

    Returns:
        A dict with ``root``, ``splits`` and ``available``, the names of the complete data sets.
        Each split has ``list``, which is None or says which image list is missing or empty, and
        counts for "images", "object_maps" and "class_maps": the numbers of files that are
        ``listed``, ``found`` and ``missing``, and the path ``first_missing``.

    Raises:
        FileNotFoundError: If there is neither VOC 2012 nor SBD.
    """
    splits, available = {}, []
    for split in find_voc_splits(root):
        counts = splits[split.name] = _count_files(split)
        if counts["list"]:
            continue
        complete = {kind for kind in _KINDS if not counts[kind]["missing"]}
        needed = {"images", "object_maps"}
        if split.instances_need_class_maps:
            needed.add("class_maps")
        if needed <= complete:
            available.append(split.name)
        if {"images", "class_maps"} <= complete:
            available.append(f"{split.name}_sem_seg")
    return {"root": str(root), "splits": splits, "available": available}


def _count_files(split: VOCSplit) -> Dict[str, Any]:
    try:
        names = split.names()
    except FileNotFoundError as error:
        return {"list": str(error).partition(": ")[2]}
    if not names:
        return {"list": f"there is no image in {' and '.join(map(str, split.lists))}"}
    files = {"images": split.image, "object_maps": split.object_map, "class_maps": split.class_map}
    missing: Dict[str, List[str]] = {kind: [] for kind in files}
    for name in tqdm(names, desc=split.name, unit="image"):
        for kind, path_of in files.items():
            path = path_of(name)
            if not (path.is_file() and path.stat().st_size):
                missing[kind].append(str(path))
    return {
        "list": None,
        **{
            kind: {
                "listed": len(names),
                "found": len(names) - len(paths),
                "missing": len(paths),
                "first_missing": paths[0] if paths else None,
            }
            for kind, paths in missing.items()
        },
    }


def _summary(name: str, split: Dict[str, Any]) -> str:
    if split["list"]:
        return f"{name}: {split['list']}"
    counts = [f"{split[kind]['found']} {text}" for kind, text in _KINDS.items()]
    lines = [f"{name}: {split['images']['listed']} images listed; found {', '.join(counts)}"]
    return "\n  ".join(lines + _missing(split))


def _missing(split: Dict[str, Any]) -> List[str]:
    """Returns a line for each kind of file with missing files."""
    if split["list"]:
        return [split["list"]]
    return [
        f"{split[kind]['missing']} {text} missing or empty, first {split[kind]['first_missing']}"
        for kind, text in _KINDS.items()
        if split[kind]["missing"]
    ]
