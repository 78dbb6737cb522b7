#!/usr/bin/env python3
"""Trains the models behind the claims in docs/claims.md and stores their records in results/paper/.

usage: python dev/paper_runs.py GROUP [GROUP ...] [--seeds 1 2 3] [--jobs 2] [--data ../shared/data]

Records that exist are kept, and weights remain in output/paper/. Those of "loops" are evaluated
after other numbers of loops, too, and the holes in the label maps of "holes" are counted.
"""

import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.measured_record import write_record  # noqa: E402
from dev.training_runs import cpu_seconds_of, data_opts, parse_runs  # noqa: E402

RESULTS = ROOT / "results" / "paper"
OUTPUT = ROOT / "output" / "paper"


class Run(NamedTuple):
    """A training: its configuration, its overrides and the run whose weights it starts from."""

    config: str
    opts: str = ""
    start: Optional[str] = None


DIGITS = "paper/rpe_digits"
SHORT = "SOLVER.MAX_ITER 850"
LOOPS = "MODEL.MEAN_SHIFT.TRAIN_LOOPS"
BSDS = "boundary/bsds_R_18"


def additions(kernel: str, votes: str) -> Dict[str, str]:
    """Returns the overrides of the paper's configurations that add this project's own parts.

    Args:
        kernel: overrides of a spatial kernel on pixel positions.
        votes: overrides of votes and of a spatial kernel on them.
    """
    classifier = f"{votes} MODEL.RPE.FOREGROUND classifier MODEL.RPE.BACKGROUND exclude"
    return {
        "paper": "",
        "kernel": kernel,
        "votes": votes,
        "classifier": classifier,
        "quality": f"{classifier} MODEL.RPE.QUALITY True",
    }


RADIUS = "MODEL.RPE.NEGATIVE_RADIUS 24.0"
SIGMA = "MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH"
SHAPES = additions(
    f"{RADIUS} {SIGMA} 16.0", f"{RADIUS} {SIGMA} 6.0 MODEL.RPE.VOTES True MODEL.RPE.VOTE_UNIT 6.0"
)
NUCLEI = additions(
    f"{RADIUS} {SIGMA} 8.0",
    f"{RADIUS} {SIGMA} 2.0 MODEL.MEAN_SHIFT.RELATIVE_BANDWIDTH 0.2 MODEL.RPE.VOTES True "
    "MODEL.RPE.VOTE_UNIT 3.0",
)
RUNS: Dict[str, Dict[str, Run]] = {
    "digits": {
        "digits": Run(DIGITS),
        "digits_mask_rcnn": Run("baselines/mask_rcnn_digits"),
    },
    "loops": {
        "loops_0": Run(DIGITS, f"{SHORT} {LOOPS} 0"),
        "loops_2": Run(DIGITS, f"{SHORT} {LOOPS} 2"),
        "loops_5": Run(DIGITS, f"{SHORT} {LOOPS} 5"),
        "loops_first": Run(DIGITS, f"SOLVER.MAX_ITER 600 {LOOPS} 0"),
        "loops_last": Run("paper/rpe_digits_loops", "SOLVER.MAX_ITER 240", "loops_first"),
        "no_loops_last": Run(
            "paper/rpe_digits_loops", f"SOLVER.MAX_ITER 240 {LOOPS} 0", "loops_first"
        ),
        # The CPU time of loops_5.
        "no_loops": Run(DIGITS, f"SOLVER.MAX_ITER 1640 {LOOPS} 0"),
    },
    "dimensions": {
        "dim_3": Run(DIGITS, f"{SHORT} MODEL.RPE.EMBEDDING_DIM 3"),
        "dim_16": Run(DIGITS, f"{SHORT} MODEL.RPE.EMBEDDING_DIM 16"),
        "margin_0.1": Run(DIGITS, f"{SHORT} MODEL.RPE.MARGIN 0.1"),
    },
    "shapes": {
        f"shapes_{name}": Run("paper/rpe_shapes", f"SOLVER.MAX_ITER 1000 {opts}")
        for name, opts in SHAPES.items()
    },
    "nuclei": {
        f"nuclei_{name}": Run("paper/rpe_nuclei", f"SOLVER.MAX_ITER 500 {opts}")
        for name, opts in NUCLEI.items()
    },
    # The runs with both losses from the start are those of results/boundary/bsds_*.json.
    "boundaries": {
        "bsds_first": Run(
            BSDS,
            "SOLVER.WARMUP_ITERS 50 SOLVER.MAX_ITER 200 DATASETS.TEST () "
            "MODEL.BOUNDARY.LOGISTIC_LOSS_WEIGHT 0.0",
        ),
        "bsds_last": Run(BSDS, "SOLVER.WARMUP_ITERS 20 SOLVER.MAX_ITER 100", "bsds_first"),
    },
    "holes": {
        f"holes_fcn_8s_{weight}": Run(
            "semantic/fcn_8s_shapes",
            "SOLVER.MAX_ITER 300 TEST.EVAL_PERIOD 0 "
            f"MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT {weight}.0 "
            "DATASETS.TRAIN ('shapes_train_noisy_sem_seg',)",
        )
        for weight in (0, 1)
    },
}

