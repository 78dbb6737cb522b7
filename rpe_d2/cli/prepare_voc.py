"""The command line of tools/prepare_voc.py: what is there of PASCAL VOC 2012 and SBD."""

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List, Optional

from tqdm import tqdm

from rpe_d2.data import VOCSplit, find_voc_splits
from rpe_d2.utils.errors import one_line_errors

_KINDS = {"images": "images", "object_maps": "object maps", "class_maps": "class maps"}


def main(argv: Optional[List[str]] = None) -> int:
    """Looks which images, object maps and class maps exist of those that the lists of VOC 2012 and SBD name.

    Prints for each list what is there and the first file that is missing, and the data sets that can be used with
    DATASETS.VOC. Nothing is downloaded, changed or decoded.

    Returns:
        Exit status 0 if there is a complete data set; 2 if there is none or an argument is at fault, in one line.
    """
    parser = argparse.ArgumentParser(
        prog="prepare_voc.py",
        description="Says what is there of PASCAL VOC 2012 and SBD, and what is missing; downloads nothing.",
    )
    parser.add_argument(
        "root",
        metavar="ROOT",
        help="folder with VOCdevkit/VOC2012 (or VOC2012 itself), and benchmark_RELEASE/dataset or sbd",
    )
    parser.add_argument("--json", metavar="FILE", help="also write what was found into a new file")
    args = parser.parse_args(argv)
    with one_line_errors():
        output = Path(args.json) if args.json else None
        if output and output.exists():
            raise ValueError(f"--json {output} exists already; it is not overwritten")
        report = examine(args.root)
        for name, split in report["splits"].items():
            print(_described(name, split))
        print("DATASETS.VOC", args.root, "brings:", ", ".join(report["available"]) or "nothing")
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
            with open(output, "x") as file:
                json.dump(report, file, indent=1)
        if not report["available"]:
            lacks = [line for split in report["splits"].values() for line in _missing(split)]
            raise ValueError(f"{args.root} holds no complete data set; {lacks[0]}")
    return 0


def examine(root: str) -> Dict[str, Any]:
    """What is there below a folder.

    Returns:
        ``root``; ``splits``: by name ``list`` (None, or the list that is missing or empty) and, for "images",
        "object_maps" and "class_maps", how many are ``listed``, ``found`` and ``missing`` and the ``first_missing``;
        ``available``: names of the data sets that are complete.

    Raises:
        FileNotFoundError: there is neither VOC 2012 nor SBD.
    """
    splits, available = {}, []
    for split in find_voc_splits(root):
        found = splits[split.name] = _examined(split)
        if found["list"]:
            continue
        complete = {kind for kind in _KINDS if not found[kind]["missing"]}
        needed = {"images", "object_maps"}
        if split.instances_need_class_maps:
            needed.add("class_maps")
        if needed <= complete:
            available.append(split.name)
        if {"images", "class_maps"} <= complete:
            available.append(f"{split.name}_sem_seg")
    return {"root": str(root), "splits": splits, "available": available}


def _examined(split: VOCSplit) -> Dict[str, Any]:
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


def _described(name: str, split: Dict[str, Any]) -> str:
    if split["list"]:
        return f"{name}: {split['list']}"
    counts = [f"{split[kind]['found']} {text}" for kind, text in _KINDS.items()]
    lines = [f"{name}: {split['images']['listed']} images listed; found {', '.join(counts)}"]
    return "\n  ".join(lines + _missing(split))


def _missing(split: Dict[str, Any]) -> List[str]:
    """A line for each kind of files of which some are missing."""
    if split["list"]:
        return [split["list"]]
    return [
        f"{split[kind]['missing']} {text} missing or empty, first {split[kind]['first_missing']}"
        for kind, text in _KINDS.items()
        if split[kind]["missing"]
    ]
