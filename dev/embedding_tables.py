"""Tables of the losses on embeddings that dev/embedding_runs.py compares."""

import statistics
from pathlib import Path
from typing import Dict, List, Tuple

from dev.result_tables import (
    NO_VALUE,
    Score,
    cpu_minutes_of,
    markdown_table,
    over_seeds,
    read_record,
    score_of,
    seeds_of,
)

ROWS = {
    "spherical": "spherical, as in the paper",
    "discriminative": "discriminative",
    "associative": "associative, one dimension",
    "metric_learning": "metric_learning (inst-DML)",
    "spatial": "spatial",
    "ours": "ours, without votes",
    "ours_votes": "ours, with votes",
}
SCORES = {
    "digits": [
        Score("best_iou", "mean", "mean best IoU"),
        Score("best_iou", "predictions", "predictions"),
        Score("segm", "AP", "AP"),
    ],
    "shapes": [Score("segm", "AP", "AP"), Score("segm", "AP50", "AP50")],
    "nuclei": [
        *(Score("segm", name, name) for name in ("AP", "AP50")),
        Score("segm_touching", "AP", "touching: AP"),
    ],
}
# In the papers, the first of each pair is ahead on VOC 2012 (AP^r 64.5, 62.1 and 35.1).
ORDER = (("spherical", "metric_learning"), ("metric_learning", "associative"))


def embedding_losses_table(folder: Path, data: str) -> str:
    """Returns the table of one data set, with means and ranges over the seeds.

    Args:
        folder: records ``DATA_ROW_SEED.json``.
        data: the data set, a key of ``SCORES``.
    """
    rows = []
    for name, label in ROWS.items():
        records = _records(folder, data, name)
        if not records:
            continue
        cells = [
            over_seeds([score_of(record, score.task, score.name) for record in records])
            for score in SCORES[data]
        ]
        rate = _rates(records)
        rows.append([label, *cells, rate, seeds_of(records), cpu_minutes_of(records)])
    headings = ["loss", *(score.heading for score in SCORES[data])]
    return markdown_table([*headings, "rate", "seeds", "CPU minutes a run"], rows)


def embedding_order_table(folder: Path) -> str:
    """Returns a table that says whether the papers' order of three losses is reproduced.

    It is undecided on a data set where the ranges over the seeds overlap, and where there is only
    one seed. Scores are those that rank the losses in :mod:`dev.embedding_runs`.
    """
    rows = []
    for data, score in (("digits", SCORES["digits"][0]), ("shapes", SCORES["shapes"][1])):
        for better, worse in ORDER:
            scores = [
                [score_of(record, score.task, score.name) for record in _records(folder, data, row)]
                for row in (better, worse)
            ]
            if all(scores):
                difference, verdict = _verdict(*scores)
                names = f"{better} > {worse}"
                rows.append([names, f"{data}, {score.heading}", difference, verdict])
    return markdown_table(["order in the papers", "data", "difference", "here"], rows)


def _verdict(better: List[float], worse: List[float]) -> Tuple[str, str]:
    """Returns the difference of the means, and whether it has the sign of the papers'."""
    difference = f"{statistics.mean(better) - statistics.mean(worse):+.1f}"
    if min(len(better), len(worse)) < 2:
        return difference, "undecided"
    if min(better) > max(worse):
        return difference, "reproduced"
    return difference, "refuted" if max(better) < min(worse) else "undecided"


def _records(folder: Path, data: str, row: str) -> List[dict]:
    return [read_record(path) for path in sorted(folder.glob(f"{data}_{row}_[0-9]*.json"))]


def _rates(records: List[dict]) -> str:
    """Returns the learning rate of the runs of a row."""
    pairs: Dict[str, None] = {}
    for record in records:
        overrides = record["overrides"]
        values = dict(zip(overrides[::2], overrides[1::2]))
        pairs[values.get("SOLVER.BASE_LR", NO_VALUE)] = None
    return ", ".join(pairs)
