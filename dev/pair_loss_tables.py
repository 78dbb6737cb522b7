"""Tables of semantic heads with and without the pair loss."""

import statistics
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Tuple

from dev.result_tables import (
    NO_VALUE,
    cpu_minutes_of,
    markdown_table,
    over_seeds,
    override_pairs,
    read_record,
    seeds_of,
)

_PAIR_LOSS_WEIGHT = "MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT"
# Keys that only the pair loss reads.
_PAIR_LOSS_KEYS = ("MODEL.RPE.PAIR_LOSS_FORM",)


class PairLossRow(NamedTuple):
    """Runs of one semantic head without and with the pair loss, seed by seed."""

    labels: str
    config: str
    pair_loss: str
    iterations: int
    without: List[dict]
    with_loss: List[dict]

    def setting(self) -> List[str]:
        """Returns the cells that identify the row."""
        return [self.labels, self.config, self.pair_loss, str(self.iterations)]


_PAIR_LOSS_SETTING = ["labels", "configuration", "pair loss", "iterations"]


def pair_loss_rows(folders: Dict[str, Path]) -> List[PairLossRow]:
    """Pairs run records that differ in nothing but the pair loss.

    Args:
        folders: the folder of run records for each kind of labels. Each record sets
            ``MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT``.

    Raises:
        ValueError: A run has no counterpart.
    """
    rows = []
    for labels, folder in folders.items():
        without: Dict[tuple, dict] = {}  # by everything that a run is apart from the pair loss
        variants: Dict[tuple, Dict[tuple, dict]] = {}  # with the loss, by what a row shows
        for path in sorted(folder.glob("*.json")):
            record = read_record(path)
            weight, others, run = _split_pair_loss(record)
            if weight == 0:
                without[run] = record
            else:
                shown = (Path(record["config"]).stem, record["iterations"], weight, others)
                variants.setdefault(shown, {})[run] = record
        alone = set(without) ^ {run for runs in variants.values() for run in runs}
        if alone:
            config, seed, *_ = min(alone)
            raise ValueError(
                f"{folder}: {config} with SEED {seed} has no run that differs in nothing but "
                f"{_PAIR_LOSS_WEIGHT}"
            )
        for (name, iterations, weight, others), runs in sorted(variants.items()):
            order = sorted(runs)
            pair_loss = " ".join([f"{weight:g}", *(value for _, value in others)])
            pair = [without[run] for run in order], [runs[run] for run in order]
            rows.append(PairLossRow(labels, name, pair_loss, iterations, *pair))
    return rows


def pair_loss_table(rows: Sequence[PairLossRow], task: str) -> str:
    """Returns a table of the mean IoU without and with the pair loss.

    A difference is followed by the spread, the larger of the two ranges over the seeds. A
    difference that exceeds the spread is bold. "higher" counts the seeds that score higher with the
    loss; runs of a seed start from the same weights and see the same batches.
    """
    cells = []
    for row in rows:
        scores = [
            [record["metrics"][task]["mIoU"] for record in records]
            for records in (row.without, row.with_loss)
        ]
        higher = sum(one < other for one, other in zip(*scores))
        means = [*map(over_seeds, scores), _difference(*scores)]
        cells.append([*row.setting(), *means, f"{higher} of {len(row.without)}"])
    headings = ["without", "with pair loss", "difference (spread)", "higher"]
    return markdown_table([*_PAIR_LOSS_SETTING, *headings], cells)


def pair_loss_accuracy_table(rows: Sequence[PairLossRow]) -> str:
    """Returns a table of pixel accuracy and mean class accuracy without and with the pair loss."""
    cells = [
        [
            *row.setting(),
            *(
                over_seeds([record["metrics"]["sem_seg"][score] for record in records])
                for score in ("pACC", "mACC")
                for records in (row.without, row.with_loss)
            ),
        ]
        for row in rows
    ]
    headings = ["pixel accuracy without", "with", "class accuracy without", "with"]
    return markdown_table([*_PAIR_LOSS_SETTING, *headings], cells)


def pair_loss_runs_table(rows: Sequence[PairLossRow]) -> str:
    """Returns a table of the seeds and CPU minutes of the runs of :func:`pair_loss_table`."""
    cells = [
        [
            *row.setting(),
            seeds_of(row.without),
            cpu_minutes_of(row.without),
            cpu_minutes_of(row.with_loss),
        ]
        for row in rows
    ]
    headings = ["seeds", "CPU minutes without", "CPU minutes with"]
    return markdown_table([*_PAIR_LOSS_SETTING, *headings], cells)


def _split_pair_loss(record: dict) -> Tuple[float, tuple, tuple]:
    """Separates the weight of the pair loss and its other keys from the rest of a run."""
    pairs = sorted(override_pairs(record))
    others = tuple(pair for pair in pairs if pair[0] in _PAIR_LOSS_KEYS)
    rest = tuple(pair for pair in pairs if pair[0] not in (_PAIR_LOSS_WEIGHT, *_PAIR_LOSS_KEYS))
    run = (Path(record["config"]).stem, record["seed"], record["iterations"], rest)
    return float(dict(pairs)[_PAIR_LOSS_WEIGHT]), others, run


def _difference(one: Sequence[float], other: Sequence[float]) -> str:
    """Returns the difference of two means and the larger range, bold if it exceeds the range."""
    change = statistics.mean(other) - statistics.mean(one)
    text = f"{round(change, 1) + 0.0:+.1f}"  # + 0.0: no "-0.0"
    if len(one) == 1:
        return f"{text} ({NO_VALUE})"
    spread = max(max(values) - min(values) for values in (one, other))
    bold = "**" if abs(change) > spread else ""
    return f"{bold}{text}{bold} ({spread:.1f})"
