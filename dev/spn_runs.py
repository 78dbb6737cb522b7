#!/usr/bin/env python3
"""Compares the propagation network that its authors draw with changes of it, one at a time.

usage: python dev/spn_runs.py shapes | clipped | voc ... [--seeds 1 2 3] [--jobs 2] [--data DIR]

All networks refine the predictions of the same base, with the same guidance network and the same
CPU minutes. For shapes_large, the base is trained first, and its predictions for the training and
validation images are stored in output/class_propagation/base. For VOC, dev/voc_base.py has to store
the predictions of two bases in output/voc_base/mnv2 and output/voc_base/dm05. The refiners learn
from the first one, with the first of the seeds, and are evaluated on both. Records that exist in
results/class_propagation/ are kept.
"""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev import voc_refine  # noqa: E402
from dev.equal_minutes import Run, train, weights_of  # noqa: E402
from dev.measured_record import load_model  # noqa: E402
from dev.training_runs import cpu_seconds_of, parse_runs  # noqa: E402
from rpe_d2.data import ImageMapper  # noqa: E402
from rpe_d2.utils.files import replacing_file  # noqa: E402
from rpe_d2.utils.image_files import image_stem  # noqa: E402

GROUP = "class_propagation"
RESULTS, OUTPUT = ROOT / "results" / GROUP, ROOT / "output" / GROUP
# The network that is refined on shapes.
BASE_CONFIG = "configs/spn/sem_seg_spn_shapes.yaml"
BASE_OPTS = ["MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"]
BASE_RECORD = RESULTS / "shapes_base_1.json"
_BASE = f"output/{GROUP}/base"

OURS = "MODEL.SPN.NETWORK masks MODEL.SPN.GATE_MODE softmax"
CHANGES = {
    "as_drawn": "",
    "no_propagation": "MODEL.SPN.NUM_UNITS 0",
    # A single gate that is divided by its own magnitude would be 1 or -1 everywhere.
    "one_way": "MODEL.SPN.CONNECTIONS 1 MODEL.SPN.GATE_MODE clipped",
    "mean_merge": "MODEL.SPN.MERGE mean",
    "learned_merge": "MODEL.SPN.MERGE learned",
    "logits": "MODEL.SPN.INPUTS logits",
    "ours": OURS,
}


def _listed(*entries: str) -> str:
    """Returns a list as a text without spaces, at which the overrides of a run are split."""
    return json.dumps(entries, separators=(",", ":"))


def _voc_opts(base: str) -> str:
    parts = [f"voc_base_{part}" for part in voc_refine.PARTS]
    folders = [f"{voc_refine.OUTPUT}/{part}" for part in voc_refine.PARTS]
    sets = _listed(*(f"{name}={f}/images:{f}/labels" for name, f in zip(parts, folders)))
    coarse = _listed(*(f"{name}=output/voc_base/{base}" for name in parts))
    return f"DATASETS.SEM_SEG_DIRS {sets} DATASETS.COARSE_DIRS {coarse}"


_COARSE = _listed(*(f"shapes_large_{part}_sem_seg={_BASE}/{part}" for part in ("train", "val")))
_SHAPES, _VOC = "spn/refiner_classes_shapes", "paper/spn_voc_efficientnet_lite0"
_SHORT = 10, 40  # iterations of the runs that measure a step


def _shapes_run(change: str) -> Run:
    return Run(_SHAPES, f"DATASETS.COARSE_DIRS {_COARSE} {change}", 4, _SHORT)


RUNS: Dict[str, Dict[str, Run]] = {
    "shapes": {f"shapes_{name}": _shapes_run(change) for name, change in CHANGES.items()},
    # The three-way connection with the normalization of the one-way connection.
    "clipped": {"shapes_clipped": _shapes_run("MODEL.SPN.GATE_MODE clipped")},
    "voc": {
        f"voc_{name}": Run(_VOC, f"{_voc_opts(voc_refine.BASES[0])} {CHANGES[name]}", 30, _SHORT)
        for name in ("as_drawn", "ours")
    },
}


def main() -> None:
    args = parse_runs(__doc__.splitlines()[0], RUNS)
    if {"shapes", "clipped"} & set(args.groups):
        train_base()
        store_predictions()
    if "voc" in args.groups:
        for part, names in zip(voc_refine.PARTS, ("train.txt", "test.txt")):
            data = Path(args.data, "voc2012_val").resolve()
            voc_refine.link(data, ROOT / voc_refine.OUTPUT / part, names)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [
            pool.submit(train, name, run, seed, args.data, GROUP)
            for group in args.groups
            for seed in (args.seeds[:1] if group == "voc" else args.seeds)
            for name, run in RUNS[group].items()
        ]
    succeeded = [run.result() for run in runs]
    if "voc" in args.groups:
        for name, run in RUNS["voc"].items():
            succeeded.append(evaluate_on_second_base(name, run, args.seeds[0]))
    sys.exit(0 if all(succeeded) else 1)


def train_base() -> None:
    """Trains the network that is refined on shapes, and stores its record."""
    if BASE_RECORD.exists() and (ROOT / weights_of(BASE_RECORD)).exists():
        return
    folder = OUTPUT / "base_training"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = ["tools/train_net.py", "--config-file", BASE_CONFIG, *BASE_OPTS, "SEED", "1"]
    command += ["OUTPUT_DIR", str(folder.relative_to(ROOT))]
    if cpu_seconds_of(command, folder / "output.txt") is None:
        sys.exit(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "result.json", BASE_RECORD)


@torch.no_grad()
def store_predictions() -> None:
    """Stores the base's probabilities for all images of shapes that have none yet."""
    cfg, model = load_model(BASE_CONFIG, str(ROOT / weights_of(BASE_RECORD)), BASE_OPTS)
    mapper = ImageMapper(cfg, is_train=False)
    for part in ("train", "val"):
        folder = ROOT / _BASE / part
        folder.mkdir(parents=True, exist_ok=True)
        for item in tqdm(
            DatasetCatalog.get(f"shapes_large_{part}_sem_seg"), desc=part, disable=None
        ):
            target = folder / f"{image_stem(item['file_name'])}.npz"
            if not target.exists():
                maps = model([mapper(item)])[0]["sem_seg"].softmax(dim=0)
                with replacing_file(target) as file:
                    values = np.rint(255 * maps.numpy()).astype(np.uint8)
                    np.savez_compressed(file, probabilities=values)


def evaluate_on_second_base(name: str, run: Run, seed: int) -> bool:
    """Evaluates a refiner of VOC, unchanged, on predictions that it has not learned from."""
    trained, base = RESULTS / f"{name}_{seed}.json", voc_refine.BASES[1]
    record = RESULTS / f"{name}_{base}_{seed}.json"
    if record.exists():
        return True
    if not trained.exists():
        return False
    folder = OUTPUT / f"{name}_{base}_{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    changes = run.opts.replace(_voc_opts(voc_refine.BASES[0]), _voc_opts(base)).split()
    opts: List[str] = [*changes, "SEED", str(seed), "MODEL.WEIGHTS", str(weights_of(trained))]
    command = ["tools/train_net.py", "--eval-only", "--config-file", f"configs/{run.config}.yaml"]
    command += [*opts, "OUTPUT_DIR", str(folder.relative_to(ROOT))]
    if cpu_seconds_of(command, folder / "output.txt") is None:
        return False
    shutil.copy(folder / "result.json", record)
    return True


if __name__ == "__main__":
    main()
