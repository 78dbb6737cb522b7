#!/usr/bin/env python3
"""Measures how long the first labels take after the installation.

usage: python dev/cold_start.py

``rpe-d2 predict`` segments the four pictures in examples/ with the shipped weights, in a process of
its own that has to compile all modules, as after an installation, and then a second time. The
record is stored in results/cold_start.json.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.measured_record import write_record  # noqa: E402

RECORD = ROOT / "results" / "cold_start.json"
_TIMES = "first", "second"


def main() -> None:
    start = time.perf_counter()
    pictures = sorted(map(str, (ROOT / "examples").glob("*.png")))
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": f"{folder}/cache"}
        for name in _TIMES:
            begin = time.perf_counter()
            command = ["tools/predict.py", *pictures, "--model", "nuclei"]
            subprocess.run(
                [sys.executable, *command, "--output", f"{folder}/{name}"],
                cwd=ROOT,
                env=environment,
                check=True,
            )
            seconds[name] = round(time.perf_counter() - begin, 1)
            labels = len(list(Path(folder, name).glob("*.tif")))
            if labels != len(pictures):
                raise RuntimeError(f"{labels} label maps of {len(pictures)} pictures")
    measures = {"pictures": len(pictures), "seconds_to_labels": seconds}
    write_record(str(RECORD), "dev/cold_start.py", "nuclei", [], 0, start, measures)
    print(RECORD.read_text())


if __name__ == "__main__":
    main()
