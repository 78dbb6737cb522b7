#!/usr/bin/env python3
"""Trains the models behind the claims in docs/paper.md and stores their records in results/paper/.

usage: python dev/paper_runs.py GROUP [GROUP ...] [--seeds 1 2 3] [--jobs 2] [--data ../shared/data]

Records that exist are kept. The weights remain in output/paper/ for other scripts.
"""

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "paper"
OUTPUT = ROOT / "output" / "paper"


class Run(NamedTuple):
    """A training: its configuration, its overrides and the run whose weights it starts from."""

    config: str
    opts: str = ""
    start: Optional[str] = None


DIGITS = "paper/rpe_digits"
SHORT = "SOLVER.MAX_ITER 500"
LOOPS = "MODEL.MEAN_SHIFT.TRAIN_LOOPS"
RUNS: Dict[str, Dict[str, Run]] = {
    "digits": {
        "digits": Run(DIGITS),
        "digits_mask_rcnn": Run("baselines/mask_rcnn_digits"),
    },
    "loops": {
        "loops_0": Run(DIGITS, f"{SHORT} {LOOPS} 0"),
        "loops_2": Run(DIGITS, f"{SHORT} {LOOPS} 2"),
        "loops_5": Run(DIGITS, f"{SHORT} {LOOPS} 5"),
        "loops_first": Run(DIGITS, f"SOLVER.MAX_ITER 350 {LOOPS} 0"),
        "loops_last": Run("paper/rpe_digits_loops", "SOLVER.MAX_ITER 150", "loops_first"),
    },
    "dimensions": {
        "dim_3": Run(DIGITS, f"{SHORT} MODEL.RPE.EMBEDDING_DIM 3"),
        "dim_16": Run(DIGITS, f"{SHORT} MODEL.RPE.EMBEDDING_DIM 16"),
        "margin_0.1": Run(DIGITS, f"{SHORT} MODEL.RPE.MARGIN 0.1"),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="+", choices=list(RUNS), metavar="GROUP")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    args = parser.parse_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        for group in args.groups:
            for seed in args.seeds:
                pool.submit(run_chain, RUNS[group], seed, args.data)


def run_chain(runs: Dict[str, Run], seed: int, data: str) -> None:
    """Trains the runs of a group with one seed, in order."""
    for name, run in runs.items():
        record = RESULTS / f"{name}_{seed}.json"
        if record.exists():
            continue
        folder = OUTPUT / f"{name}_{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        opts = [*run.opts.split(), *data_opts(run.config, data), "SEED", str(seed)]
        if run.start:
            weights = OUTPUT / f"{run.start}_{seed}" / "model_final.pth"
            opts += ["MODEL.WEIGHTS", str(weights.relative_to(ROOT))]
        opts += ["OUTPUT_DIR", str(folder.relative_to(ROOT))]
        command = [sys.executable, "tools/train_net.py"]
        command += ["--config-file", f"configs/{run.config}.yaml", *opts]
        with open(folder / "output.txt", "w") as output:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        if done.returncode:
            print(f"{name}_{seed} failed; see {folder / 'output.txt'}")
            return
        RESULTS.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "result.json", record)
        print(f"{name}_{seed} done", flush=True)


def data_opts(config: str, data: str) -> List[str]:
    """Returns the overrides that name the data sets of a configuration."""
    if "digits" in config:
        return [
            *["DATASETS.DIGITS", f"{data}/mnist_digits/digits.npz"],
            *["DATASETS.DIGITS_AUTHORS", f"{data}/rpe_golden/main001.mat"],
            *["DATASETS.TEST", "('digits_authors',)"],
        ]
    return []


if __name__ == "__main__":
    main()
