#!/usr/bin/env python3
"""Trains the scene labeling networks on Stanford Background; the records go to results/scene/.

usage: python dev/scene_runs.py ROW [ROW ...] [--seeds 1] [--jobs 1] [--data ../shared/data]

Rows are multi_scale, rcnn2, efficientnet_0 and efficientnet_1 (without and with the pair loss).
Each takes at most an hour of one CPU core. Records that exist are kept, and weights remain in
output/scene/. The multi-scale network is evaluated again with the vote of superpixels, and the
holes in the label maps of EfficientNet are counted.
"""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.training_runs import cpu_seconds_of, parse_runs  # noqa: E402

RESULTS = ROOT / "results" / "scene"
OUTPUT = ROOT / "output" / "scene"
CLASSES = ("sky", "tree", "road", "grass", "water", "building", "mountain", "foreground object")


class Run(NamedTuple):
    """A training, and what is measured with its weights afterwards.

    Attributes:
        config: name of the configuration.
        opts: its overrides.
        evaluations: overrides of further evaluations, by the suffixes of their records.
        holes: whether the holes in the label maps are counted.
    """

    config: str
    opts: str = ""
    evaluations: Dict[str, str] = {}
    holes: bool = False


PAIR_LOSS = "MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT"
EFFICIENTNET = "semantic/embedding_stanford_efficientnet_lite0"
# On a CPU with AMX, a step takes a third to two thirds of the time.
BFLOAT16 = "SOLVER.AMP.ENABLED True SOLVER.AMP.PRECISION bfloat16"
SUPERPIXELS = {"superpixels": "TEST.SUPERPIXELS.ENABLED True"}
RUNS: Dict[str, Run] = {
    "multi_scale": Run(
        "paper/multi_scale_stanford",
        f"MODEL.SEM_SEG_HEAD.CLASS_BALANCE 0.5 {BFLOAT16}",
        SUPERPIXELS,
    ),
    "rcnn2": Run("paper/rcnn2_stanford", BFLOAT16),
    "efficientnet_0": Run(EFFICIENTNET, f"{PAIR_LOSS} 0.0", holes=True),
    "efficientnet_1": Run(EFFICIENTNET, f"{PAIR_LOSS} 1.0", holes=True),
}


def main() -> None:
    args = parse_runs(__doc__.splitlines()[0], RUNS, seeds=[1], jobs=1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [
            pool.submit(run, name, seed, args.data) for name in args.groups for seed in args.seeds
        ]
    sys.exit(0 if all(one.result() for one in runs) else 1)


def stanford_opts(data: str) -> List[str]:
    """Returns the override that names the data, with a file of class names in output/scene/."""
    classes = OUTPUT / "classes.txt"
    classes.write_text("\n".join(CLASSES) + "\n")
    folder = f"{data}/stanford_background"
    sets = [
        f"stanford_{part}={folder}/images/{part}:{folder}/labels/{part}:{classes.relative_to(ROOT)}"
        for part in ("train", "test")
    ]
    return ["DATASETS.SEM_SEG_DIRS", json.dumps(sets)]


def run(name: str, seed: int, data: str) -> bool:
    """Trains a network with one seed and measures its weights; returns whether this succeeded."""
    one = RUNS[name]
    folder = OUTPUT / f"{name}_{seed}"
    record = RESULTS / f"{name}_{seed}.json"
    config = f"configs/{one.config}.yaml"
    opts = [*one.opts.split(), *stanford_opts(data), "SEED", str(seed)]
    weights = str((folder / "model_final.pth").relative_to(ROOT))
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        command = ["tools/train_net.py", "--config-file", config, *opts]
        if not _recorded(command, folder, record):
            return False
    for suffix, changes in one.evaluations.items():
        record = RESULTS / f"{name}_{suffix}_{seed}.json"
        if not record.exists():
            place = OUTPUT / f"{name}_{suffix}_{seed}"
            shutil.rmtree(place, ignore_errors=True)
            command = ["tools/train_net.py", "--eval-only", "--config-file", config, *opts]
            command += ["MODEL.WEIGHTS", weights, *changes.split()]
            if not _recorded(command, place, record):
                return False
    record = RESULTS / "holes" / f"{name}_{seed}.json"
    if one.holes and not record.exists():
        record.parent.mkdir(parents=True, exist_ok=True)
        command = ["dev/count_holes.py", config, weights, str(record.relative_to(ROOT)), *opts]
        if cpu_seconds_of(command, folder / "holes.txt") is None:
            return False
    print(f"{name}_{seed} done", flush=True)
    return True


def _recorded(command: List[str], folder: Path, record: Path) -> bool:
    """Runs tools/train_net.py in a new folder and stores its record."""
    folder.mkdir(parents=True)
    command = [*command, "OUTPUT_DIR", str(folder.relative_to(ROOT))]
    if cpu_seconds_of(command, folder / "output.txt") is None:
        return False
    shutil.copy(folder / "result.json", record)
    return True


if __name__ == "__main__":
    main()
