#!/usr/bin/env python3
"""Trains a refiner on the predictions of a DeepLab for VOC pictures, and compares it with a CRF.

usage: python dev/voc_refine.py train | accept | evaluate ROW [ROW ...]
    [--data ../shared/data/voc2012_val]

It needs the predictions of dev/voc_base.py in output/voc_base/mnv2 and output/voc_base/dm05. The
pictures of train.txt are for training. On every seventh of them, which the refiner has not seen,
"accept" trains the rule by which changes are made. The pictures of test.txt are for the evaluation.
Records are stored in results/refine/.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.refine_acceptance import load_refiner, save, train_rule  # noqa: E402
from dev.training_runs import cpu_seconds_of  # noqa: E402
from rpe_d2.refinement.acceptance import change_regions, region_features  # noqa: E402
from rpe_d2.refinement.proposals import propose_probabilities  # noqa: E402
from rpe_d2.refinement.refine import LabelRefiner  # noqa: E402
from rpe_d2.utils.images import ImageReader  # noqa: E402
from rpe_d2.utils.label_maps import read_label_map  # noqa: E402
from rpe_d2.utils.probability_maps import read_probabilities  # noqa: E402

RESULTS = ROOT / "results" / "refine"
CONFIG = "configs/spn/refiner_voc.yaml"
OUTPUT = "output/voc_refine"
PARTS = ("train", "val")
# The second base has half of the channels. The refiner is never trained on its predictions.
BASES = ("mnv2", "dm05")
_WEIGHTS = f"{OUTPUT}/train/model_best.pth"
_HELD_OUT = 7  # one picture of so many is not trained on
_IGNORED = 255
_MAX_SHIFT = 24.0  # as in the configuration
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
    accept = commands.add_parser("accept")
    evaluate = commands.add_parser("evaluate")
    rows = [f"{row}_{base}" for row in ROWS for base in BASES]
    evaluate.add_argument("rows", nargs="+", choices=rows)
    for command in (train, accept, evaluate):
        command.add_argument("--data", default="../shared/data/voc2012_val")
    args = parser.parse_args()
    data = Path(args.data).resolve()
    names = {part: (data / f"{part}.txt").read_text().split() for part in ("train", "test")}
    held_out = names["train"][::_HELD_OUT]
    link(data, ROOT / OUTPUT / "train", [n for n in names["train"] if n not in set(held_out)])
    link(data, ROOT / OUTPUT / "val", names["test"])
    if args.what == "train":
        run("train", ["SOLVER.MAX_ITER", str(args.iterations)], BASES[0])
        return
    if args.what == "accept":
        learn_acceptance(data, held_out)
        return
    for name in args.rows:
        row, base = name.rsplit("_", 1)
        run(name, ["--eval-only", *ROWS[row]], base)


def link(data: Path, folder: Path, names: List[str]) -> None:
    """Creates folders with links to pictures and to their label maps."""
    for kind, source, suffix in (
        ("images", "JPEGImages", ".jpg"),
        ("labels", "SegmentationClass", ".png"),
    ):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name in names:
            target = folder / kind / (name + suffix)
            if not target.exists():
                os.symlink(data / source / target.name, target)


def learn_acceptance(data: Path, names: List[str]) -> None:
    """Trains the rule of acceptance on pictures that the refiner has not seen."""
    folder = ROOT / OUTPUT / "train"
    refiner = load_refiner(folder)
    parts = [regions_of(refiner, data, name) for name in tqdm(names, desc="pictures", disable=None)]
    features, gains = (np.concatenate(part) for part in zip(*parts))
    train_rule(refiner.network, features, gains)
    save(refiner.network, folder)


def regions_of(refiner: LabelRefiner, data: Path, name: str) -> Tuple[np.ndarray, np.ndarray]:
    """Returns the features (R, F) of proposed regions, and how many more pixels are right (R,)."""
    image = ImageReader("RGB", "percentile:0.1,99.8")(str(data / "JPEGImages" / f"{name}.jpg"))
    target = read_label_map(str(data / "SegmentationClass" / f"{name}.png"))
    maps = read_probabilities(ROOT / "output/voc_base" / BASES[0] / f"{name}.npz", target.shape)
    given = maps.argmax(axis=0)
    proposal = propose_probabilities(refiner._run, image, maps, _MAX_SHIFT)
    regions = change_regions(given, proposal.labels)
    gain = (proposal.labels == target).astype(float) - (given == target)
    gain[target == _IGNORED] = 0
    features = region_features(given, proposal, regions, -1)
    return features, np.bincount(regions.ravel(), gain.ravel())[1:]


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
