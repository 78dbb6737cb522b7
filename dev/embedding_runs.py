#!/usr/bin/env python3
"""Trains the compared losses on embeddings for equal CPU minutes and stores their records.

usage: python dev/embedding_runs.py GROUP [GROUP ...] [--seeds 1 2 3] [--jobs 2] [--data DIR]

The groups, in this order: "rates" chooses a learning rate for every row, of three that train for 2
CPU minutes on digits and are evaluated on digits that are not reported. "digits" and "shapes" train
every row for 5 minutes with each seed, and "nuclei" the best three rows for 12 minutes with the
first seed. The minutes are those of training without evaluation. The CPU time of a step is the
difference of two short runs or, after the first long run of a row, that of the run. Records that
exist in results/embedding_losses/ are kept, and weights remain in output/embedding_losses/.
"""

import json
import shutil
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.paper_runs import NUCLEI, SHAPES, additions  # noqa: E402
from dev.training_runs import cpu_seconds_of, data_opts, parse_runs  # noqa: E402

RESULTS = ROOT / "results" / "embedding_losses"
OUTPUT = ROOT / "output" / "embedding_losses"
RATES = ("0.0003", "0.001", "0.003")
_SHORT = 10, 90  # iterations of the runs that measure a step
_BEST = 3  # rows that are trained on nuclei


class Data(NamedTuple):
    """A data set: its configuration, minutes of a training, and the score that ranks rows."""

    config: str
    minutes: float
    task: str
    score: str


DATA = {
    "digits": Data("paper/rpe_digits", 5, "best_iou", "mean"),
    "shapes": Data("paper/rpe_shapes", 5, "segm", "AP50"),
    "nuclei": Data("paper/rpe_nuclei", 12, "segm", "AP50"),
}
RATE_MINUTES = 2
_RADIUS = "MODEL.RPE.NEGATIVE_RADIUS 24.0"
_SIGMA = "MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH"
_OURS = {
    "digits": additions(f"{_RADIUS} {_SIGMA} 8.0", f"{_RADIUS} {_SIGMA} 3.0 MODEL.RPE.VOTES True"),
    "shapes": SHAPES,
    "nuclei": NUCLEI,
}
_CLASSIFIER = "MODEL.RPE.FOREGROUND classifier MODEL.RPE.BACKGROUND exclude MODEL.RPE.QUALITY True"
# The largest offset of spatial embeddings is the height of an image, as in the paper.
_SIZES = {"digits": 64, "shapes": 128, "nuclei": 256}
_LOSS = "MODEL.RPE.LOSS"
# By row and data, the overrides of the paper's configuration.
ROWS: Dict[str, Dict[str, str]] = {
    "spherical": {data: "" for data in DATA},
    "discriminative": {data: f"{_LOSS} discriminative" for data in DATA},
    "associative": {data: f"{_LOSS} associative MODEL.RPE.EMBEDDING_DIM 1" for data in DATA},
    "metric_learning": {data: f"{_LOSS} metric_learning" for data in DATA},
    "spatial": {
        data: f"{_LOSS} spatial MODEL.RPE.MAX_SIZE {size}.0" for data, size in _SIZES.items()
    },
    "ours": {data: f"{parts['kernel']} {_CLASSIFIER}" for data, parts in _OURS.items()},
    "ours_votes": {data: parts["quality"] for data, parts in _OURS.items()},
}


def main() -> None:
    args = parse_runs(__doc__.splitlines()[0], ["rates", *DATA])
    for group in args.groups:
        with ThreadPoolExecutor(args.jobs) as pool:
            if group == "rates":
                runs = [
                    pool.submit(train_rate, row, rate, args.data) for row in ROWS for rate in RATES
                ]
            else:
                rows, seeds = list(ROWS), args.seeds
                if group == "nuclei":
                    rows, seeds = best_rows(), args.seeds[:1]
                runs = [
                    pool.submit(train_row, row, group, seed, args.data)
                    for seed in seeds
                    for row in rows
                ]
        if not all(run.result() for run in runs):
            sys.exit(1)


def train_rate(row: str, rate: str, data: str) -> bool:
    """Trains a row on digits with one learning rate. Returns whether that succeeded."""
    opts = ["SOLVER.BASE_LR", rate, "SEED", "1", "DATASETS.TEST", "('digits_val',)"]
    return train(f"rates/{row}_{rate}", row, "digits", opts, RATE_MINUTES, data)


