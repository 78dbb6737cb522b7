#!/usr/bin/env python3
"""Evaluates classical proposals and trains the variants of DeepMask and InstanceFCN.

usage: python dev/proposal_runs.py GROUP [GROUP ...] [--seeds 1 2 3] [--jobs 2] [--data DIR]

* selective_search, edge_boxes: on shapes and nuclei, once, whatever the seeds. The contour model of
  edge boxes is trained on BSDS500 first. Records: results/proposals/classical/.
* windows, windows_fcn: the variants of DeepMask's and InstanceFCN's tables on shapes. Networks that
  are trained on patches see one scale in training and all scales in their evaluation. Records:
  results/mask_proposals/variants/, and those of trainings on patches in training/ below it.

Records that exist are kept, and weights remain in output/proposals/.
"""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.training_runs import cpu_seconds_of, data_opts, parse_runs  # noqa: E402

CLASSICAL = ROOT / "results" / "proposals" / "classical"
VARIANTS = ROOT / "results" / "mask_proposals" / "variants"
OUTPUT = ROOT / "output" / "proposals"

BSDS = "boundary/bsds_R_18"
# Objects of shapes have 7 to 77 pixels, and nuclei 5 to 60.
SMALLEST_AREA = "25"
DATA = {"shapes": "proposals/rpe_shapes", "nuclei": "proposals/rpe_nuclei"}


class Run(NamedTuple):
    """A training.

    Attributes:
        config: the configuration, with which it is evaluated.
        opts: overrides.
        training_opts: overrides of the training alone; "" if it is evaluated as it is trained.
    """

    config: str
    opts: str = ""
    training_opts: str = ""


def on_patches(node: str, side: int, features: str) -> str:
    """Returns the overrides for training on patches of one window at scale 1."""
    return (
        f"INPUT.DATASET_MAPPER_NAME WindowCropMapper INPUT.CROP.SIZE [{side},{side}] "
        f"MODEL.GUIDED_BACKBONE.SCALES [1.0] MODEL.{node}.IN_FEATURES ['{features}'] "
        "SOLVER.IMS_PER_BATCH 64 SOLVER.MAX_ITER 600"
    )


DEEP, FCN = "baselines/deepmask_shapes", "baselines/instance_fcn_shapes"
# Two of the four classes of shapes, as the paper trains on 20 of 80.
HALF = "[0,1]"
RUNS: Dict[str, Dict[str, Run]] = {
    "selective_search": {},
    "edge_boxes": {},
    "windows": {
        "deepmask": Run(DEEP, "SOLVER.MAX_ITER 510"),
        "deepmask_alternate": Run(DEEP, "SOLVER.MAX_ITER 510 MODEL.DEEPMASK.ALTERNATE True"),
        "deepmask_full": Run(DEEP, "SOLVER.MAX_ITER 510 MODEL.DEEPMASK.LOW_RANK False"),
        "deepmask_half": Run(
            DEEP,
            f"SOLVER.MAX_ITER 510 MODEL.DEEPMASK.MASK_CLASSES {HALF} "
            f"MODEL.DEEPMASK.SCORE_CLASSES {HALF}",
        ),
        "deepmask_half_masks": Run(DEEP, f"SOLVER.MAX_ITER 510 MODEL.DEEPMASK.MASK_CLASSES {HALF}"),
        "deepmask_zoom": Run(
            DEEP,
            "SOLVER.MAX_ITER 510 "
            "MODEL.GUIDED_BACKBONE.SCALES [1.0,0.25,0.3536,0.5,0.7071,1.4142,2.0] "
            "MODEL.DEEPMASK.IN_FEATURES "
            "['p2@0.25','p2@0.3536','p2@0.5','p2@0.7071','p2','p2@1.4142','p2@2']",
        ),
        "deepmask_patches": Run(DEEP, "", on_patches("DEEPMASK", 32, "p2")),
        "deepmask_patches_alternate": Run(
            DEEP, "MODEL.DEEPMASK.ALTERNATE True", on_patches("DEEPMASK", 32, "p2")
        ),
    },
    "windows_fcn": {
        "instance_fcn": Run(FCN, "SOLVER.MAX_ITER 400"),
        "instance_fcn_patches": Run(FCN, "", on_patches("INSTANCE_FCN", 60, "p2")),
    },
}


def main() -> None:
    args = parse_runs(__doc__.splitlines()[0], RUNS)
    tasks = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for group in args.groups:
            if not RUNS[group]:
                tasks.append(pool.submit(classical, group, args.data))
            for seed in args.seeds:
                tasks += [pool.submit(train, name, run, seed) for name, run in RUNS[group].items()]
    sys.exit(0 if all(task.result() for task in tasks) else 1)


def classical(method: str, data: str) -> bool:
    """Evaluates a classical method. Returns whether everything succeeded."""
    contours = OUTPUT / "contours" / "model_final.pth"
    needs_contours = method == "edge_boxes"
    if needs_contours and not contours.exists():
        # As long as those of results/boundary/.
        opts = ["SOLVER.MAX_ITER", "300", "DATASETS.TEST", "()", *data_opts(BSDS, data)]
        if not trained(BSDS, opts, contours.parent):
            return False
    CLASSICAL.mkdir(parents=True, exist_ok=True)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name, config in DATA.items():
        record = CLASSICAL / f"{method}_{name}_1.json"
        if record.exists():
            continue
        output = OUTPUT / f"{method}_{name}.pkl"
        output.unlink(missing_ok=True)
        own = BSDS if needs_contours else config
        command = ["tools/precompute_proposals.py", "--config-file", f"configs/{own}.yaml"]
        command += ["--dataset", f"{name}_val", "--method", method, "--min-area", SMALLEST_AREA]
        command += ["--weights", below_root(contours)] if needs_contours else []
        command += ["--output", below_root(output), "--evaluate", below_root(record)]
        command += data_opts(config, data)
        if cpu_seconds_of(command, OUTPUT / f"{method}_{name}.txt") is None:
            return False
        print(f"{method}_{name} done", flush=True)
    return True


def train(name: str, run: Run, seed: int) -> bool:
    """Trains and evaluates a variant and stores its records. Returns whether that succeeded."""
    record = VARIANTS / f"{name}_{seed}.json"
    if record.exists():
        return True
    folder = OUTPUT / f"{name}_{seed}"
    opts = [*run.opts.split(), "SEED", str(seed)]
    if not trained(run.config, [*opts, *run.training_opts.split()], folder):
        return False
    VARIANTS.mkdir(parents=True, exist_ok=True)
    if run.training_opts:
        (VARIANTS / "training").mkdir(exist_ok=True)
        shutil.copy(folder / "result.json", VARIANTS / "training" / record.name)
        weights = below_root(folder / "model_final.pth")
        flags = ["--eval-only", "MODEL.WEIGHTS", weights, *opts]
        command = ["tools/train_net.py", "--config-file", f"configs/{run.config}.yaml", *flags]
        command += ["OUTPUT_DIR", below_root(folder / "all_scales")]
        if cpu_seconds_of(command, folder / "all_scales.txt") is None:
            return False
        folder /= "all_scales"
    shutil.copy(folder / "result.json", record)
    print(f"{name}_{seed} done", flush=True)
    return True


def trained(config: str, opts: List[str], folder: Path) -> bool:
    """Trains a model into a new folder. Returns whether that succeeded."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = ["tools/train_net.py", "--config-file", f"configs/{config}.yaml", *opts]
    command += ["OUTPUT_DIR", below_root(folder)]
    return cpu_seconds_of(command, folder / "output.txt") is not None


def below_root(path: Path) -> str:
    return str(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
