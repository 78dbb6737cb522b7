"""The command line of ``rpe-d2 split-coco`` and tools/split_coco.py."""

import argparse
import json
import random
from pathlib import Path
from typing import Dict, List, Optional, Set

from rpe_d2.data.datasets.coco_jsons import read_coco_json
from rpe_d2.utils.errors import one_line_errors


def main(argv: Optional[List[str]] = None) -> int:
    """Splits the images of a COCO-format file at random, or selects the first images.

    Writes ``NAME_fit.json`` and ``NAME_held_out.json``. With ``--first N``, writes
    ``NAME_first_N.json`` with the images of the N lowest ids instead; proposals are usually
    evaluated on the first 5,000 of COCO's val2014. Every file has all categories. The same seed
    gives the same split. Nothing is overwritten.

    Returns:
        Exit status: 0, or 2 with a one-line error if an argument or a file is wrong.
    """
    parser = argparse.ArgumentParser(
        description="Splits a COCO-format file by images, for example to choose settings on the "
        "held-out part, or selects its first images."
    )
    parser.add_argument("json", metavar="FILE.json")
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--fraction", type=float, default=0.2, help="share of the held-out images, 0 to 1 (0.2)"
    )
    way.add_argument(
        "--first",
        type=int,
        metavar="N",
        help="write one file with the images of the N lowest ids instead; proposals are usually "
        "evaluated on 5000 images of val2014",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the split (1)")
    parser.add_argument("--output", metavar="DIR", help="default: the folder of the file")
    args = parser.parse_args(argv)
    with one_line_errors():
        source = Path(args.json)
        content = read_coco_json(source.name, str(source))
        ids = sorted(image["id"] for image in content["images"])
        if args.first is None:
            parts = _held_out(ids, args.fraction, args.seed)
        else:
            parts = _first(ids, args.first)
        folder = Path(args.output) if args.output else source.parent
        files = {folder / f"{source.stem}_{name}.json": part for name, part in parts.items()}
        taken = [str(path) for path in files if path.exists()]
        if taken:
            raise ValueError(f"{', '.join(taken)} exists already; it is not overwritten")
        folder.mkdir(parents=True, exist_ok=True)
        for path, part in files.items():
            part = _only(content, part)
            with open(path, "x") as file:
                json.dump(part, file)
            print(f"{path}: {len(part['images'])} images, {len(part['annotations'])} annotations")
    return 0


def _held_out(ids: List[int], fraction: float, seed: int) -> Dict[str, Set[int]]:
    """Returns the image ids of the parts "fit" and "held_out"."""
    num_held_out = round(len(ids) * fraction)
    if not 0 < num_held_out < len(ids):
        raise ValueError(
            f"--fraction {fraction} holds out {num_held_out} of {len(ids)} images; "
            "allowed: at least one image in each part"
        )
    held_out = set(random.Random(seed).sample(ids, num_held_out))
    return {"fit": set(ids) - held_out, "held_out": held_out}


def _first(ids: List[int], count: int) -> Dict[str, Set[int]]:
    if not 1 <= count <= len(ids):
        raise ValueError(f"--first is {count}; allowed: 1 to {len(ids)}, the images of the file")
    return {f"first_{count}": set(ids[:count])}


def _only(content: dict, ids: Set[int]) -> dict:
    """Returns the content with only the given images and their annotations, in the same order."""
    return {
        **content,
        "images": [image for image in content["images"] if image["id"] in ids],
        "annotations": [a for a in content["annotations"] if a["image_id"] in ids],
    }