def train_row(row: str, name: str, seed: int, data: str) -> bool:
    """Trains a row on a data set with one seed. Returns whether that succeeded."""
    opts = ["SOLVER.BASE_LR", chosen_rate(row), "SEED", str(seed)]
    return train(f"{name}_{row}_{seed}", row, name, opts, DATA[name].minutes, data)


def chosen_rate(row: str) -> str:
    """Returns the learning rate with the best score on digits, the smaller one of equal ones."""
    scores = {rate: _score(RESULTS / "rates" / f"{row}_{rate}.json", "digits") for rate in RATES}
    missing = [rate for rate, score in scores.items() if score is None]
    if missing:
        sys.exit(f"{row} has no record for the rates {', '.join(missing)}; run the group rates")
    return max(RATES, key=scores.get)


def best_rows() -> List[str]:
    """Returns the rows with the best mean rank over shapes and digits."""
    ranks = {row: 0 for row in ROWS}
    for name in ("digits", "shapes"):
        means = {}
        for row in ROWS:
            records = sorted(RESULTS.glob(f"{name}_{row}_[0-9]*.json"))
            scores = [_score(path, name) for path in records]
            if not scores or None in scores:
                sys.exit(f"{name} has no records of {row}; run the group {name}")
            means[row] = statistics.mean(scores)
        for rank, row in enumerate(sorted(means, key=means.get, reverse=True)):
            ranks[row] += rank
    return sorted(ranks, key=ranks.get)[:_BEST]


def _score(path: Path, name: str) -> Optional[float]:
    if not path.exists():
        return None
    task, score = DATA[name].task, DATA[name].score
    return json.loads(path.read_text())["metrics"].get(task, {}).get(score)


def train(
    record_name: str, row: str, name: str, opts: List[str], minutes: float, data: str
) -> bool:
    """Trains a row and stores its record, unless it exists. Returns whether that succeeded.

    Args:
        record_name: name of the record below the results, and of the folder of the run.
        row: the row.
        name: the data set.
        opts: overrides beside those of the row and of the data.
        minutes: CPU minutes of training.
        data: folder of the data sets.
    """
    record = RESULTS / f"{record_name}.json"
    if record.exists():
        return True
    config = DATA[name].config
    opts = [*ROWS[row][name].split(), *data_opts(config, data), *opts]
    folder = OUTPUT / record_name
    shutil.rmtree(folder, ignore_errors=True)
    step = _known_step(row, name) or _measured_step(config, opts, folder)
    if not step:
        return False
    iterations = max(1, round(60 * minutes / step))
    if _trained(config, opts, folder, iterations) is None:
        return False
    used = json.loads((folder / "result.json").read_text())["training_cpu_seconds"]
    print(f"{record_name}: {iterations} iterations, {used / 60:.1f} CPU minutes", flush=True)
    record.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "result.json", record)
    return True


def _known_step(row: str, name: str) -> float:
    """Returns the CPU seconds of a step in the longest run of a row on a data set, or 0."""
    paths = [*RESULTS.glob(f"{name}_{row}_[0-9]*.json")]
    if name == "digits":
        paths += [RESULTS / "rates" / f"{row}_{rate}.json" for rate in RATES]
    records = [json.loads(path.read_text()) for path in paths if path.exists()]
    if not records:
        return 0.0
    longest = max(records, key=lambda record: record["iterations"])
    return longest["training_cpu_seconds"] / longest["iterations"]


def _measured_step(config: str, opts: List[str], folder: Path) -> float:
    """Returns the CPU seconds of a step, or 0 if a run failed."""
    used = []
    for count in _SHORT:
        short = folder / f"short_{count}"
        seconds = _trained(config, [*opts, "DATASETS.TEST", "()"], short, count)
        if seconds is None:
            return 0.0
        used.append(seconds)
    if used[1] <= used[0]:  # a busy machine
        print(f"{folder.name}: more steps took less time; run the group again", flush=True)
        return 0.0
    return (used[1] - used[0]) / (_SHORT[1] - _SHORT[0])


def _trained(config: str, opts: List[str], folder: Path, iterations: int) -> Optional[float]:
    """Trains a model and returns the CPU seconds of the process, or None if it failed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["tools/train_net.py", "--config-file", f"configs/{config}.yaml", *opts]
    command += ["SOLVER.MAX_ITER", str(iterations), "OUTPUT_DIR", str(folder.relative_to(ROOT))]
    return cpu_seconds_of(command, folder / "output.txt")


if __name__ == "__main__":
    main()
