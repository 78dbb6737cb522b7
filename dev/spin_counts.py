#!/usr/bin/env python3
"""Times training steps by how long waiting OpenMP threads spin, alone and beside another program.

usage: python dev/spin_counts.py results/benchmark_spin.json [KEY VALUE ...]

Every run trains the quickstart with one thread for each core. The other program is a Python process
for each core that computes all the time.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, Iterator, List

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.measured_record import write_record  # noqa: E402

CONFIG = "quickstart/rpe_shapes.yaml"
STEPS = 30
SEED = 1
# The first one is what libgomp does without the variable, the last OMP_WAIT_POLICY=PASSIVE.
SPIN_COUNTS = (300_000, 10_000, 0)


def main() -> None:
    record, *opts = sys.argv[1:]
    start = time.perf_counter()
    found: Dict[str, Dict[str, float]] = {}
    for count in SPIN_COUNTS:
        here = found[str(count)] = {"alone": seconds_per_step(count, opts)}
        with busy_processes():
            here["beside another program"] = seconds_per_step(count, opts)
        print(count, here, flush=True)
    measures = {"iterations": STEPS, "seconds_per_step": found}
    write_record(record, "dev/spin_counts.py", CONFIG, opts, SEED, start, measures)


def seconds_per_step(spin_count: int, opts: List[str]) -> float:
    """Trains with a GOMP_SPINCOUNT and returns the median time of a step in seconds."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    with tempfile.TemporaryDirectory() as folder:
        command = ["tools/train_net.py", "--config-file", f"configs/{CONFIG}", "SEED", str(SEED)]
        command += [
            *opts,
            "SOLVER.MAX_ITER",
            str(STEPS),
            "DATASETS.TEST",
            "()",
            "OUTPUT_DIR",
            folder,
        ]
        subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**environment, "GOMP_SPINCOUNT": str(spin_count)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        lines = (Path(folder) / "metrics.json").read_text().splitlines()
    return round(float(np.median([json.loads(line)["time"] for line in lines])), 3)


@contextlib.contextmanager
def busy_processes() -> Iterator[None]:
    """Keeps every core busy."""
    endless = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(endless) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
