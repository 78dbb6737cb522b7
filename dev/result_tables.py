"""Markdown tables of the run records in results/."""

import json
import statistics
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from rpe_d2.engine.run_record import UNTITLED, run_title

NO_VALUE = "–"
# MaskProposalEvaluator adds this to the name of a task whose masks are filled boxes.
_FILLED_BOXES = "_of_filled_boxes"
_PAIR_LOSS_WEIGHT = "MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT"
# Keys that only the pair loss reads.
_PAIR_LOSS_KEYS = ("MODEL.RPE.PAIR_LOSS_FORM",)


class Score(NamedTuple):
    """A column of a table of scores: its place in a record, and its heading."""

    task: str
    name: str
    heading: str


class Model(NamedTuple):
    """A row of the README's table.

    Attributes:
        model: the model in words.
        data: the data set in words.
        patterns: globs below results/. The first one that matches any record is used.
    """

    model: str
    data: str
    patterns: Tuple[str, ...]


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Formats a Markdown table. Columns without a value in any row are omitted."""
    rows = [list(row) for row in rows]
    kept = [
        number
        for number in range(len(headings))
        if number == 0 or not rows or any(row[number] != NO_VALUE for row in rows)
    ]
    lines = [[headings[number] for number in kept], ["---"] * len(kept)]
    lines += [[row[number] for number in kept] for row in rows]
    return "\n".join(_line(cells) for cells in lines)


def _line(cells: Sequence[str]) -> str:
    if set(cells) == {"---"}:
        return "|" + "---|" * len(cells)
    return f"| {' | '.join(cells)} |"


def select_columns(table: str, headings: Sequence[str]) -> str:
    """Selects columns of a Markdown table by name. Names that the table lacks are skipped."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    numbers = [cells[0].index(heading) for heading in headings if heading in cells[0]]
    return "\n".join(_line([row[number] for number in numbers]) for row in cells)


def model_table(results: Path, models: Sequence[Model]) -> str:
    """Returns the table in the README: a row per model, with mean and range over its seeds.

    Args:
        results: the folder of the records.
        models: the rows.

    Raises:
        ValueError: A row has no record.
    """
    rows = []
    for model in models:
        records: List[dict] = []
        for pattern in model.patterns:
            records = records or [read_record(path) for path in sorted(results.glob(pattern))]
        if not records:
            raise ValueError(f"{results} has no record for {' or '.join(model.patterns)}")
        scores = [
            _over_seeds([_score(record, task, "AP") for record in records])
            for task in ("segm", "segm_boundary")
        ]
        trained = all(record["iterations"] for record in records)
        minutes = _cpu_minutes(records, digits=0) if trained else NO_VALUE
        rows.append([model.model, model.data, *scores, minutes, str(len(records))])
    headings = ["model", "data", "AP", "boundary AP", "CPU minutes", "seeds"]
    return markdown_table(headings, rows)


def scores_table(results: Path, subfolder: str = "", by_file: bool = False) -> str:
    """Returns a table of the instance scores of the run records in a folder, sorted by file name.

    Args:
        results: the folder of the records.
        subfolder: the folder below ``results`` to read.
        by_file: name runs after their files, for runs that differ in nothing but their commit.
    """
    rows = []
    for path, record in _instance_records(results / subfolder):
        scores = [_score(record, "segm", name) for name in ("AP", "AP50", "AP75", "AR")]
        scores += [_score(record, "segm_touching", name) for name in ("AP", "AP50")]
        link = f"[record](results/{path.relative_to(results)})"
        rows.append([_run_name(path, record, by_file), *map(_number, scores), link])
    headings = ["run", "AP", "AP50", "AP75", "AR", "touching: AP", "touching: AP50", "record"]
    return markdown_table(headings, rows)


