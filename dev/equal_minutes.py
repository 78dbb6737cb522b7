#!/usr/bin/env python3
"""Trains models for the same CPU minutes, evaluation apart, and stores their records.

usage: python dev/equal_minutes.py GROUP [GROUP ...] [--seeds 1 2 3] [--jobs 2] [--data DIR]

The CPU time of a step is that of two short runs of different lengths, or of the same run with
another seed, and the number of iterations follows from it. The first steps of a training are slower
than later ones, by a factor that is learned from the first run of a configuration. A run that
misses its time by more than 5 % is repeated with a corrected number. Records that exist in
results/equal_minutes/ are kept, and weights remain in output/equal_minutes/. The predictions of
seed 1 on nuclei are kept in results/predictions/.
"""

import gzip
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.training_runs import cpu_seconds_of, data_opts, parse_runs  # noqa: E402

NAME = "equal_minutes"  # of the folders in results/ and output/
PREDICTIONS = ROOT / "results" / "predictions"
_TOLERANCE = 0.05
_MOST_TRIALS = 3
_LEAST_SCORE = 0.05  # of predictions that are kept


class Run(NamedTuple):
    """A training.

    Attributes:
        config: its configuration, below configs/ and without a suffix.
        opts: its overrides, with spaces between them alone.
        minutes: its CPU minutes.
        short: iterations of the two runs that measure a step.
    """

    config: str
    opts: str
    minutes: float
    short: Tuple[int, int] = (20, 140)


CONTROL = (
    "MODEL.RPE.PAIR_LOSS_WEIGHT 0.0 MODEL.RPE.VOTE_LOSS_WEIGHT 0.0 MODEL.RPE.GROUPING components"
)
_LONG_FPN = (
    "MODEL.RESNETS.OUT_FEATURES ['res2','res3','res4','res5'] "
    "MODEL.FPN.IN_FEATURES ['res2','res3','res4','res5']"
)
# Changes of the model, one at a time, on images that are neither trained on nor reported.
CHANGES = {
    "as_configured": "",
    "no_image": (
        "MODEL.BACKBONE.NAME build_short_resnet_fpn_backbone "
        "MODEL.RPE.IN_FEATURES ['p2','p3','p4','p5']"
    ),
    "res5": f"MODEL.GUIDED_BACKBONE.NAME build_resnet_fpn_backbone {_LONG_FPN}",
    "vote_weight": "MODEL.RPE.VOTE_LOSS_WEIGHT 0.1",
    "group_vote": "MODEL.RPE.GROUP_CLASSES vote",
    "group_product": "MODEL.RPE.GROUP_CLASSES product",
    "group_mean": "MODEL.RPE.GROUP_POOLING mean",
    "group_attention": "MODEL.RPE.GROUP_POOLING attention",
    "squared_hinge": "MODEL.RPE.PAIR_LOSS_FORM squared_hinge",
    "loops_0": "MODEL.MEAN_SHIFT.TRAIN_LOOPS 0",
    "contact": "MODEL.RPE.SAMPLING contact",
}
# The same for nuclei, on a split of the training images.
NUCLEI_CHANGES = {
    "as_configured": "",
    "rate_0.001": "SOLVER.BASE_LR 0.001",
    "quality_image": "MODEL.RPE.QUALITY_IMAGES 1",
    "group_head": "MODEL.RPE.GROUP_CLASSES head",
    "squared_hinge": "MODEL.RPE.PAIR_LOSS_FORM squared_hinge",
    "contact": "MODEL.RPE.SAMPLING contact",
    "narrow_head": "MODEL.RPE.CONV_DIM 32",
}
# Mean-shift proposals in the same Mask R-CNN. Nuclei are 5 to 60 px wide.
MEAN_SHIFT_PROPOSALS = (
    "MODEL.PROPOSAL_GENERATOR.NAME MeanShiftProposalGenerator "
    "MODEL.RPE.IN_FEATURES ['p2','p3','p4','p5'] MODEL.RPE.PROPOSAL_MASK_SIZE 28 "
    "MODEL.RPE.PROPOSALS.STRIDE 2 MODEL.RPE.PROPOSALS.NUM_LEVELS 1 "
    "MODEL.RPE.PROPOSALS.MAX_GROUPS 500 MODEL.RPE.PROPOSALS.POST_NMS_TOPK_TEST 1000"
)
SHAPES = {"rpe": "quickstart/rpe_shapes", "mask_rcnn": "quickstart/mask_rcnn_shapes"}
_RATES = {"rpe": ("0.001", "0.005"), "mask_rcnn": ("0.001", "0.003", "0.005")}
_DEV = "DATASETS.TEST ('shapes_dev',)"
RUNS: Dict[str, Dict[str, Run]] = {
    "changes": {
        f"dev_{name}": Run(SHAPES["rpe"], f"{_DEV} {opts}", 8) for name, opts in CHANGES.items()
    },
    # dev_as_configured has the rate 0.003.
    "rates": {
        f"dev_{name}_{rate}": Run(SHAPES[name], f"{_DEV} SOLVER.BASE_LR {rate}", 8)
        for name, rates in _RATES.items()
        for rate in rates
    },
    "nuclei_changes": {
        **{
            f"split_{name}": Run("nuclei/rpe_R_18", opts, 12)
            for name, opts in NUCLEI_CHANGES.items()
        },
        "split_mask_rcnn": Run("nuclei/mask_rcnn_R_18", "", 12),
    },
    "shapes": {
        **{f"shapes_{name}": Run(config, "", 25) for name, config in SHAPES.items()},
        "shapes_control": Run(SHAPES["rpe"], CONTROL, 25),
    },
    "nuclei": {
        "nuclei_rpe": Run("nuclei/rpe_R_18", "", 50),
        "nuclei_mask_rcnn": Run("nuclei/mask_rcnn_R_18", "", 50),
    },
    "proposals": {
        "proposals_rpn": Run("nuclei/mask_rcnn_R_18", "", 40),
        "proposals_mean_shift": Run("nuclei/mask_rcnn_R_18", MEAN_SHIFT_PROPOSALS, 40),
    },
    "bsds": {"bsds_efficientnet_lite0": Run("boundary/bsds_efficientnet_lite0", "", 60)},
}


