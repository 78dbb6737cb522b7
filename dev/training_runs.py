"""What the scripts share that train many models: processes and the names of the data."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Iterable, List, Optional, Sequence

from rpe_d2.cli import split_coco

ROOT = Path(__file__).resolve().parents[1]


def parse_runs(
    description: str, groups: Iterable[str], seeds: Sequence[int] = (1, 2, 3), jobs: int = 2
) -> argparse.Namespace:
    """Parses the command line of a script that trains groups of models.

    Args:
        description: what the script does.
        groups: names of the groups.
        seeds: seeds of a group if the command line names none.
        jobs: number of groups that run at once if the command line does not say it.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("groups", nargs="+", choices=list(groups), metavar="GROUP")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--jobs", type=int, default=jobs)
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    return parser.parse_args()


def cpu_seconds_of(command: List[str], output: Path) -> Optional[float]:
    """Runs a Python script with one thread.

    Args:
        command: the script and its arguments.
        output: file for what it prints.

    Returns:
        The CPU seconds of the process and its children, or None if it failed.
    """
    with open(output, "w") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        print(f"failed, see {output}: {' '.join(command)}", flush=True)
        return None
    return usage.ru_utime + usage.ru_stime


def data_opts(config: str, data: str, on_split: bool = False) -> List[str]:
    """Returns the overrides that name the data sets of a configuration.

    Args:
        config: path of the configuration.
        data: folder of the data.
        on_split: whether nuclei are trained and evaluated on parts of the training images, so that
            nothing is chosen on the validation images.
    """
    if "digits" in config:
        return [
            *["DATASETS.DIGITS", f"{data}/mnist_digits/digits.npz"],
            *["DATASETS.DIGITS_AUTHORS", f"{data}/rpe_golden/main001.mat"],
            *["DATASETS.TEST", "('digits_authors',)"],
        ]
    if "nuclei" in config and on_split:
        folder = ROOT / "output" / "nuclei_split"
        if not folder.exists():
            split_coco.main([f"{data}/nuclei/train.json", "--output", str(folder)])
        parts = {"train": "fit", "val": "held_out"}
        sets = [
            f"nuclei_{name}={folder.relative_to(ROOT)}/train_{part}.json:{data}/nuclei"
            for name, part in parts.items()
        ]
        return ["DATASETS.COCO_JSONS", repr(sets)]
    if "nuclei" in config:
        sets = [f"nuclei_{part}={data}/nuclei/{part}.json" for part in ("train", "val")]
        return ["DATASETS.COCO_JSONS", repr(sets)]
    if "bsds" in config:
        return ["DATASETS.BSDS", f"{data}/bsds500"]
    return []