def runs_table(results: Path, subfolder: str = "", by_file: bool = False) -> str:
    """Returns a table of length, time, hardware and commit of the runs of :func:`scores_table`."""
    rows = []
    for path, record in _instance_records(results / subfolder):
        minutes, cpu_minutes = f"{record['seconds'] / 60:.1f}", NO_VALUE
        if "cpu_seconds" in record:
            cpu_minutes = f"{record['cpu_seconds'] / 60:.0f}"
        if _is_resumed(record):
            minutes = cpu_minutes = NO_VALUE
        name = _run_name(path, record, by_file)
        row = [name, str(record["iterations"]), minutes, cpu_minutes]
        rows.append([*row, record["hardware"], str(record["seed"]), f"`{record['commit']}`"])
    headings = ["run", "iterations", "minutes", "CPU minutes", "hardware", "seed", "commit"]
    return markdown_table(headings, rows)


def seeds_table(paths: Iterable[Path], columns: Sequence[Score], by_file: bool = False) -> str:
    """Returns a table of means and ranges over the seeds, by setting and number of iterations.

    Args:
        paths: files of run records. Records that have none of the scores are omitted.
        columns: the scores to show.
        by_file: whether a run is called after its file, ``NAME_SEED.json``, instead of its setting.
    """
    groups: Dict[Tuple[str, int], List[dict]] = {}
    for path in sorted(paths):
        record = read_record(path)
        title = run_title(record["config"], record["overrides"])
        if by_file:
            title = path.stem.rpartition("_")[0]
        if any(task.endswith(_FILLED_BOXES) for task in record["metrics"]):
            title += " (masks: filled boxes)"
        if any(_score(record, column.task, column.name) is not None for column in columns):
            groups.setdefault((title, record["iterations"]), []).append(record)
    rows = []
    for (title, iterations), records in sorted(groups.items()):
        cells = [
            _over_seeds([_score(record, column.task, column.name) for record in records])
            for column in columns
        ]
        rows.append([title, *cells, _seeds(records), str(iterations), _cpu_minutes(records)])
    headings = ["run", *(column.heading for column in columns)]
    return markdown_table([*headings, "seeds", "iterations", "CPU minutes a run"], rows)


def decoded_table(folder: Path) -> str:
    """Returns a table of the records of dev/decode_loops.py, with means and ranges over the seeds.

    A record is called after its model and its seed, ``NAME_SEED.json``.
    """
    groups: Dict[str, List[dict]] = {}
    for path in sorted(folder.glob("*.json")):
        groups.setdefault(path.stem.rpartition("_")[0], []).append(read_record(path))
    columns = {
        "mean": "mean best IoU",
        "predictions": "predictions",
        "same_instance_below": "pairs within an object not merged, %",
        "different_instances_above": "pairs of two objects merged, %",
    }
    rows = []
    for name, records in groups.items():
        for loops in records[0]["loops"]:
            cells = [
                _over_seeds([record["loops"][loops][column] for record in records])
                for column in columns
            ]
            rows.append([name, loops, *cells, str(len(records))])
    return markdown_table(["model", "loops", *columns.values(), "seeds"], rows)


def additions_table(folder: Path, names: Dict[str, str]) -> str:
    """Returns a table of the runs ``shapes_NAME_SEED.json`` and ``nuclei_NAME_SEED.json``.

    Args:
        folder: their folder.
        names: NAME of each row, and its label.
    """
    columns = {
        "shapes": [Score("segm", "AP", "shapes: AP"), Score("segm", "AP50", "AP50")],
        "nuclei": [
            *[Score("segm", "AP", "nuclei: AP"), Score("segm", "AP50", "AP50")],
            Score("segm_touching", "AP", "touching: AP"),
        ],
    }
    rows = []
    for name, label in names.items():
        cells = [label]
        for data, scores in columns.items():
            paths = sorted(folder.glob(f"{data}_{name}_*.json"))
            records = [read_record(path) for path in paths]
            cells += [
                (
                    _over_seeds([_score(record, score.task, score.name) for record in records])
                    if records
                    else NO_VALUE
                )
                for score in scores
            ]
        rows.append(cells)
    headings = [score.heading for scores in columns.values() for score in scores]
    return markdown_table(["form of the method", *headings], rows)


