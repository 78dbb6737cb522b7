#!/usr/bin/env python3
"""Trains a refiner on the predictions of a DeepLab for VOC pictures, and compares it with a CRF.

usage: python dev/voc_refine.py train | evaluate ROW [ROW ...] [--data ../shared/data/voc2012_val]

It needs the predictions of dev/voc_base.py in output/voc_base/mnv2 and output/voc_base/dm05. The
pictures of train.txt are for training, and those of test.txt for the evaluation. Records are stored
in results/refine/.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Dict, List

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.training_runs import cpu_seconds_of  # noqa: E402

RESULTS = ROOT / "results" / "refine"
CONFIG = "configs/spn/refiner_voc.yaml"
OUTPUT = "output/voc_refine"
PARTS = ("train", "val")
# The second base has half of the channels. The refiner is never trained on its predictions.
BASES = ("mnv2", "dm05")
_WEIGHTS = f"{OUTPUT}/train/model_final.pth"
ROWS: Dict[str, List[str]] = {
    # No propagation leaves the predictions as they are.
    "base": ["MODEL.WEIGHTS", _WEIGHTS, "MODEL.SPN.NUM_UNITS", "0"],
    "crf": ["MODEL.WEIGHTS", _WEIGHTS, "MODEL.SPN.NUM_UNITS", "0", "TEST.DENSE_CRF", "True"],
    "spn": ["MODEL.WEIGHTS", _WEIGHTS],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    train = commands.add_parser("train")
    train.add_argument("--iterations", type=int, default=2000)
    evaluate = commands.add_parser("evaluate")
    rows = [f"{row}_{base}" for row in ROWS for base in BASES]
    evaluate.add_argument("rows", nargs="+", choices=rows)
    for command in (train, evaluate):
        command.add_argument("--data", default="../shared/data/voc2012_val")
    args = parser.parse_args()
    for part, names in (("train", "train.txt"), ("val", "test.txt")):
        link(Path(args.data).resolve(), ROOT / OUTPUT / part, names)
    if args.what == "train":
        run("train", ["SOLVER.MAX_ITER", str(args.iterations)], BASES[0])
        return
    for name in args.rows:
        row, base = name.rsplit("_", 1)
        run(name, ["--eval-only", *ROWS[row]], base)


def link(data: Path, folder: Path, names: str) -> None:
    """Creates folders with links to the pictures that a file names, and to their label maps."""
    for kind, source, suffix in (
        ("images", "JPEGImages", ".jpg"),
        ("labels", "SegmentationClass", ".png"),
    ):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name in (data / names).read_text().split():
            target = folder / kind / (name + suffix)
            if not target.exists():
                os.symlink(data / source / target.name, target)


def run(name: str, opts: List[str], base: str) -> None:
    """Runs tools/train_net.py and stores its record."""
    folder = ROOT / OUTPUT / name
    if name != "train":
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    sets = [f"voc_base_{part}={OUTPUT}/{part}/images:{OUTPUT}/{part}/labels" for part in PARTS]
    coarse = [f"voc_base_{part}=output/voc_base/{base}" for part in PARTS]
    flags = [opt for opt in opts if opt.startswith("--")]
    command = ["tools/train_net.py", *flags, "--config-file", CONFIG]
    command += [opt for opt in opts if not opt.startswith("--")]
    command += ["DATASETS.SEM_SEG_DIRS", json.dumps(sets), "DATASETS.COARSE_DIRS"]
    command += [json.dumps(coarse), "OUTPUT_DIR", f"{OUTPUT}/{name}"]
    if cpu_seconds_of(command, folder / "output.txt") is None:
        sys.exit(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "result.json", RESULTS / f"voc_{name}.json")


if __name__ == "__main__":
    main()
