"""The command line of tools/split_coco.py: one COCO-format file into two, by images."""

import argparse
import json
import random
from pathlib import Path
from typing import List, Optional

from rpe_d2.data.datasets.coco_jsons import read_coco_json

from .errors import one_line_errors


def main(argv: Optional[List[str]] = None) -> int:
    """Splits the images of a COCO-format file at random, the same way for the same seed.

    Writes ``NAME_fit.json`` and ``NAME_held_out.json`` with all categories each. Nothing is overwritten.

    Returns:
        Exit status 0; 2 where an argument or a file is at fault, in one line.
    """
    parser = argparse.ArgumentParser(
        prog="split_coco.py",
        description="Splits a COCO-format file by images: to choose settings on the held-out part.",
    )
    parser.add_argument("json", metavar="FILE.json")
    parser.add_argument(
        "--fraction", type=float, default=0.2, help="of the images to hold out, 0 to 1 (0.2)"
    )
    parser.add_argument("--seed", type=int, default=1, help="(1)")
    parser.add_argument("--output", metavar="DIR", help="default: beside the file")
    args = parser.parse_args(argv)
    with one_line_errors():
        source = Path(args.json)
        content = read_coco_json(source.name, str(source))
        images = sorted(content["images"], key=lambda image: image["id"])
        num_held_out = round(len(images) * args.fraction)
        if not 0 < num_held_out < len(images):
            raise ValueError(
                f"--fraction {args.fraction} holds out {num_held_out} of {len(images)} images; "
                "allowed: at least one on either side"
            )
        held_out = {image["id"] for image in random.Random(args.seed).sample(images, num_held_out)}
        folder = Path(args.output) if args.output else source.parent
        parts = {
            folder / f"{source.stem}_{name}.json": _part(content, held_out, inside)
            for name, inside in (("fit", False), ("held_out", True))
        }
        taken = [str(path) for path in parts if path.exists()]
        if taken:
            raise ValueError(f"{', '.join(taken)} exists already; it is not overwritten")
        folder.mkdir(parents=True, exist_ok=True)
        for path, part in parts.items():
            with open(path, "x") as file:
                json.dump(part, file)
            print(f"{path}: {len(part['images'])} images, {len(part['annotations'])} annotations")
    return 0


def _part(content: dict, held_out: set, inside: bool) -> dict:
    return {
        **content,
        "images": [i for i in content["images"] if (i["id"] in held_out) == inside],
        "annotations": [a for a in content["annotations"] if (a["image_id"] in held_out) == inside],
    }