def main() -> None:
    args = parse_runs(__doc__.splitlines()[0], RUNS)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [
            pool.submit(train, name, run, seed, args.data)
            for seed in args.seeds
            for group in args.groups
            for name, run in RUNS[group].items()
        ]
    sys.exit(0 if all(run.result() for run in runs) else 1)


def train(name: str, run: Run, seed: int, data: str, group: str = NAME) -> bool:
    """Trains a model for its minutes and stores its record.

    Args:
        name: name of the record, to which the seed is added.
        run: the training.
        seed: its seed.
        data: folder of the data sets.
        group: name of the folder in results/ of the record, and in output/ of the weights.

    Returns:
        Whether that succeeded, or the record exists already.
    """
    record = ROOT / "results" / group / f"{name}_{seed}.json"
    if record.exists():
        return True
    folder = ROOT / "output" / group / f"{name}_{seed}"
    factors = _Factors(folder.parent / "factors.json")
    shutil.rmtree(folder, ignore_errors=True)
    on_split = name.startswith(("dev_", "split_"))
    opts = [*run.opts.split(), *data_opts(run.config, data, on_split), "SEED", str(seed)]
    known = _known_iterations(record.parent, name, run)
    iterations = known or _iterations(run, opts, folder, factors)
    for trial in range(_MOST_TRIALS):
        place = folder / str(trial)
        if not iterations or _trained(run, opts, place, iterations) is None:
            return False
        seconds = json.loads((place / "result.json").read_text())["training_cpu_seconds"]
        miss = seconds / (60 * run.minutes) - 1
        print(f"{name}_{seed}: {iterations} iterations, {seconds / 60:.1f} CPU minutes", flush=True)
        if not known and trial == 0:
            factors.learn(run.config, 1 / (1 + miss))
        if abs(miss) <= _TOLERANCE:
            record.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(place / "result.json", record)
            if seed == 1 and name.startswith("nuclei"):
                _keep_predictions(place / "inference" / "coco_instances_results.json", name)
            return True
        iterations = round(iterations / (1 + miss))
    print(f"{name}_{seed}: {100 * miss:.0f} % off after {_MOST_TRIALS} trials", flush=True)
    return False


def _keep_predictions(path: Path, name: str) -> None:
    PREDICTIONS.mkdir(parents=True, exist_ok=True)
    results = [r for r in json.loads(path.read_text()) if r["score"] >= _LEAST_SCORE]
    # Without the time, the same predictions are the same file.
    content = gzip.compress(json.dumps(results).encode(), mtime=0)
    (PREDICTIONS / f"{name}.json.gz").write_bytes(content)


def weights_of(record: Path) -> Path:
    """Returns the weights of a training by its record, a path relative to the repository."""
    overrides = json.loads(record.read_text())["overrides"]
    return Path(overrides[overrides.index("OUTPUT_DIR") + 1]) / "model_final.pth"


def _known_iterations(results: Path, name: str, run: Run) -> int:
    """Returns how many iterations take the minutes of a run by its other seeds, or 0."""
    for path in results.glob(f"{name}_[0-9]*.json"):
        record = json.loads(path.read_text())
        return round(record["iterations"] * 60 * run.minutes / record["training_cpu_seconds"])
    return 0


def _iterations(run: Run, opts: List[str], folder: Path, factors: "_Factors") -> int:
    """Returns how many iterations take the minutes of a run, or 0 if a short run failed."""
    used = []
    for count in run.short:
        seconds = _trained(run, [*opts, "DATASETS.TEST", "()"], folder / f"short_{count}", count)
        if seconds is None:
            return 0
        used.append(seconds)
    step = (used[1] - used[0]) / (run.short[1] - run.short[0])
    return max(1, round(60 * run.minutes / step * factors.of(run.config)))


class _Factors:
    """How much faster all steps of a configuration are than its first ones, kept in a file."""

    def __init__(self, path: Path):
        self._path = path

    def of(self, config: str) -> float:
        return self._all().get(config, 1.0)

    def learn(self, config: str, factor: float) -> None:
        self._path.write_text(json.dumps({**self._all(), config: self.of(config) * factor}))

    def _all(self) -> Dict[str, float]:
        return json.loads(self._path.read_text()) if self._path.exists() else {}


def _trained(run: Run, opts: List[str], folder: Path, iterations: int) -> Optional[float]:
    """Trains a model and returns the CPU seconds of the process, or None if it failed."""
    folder.mkdir(parents=True)
    command = ["tools/train_net.py", "--config-file", f"configs/{run.config}.yaml", *opts]
    command += ["SOLVER.MAX_ITER", str(iterations), "OUTPUT_DIR", str(folder.relative_to(ROOT))]
    return cpu_seconds_of(command, folder / "output.txt")


if __name__ == "__main__":
    main()