def holes_table(folder: Path) -> str:
    """Returns a table of the runs ``holes_HEAD_WEIGHT_SEED.json`` and of their holes.

    A folder holes/ has the records of dev/count_holes.py under the same names.
    """
    groups: Dict[str, List[Tuple[dict, dict]]] = {}
    for path in sorted((folder / "holes").glob("*.json")):
        records = read_record(folder / path.name), read_record(path)
        groups.setdefault(path.stem.rpartition("_")[0], []).append(records)
    columns = {
        "holes_an_image": "holes an image",
        "pixels_in_holes_an_image": "pixels in holes",
        "true_holes_an_image": "true holes an image",
    }
    rows = []
    for name, records in groups.items():
        head, weight = name.removeprefix("holes_").rsplit("_", 1)
        cells = [_over_seeds([run["metrics"]["sem_seg"]["mIoU"] for run, _ in records])]
        for column in columns:
            cells.append(_over_seeds([holes[column] for _, holes in records], digits=2))
        rows.append([head, weight, *cells, _seeds([run for run, _ in records])])
    return markdown_table(
        ["head", "weight of the pair loss", "mIoU", *columns.values(), "seeds"], rows
    )


def ablation_table(folder: Path) -> str:
    """Returns the table of an ablation: a row per setting, with mean and range over its seeds.

    A setting consists of the overrides of a run that are not shared by all runs. The reference are
    the runs without such overrides. The difference of a setting that was trained is "none" if its
    range over the seeds overlaps that of the reference. A setting that only affects inference is
    evaluated on the reference's weights of the same seed. Its difference is "none" if the sign
    depends on the seed.
    """
    records = [read_record(path) for path in sorted(folder.glob("*.json"))]
    shared = set.intersection(*(set(_pairs(record)) for record in records)) if records else set()
    groups: Dict[str, List[dict]] = {}
    for record in records:
        changed = [f"{key} {value}" for key, value in _pairs(record) if (key, value) not in shared]
        setting = ", ".join(changed) + (" (at inference only)" if not record["iterations"] else "")
        groups.setdefault(setting, []).append(record)
    reference = {record["seed"]: record["metrics"]["segm"]["AP"] for record in groups.get("", [])}
    rows = []
    for name, runs in sorted(groups.items()):
        rows.append(
            [
                name or "as configured",
                _over_seeds([run["metrics"]["segm"]["AP"] for run in runs]),
                _ablation_difference(runs, reference) if name and reference else NO_VALUE,
                _over_seeds([run["metrics"]["segm"]["AP50"] for run in runs]),
                _over_seeds([run["metrics"]["segm_touching"]["AP"] for run in runs]),
                _seeds(runs),
                str(runs[0]["iterations"]),
                _cpu_minutes(runs),
            ]
        )
    headings = ["setting", "AP", "difference", "AP50", "touching: AP", "seeds", "iterations"]
    return markdown_table([*headings, "CPU minutes a run"], rows)


def _ablation_difference(runs: Sequence[dict], reference: Dict[int, float]) -> str:
    scores = [run["metrics"]["segm"]["AP"] for run in runs]
    if runs[0]["iterations"]:
        change = statistics.mean(scores) - statistics.mean(reference.values())
        lowest, highest = min(reference.values()), max(reference.values())
        apart = max(scores) < lowest or min(scores) > highest
    else:
        changes = [score - reference[run["seed"]] for score, run in zip(scores, runs)]
        change = statistics.mean(changes)
        apart = max(changes) < 0 or min(changes) > 0
    return f"{change:+.1f}" if apart else f"none ({change:+.1f})"


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
        means = [*map(_over_seeds, scores), _difference(*scores)]
        cells.append([*row.setting(), *means, f"{higher} of {len(row.without)}"])
    headings = ["without", "with pair loss", "difference (spread)", "higher"]
    return markdown_table([*_PAIR_LOSS_SETTING, *headings], cells)


