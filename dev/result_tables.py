"""Markdown tables of the run records in results/."""

import json
import statistics
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from rpe_d2.engine.run_record import UNTITLED, run_title

NO_VALUE = "–"
NOT_MEASURED = "These runs have not been made yet."
# MaskProposalEvaluator adds this to the name of a task whose masks are filled boxes.
_FILLED_BOXES = "_of_filled_boxes"


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
    """Formats a Markdown table. Columns without a value in any row are omitted.

    Without rows, the result is a sentence.
    """
    rows = [list(row) for row in rows]
    if not rows:
        return NOT_MEASURED
    kept = [
        number
        for number in range(len(headings))
        if number == 0 or any(row[number] != NO_VALUE for row in rows)
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
    if table == NOT_MEASURED:
        return table
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
            over_seeds([score_of(record, task, "AP") for record in records])
            for task in ("segm", "segm_boundary")
        ]
        trained = all(record["iterations"] for record in records)
        minutes = cpu_minutes_of(records, digits=0) if trained else NO_VALUE
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
        scores = [score_of(record, "segm", name) for name in ("AP", "AP50", "AP75", "AR")]
        scores += [score_of(record, "segm_touching", name) for name in ("AP", "AP50")]
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
            Its seeds may have different numbers of iterations.
    """
    groups: Dict[Tuple[str, int], List[dict]] = {}
    for path in sorted(paths):
        record = read_record(path)
        title = run_title(record["config"], record["overrides"])
        if by_file:
            title = path.stem.rpartition("_")[0]
        if any(task.endswith(_FILLED_BOXES) for task in record["metrics"]):
            title += " (masks: filled boxes)"
        if any(score_of(record, column.task, column.name) is not None for column in columns):
            key = title, 0 if by_file else record["iterations"]
            groups.setdefault(key, []).append(record)
    # One unit for a table: older records have the time of the whole run alone.
    in_all = any(_lacks_parts(records) for records in groups.values())
    rows = []
    for (title, _), records in sorted(groups.items()):
        cells = [
            over_seeds([score_of(record, column.task, column.name) for record in records])
            for column in columns
        ]
        counts = sorted({record["iterations"] for record in records})
        iterations = "–".join(map(str, dict.fromkeys([counts[0], counts[-1]])))
        minutes = cpu_minutes_of(records, in_all=in_all)
        rows.append([title, *cells, seeds_of(records), iterations, minutes])
    headings = ["run", *(column.heading for column in columns)]
    return markdown_table([*headings, "seeds", "iterations", "CPU minutes a run"], rows)


def ablation_table(folder: Path) -> str:
    """Returns the table of an ablation: a row per setting, with mean and range over its seeds.

    A setting consists of the overrides of a run that are not shared by all runs. The reference are
    the runs without such overrides. The difference of a setting that was trained is "none" if its
    range over the seeds overlaps that of the reference. A setting that only affects inference is
    evaluated on the reference's weights of the same seed. Its difference is "none" if the sign
    depends on the seed.
    """
    records = [read_record(path) for path in sorted(folder.glob("*.json"))]
    shared = (
        set.intersection(*(set(override_pairs(record)) for record in records)) if records else set()
    )
    groups: Dict[str, List[dict]] = {}
    for record in records:
        changed = [
            f"{key} {value}" for key, value in override_pairs(record) if (key, value) not in shared
        ]
        setting = ", ".join(changed) + (" (at inference only)" if not record["iterations"] else "")
        groups.setdefault(setting, []).append(record)
    reference = {record["seed"]: record["metrics"]["segm"]["AP"] for record in groups.get("", [])}
    rows = []
    for name, runs in sorted(groups.items()):
        rows.append(
            [
                name or "as configured",
                over_seeds([run["metrics"]["segm"]["AP"] for run in runs]),
                _ablation_difference(runs, reference) if name and reference else NO_VALUE,
                over_seeds([run["metrics"]["segm"]["AP50"] for run in runs]),
                over_seeds([run["metrics"]["segm_touching"]["AP"] for run in runs]),
                seeds_of(runs),
                str(runs[0]["iterations"]),
                cpu_minutes_of(runs),
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


def override_pairs(record: dict) -> List[Tuple[str, str]]:
    """Returns the overrides of a run that belong to its setting."""
    overrides = record["overrides"]
    return [
        (key, value)
        for key, value in zip(overrides[::2], overrides[1::2])
        if key not in UNTITLED and not key.startswith("DATASETS.")
    ]


def score_of(record: dict, task: str, name: str) -> Optional[float]:
    metrics = record["metrics"]
    return metrics.get(task, metrics.get(task + _FILLED_BOXES, {})).get(name)


def _number(value: Optional[float]) -> str:
    return NO_VALUE if value is None else f"{value:.1f}"


def over_seeds(values: Sequence[Optional[float]], digits: int = 1) -> str:
    """Returns the mean, with the range if there are several values."""
    if None in values:
        return NO_VALUE
    mean, low, high = (
        f"{x:.{digits}f}" for x in (statistics.mean(values), min(values), max(values))
    )
    return mean if len(values) == 1 else f"{mean} ({low}–{high})"


def seeds_of(records: Sequence[dict]) -> str:
    return ", ".join(sorted(str(record["seed"]) for record in records))


def cpu_minutes_of(records: Sequence[dict], digits: int = 1, in_all: bool = False) -> str:
    """Returns the mean CPU minutes of training of the runs that were not resumed.

    Older records have only the time of the whole run, which is marked by "in all". An evaluation
    without training has the time of the whole run, too.

    Args:
        records: records of runs with the same setting.
        digits: digits after the point.
        in_all: whether to give the time of the whole run in any case.
    """
    runs = [record for record in records if not _is_resumed(record)]
    if not runs:
        return NO_VALUE
    trained = any(run["iterations"] for run in runs)
    parts = trained and not in_all and not _lacks_parts(runs)
    seconds = [run["training_cpu_seconds" if parts else "cpu_seconds"] for run in runs]
    mark = " in all" if trained and not parts else ""
    return f"{statistics.mean(seconds) / 60:.{digits}f}{mark}"


def _lacks_parts(records: Sequence[dict]) -> bool:
    """Returns whether the training has no time of its own in the record of some run."""
    return any("training_cpu_seconds" not in record for record in records)