# By the start of a run's name: the script that measures its weights, and the folder of its records.
MEASURED = {
    "loops_": ("dev/decode_loops.py", "decoded"),
    "holes_": ("dev/count_holes.py", "holes"),
}


def main() -> None:
    args = parse_runs(__doc__.splitlines()[0], RUNS)
    with ThreadPoolExecutor(args.jobs) as pool:
        chains = [
            pool.submit(run_chain, RUNS[group], seed, args.data)
            for group in args.groups
            for seed in args.seeds
        ]
    sys.exit(0 if all(chain.result() for chain in chains) else 1)


def run_chain(runs: Dict[str, Run], seed: int, data: str) -> bool:
    """Trains the runs of a group with one seed, in order, and measures their weights.

    Returns:
        Whether everything succeeded. The chain ends at the first failure.
    """
    for name, run in runs.items():
        folder = OUTPUT / f"{name}_{seed}"
        opts = [*run.opts.split(), *data_opts(run.config, data), "SEED", str(seed)]
        record = RESULTS / f"{name}_{seed}.json"
        # A first stage without an evaluation has no scores: its record is its time.
        is_stage = "DATASETS.TEST ()" in run.opts
        if not (folder / "model_final.pth" if is_stage else record).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            start = []
            if run.start:
                weights = OUTPUT / f"{run.start}_{seed}" / "model_final.pth"
                start = ["MODEL.WEIGHTS", str(weights.relative_to(ROOT))]
            command = ["tools/train_net.py", "--config-file", f"configs/{run.config}.yaml", *opts]
            command += [*start, "OUTPUT_DIR", str(folder.relative_to(ROOT))]
            begin = time.perf_counter()
            used = cpu_seconds_of(command, folder / "output.txt")
            if used is None:
                return False
            RESULTS.mkdir(parents=True, exist_ok=True)
            if is_stage:
                measures = {"cpu_seconds": round(used, 1)}
                path, config = str(record), f"{run.config}.yaml"
                write_record(path, "dev/paper_runs.py", config, opts, seed, begin, measures)
            else:
                shutil.copy(folder / "result.json", record)
        for prefix, (script, place) in MEASURED.items():
            measures = RESULTS / place / f"{name}_{seed}.json"
            if name.startswith(prefix) and not measures.exists():
                measures.parent.mkdir(parents=True, exist_ok=True)
                weights = (folder / "model_final.pth").relative_to(ROOT)
                command = [script, f"configs/{run.config}.yaml", str(weights)]
                command += [str(measures.relative_to(ROOT)), *opts]
                if cpu_seconds_of(command, folder / "measured.txt") is None:
                    return False
        print(f"{name}_{seed} done", flush=True)
    return True


if __name__ == "__main__":
    main()