def pair_loss_runs_table(rows: Sequence[PairLossRow]) -> str:
    """Returns a table of the seeds and CPU minutes of the runs of :func:`pair_loss_table`."""
    cells = [
        [
            *row.setting(),
            _seeds(row.without),
            _cpu_minutes(row.without),
            _cpu_minutes(row.with_loss),
        ]
        for row in rows
    ]
    headings = ["seeds", "CPU minutes without", "CPU minutes with"]
    return markdown_table([*_PAIR_LOSS_SETTING, *headings], cells)


def _split_pair_loss(record: dict) -> Tuple[float, tuple, tuple]:
    """Separates the weight of the pair loss and its other keys from the rest of a run."""
    pairs = sorted(_pairs(record))
    others = tuple(pair for pair in pairs if pair[0] in _PAIR_LOSS_KEYS)
    rest = tuple(pair for pair in pairs if pair[0] not in (_PAIR_LOSS_WEIGHT, *_PAIR_LOSS_KEYS))
    run = (Path(record["config"]).stem, record["seed"], record["iterations"], rest)
    return float(dict(pairs)[_PAIR_LOSS_WEIGHT]), others, run


def read_record(path: Path) -> dict:
    """Reads a JSON record."""
    return json.loads(path.read_text())


def _instance_records(folder: Path) -> List[Tuple[Path, dict]]:
    records = [(path, read_record(path)) for path in sorted(folder.glob("*.json"))]
    return [(path, record) for path, record in records if "segm" in record.get("metrics", {})]


def _run_name(path: Path, record: dict, by_file: bool) -> str:
    return path.stem if by_file else run_title(record["config"], record["overrides"])


def _is_resumed(record: dict) -> bool:
    """Returns whether a run was resumed, so that its record only has the time of the last part."""
    return record.get("resumed_from", 0) > 0


def _pairs(record: dict) -> List[Tuple[str, str]]:
    """Returns the overrides of a run that belong to its setting."""
    overrides = record["overrides"]
    return [
        (key, value)
        for key, value in zip(overrides[::2], overrides[1::2])
        if key not in UNTITLED and not key.startswith("DATASETS.")
    ]


def _score(record: dict, task: str, name: str) -> Optional[float]:
    metrics = record["metrics"]
    return metrics.get(task, metrics.get(task + _FILLED_BOXES, {})).get(name)


def _number(value: Optional[float]) -> str:
    return NO_VALUE if value is None else f"{value:.1f}"


def _over_seeds(values: Sequence[Optional[float]], digits: int = 1) -> str:
    """Returns the mean, with the range if there are several values."""
    if None in values:
        return NO_VALUE
    mean, low, high = (
        f"{x:.{digits}f}" for x in (statistics.mean(values), min(values), max(values))
    )
    return mean if len(values) == 1 else f"{mean} ({low}–{high})"


def _seeds(records: Sequence[dict]) -> str:
    return ", ".join(sorted(str(record["seed"]) for record in records))


def _cpu_minutes(records: Sequence[dict], digits: int = 1) -> str:
    """Returns the mean CPU minutes of training of the runs that were not resumed.

    Older records have only the time of the whole run, which is marked by "in all". An evaluation
    without training has the time of the whole run, too.
    """
    runs = [record for record in records if not _is_resumed(record)]
    if not runs:
        return NO_VALUE
    trained = any(run["iterations"] for run in runs)
    parts = trained and all("training_cpu_seconds" in run for run in runs)
    seconds = [run["training_cpu_seconds" if parts else "cpu_seconds"] for run in runs]
    mark = " in all" if trained and not parts else ""
    return f"{statistics.mean(seconds) / 60:.{digits}f}{mark}"


def _difference(one: Sequence[float], other: Sequence[float]) -> str:
    """Returns the difference of two means and the larger range, bold if it exceeds the range."""
    change = statistics.mean(other) - statistics.mean(one)
    text = f"{round(change, 1) + 0.0:+.1f}"  # + 0.0: no "-0.0"
    if len(one) == 1:
        return f"{text} ({NO_VALUE})"
    spread = max(max(values) - min(values) for values in (one, other))
    bold = "**" if abs(change) > spread else ""
    return f"{bold}{text}{bold} ({spread:.1f})"
