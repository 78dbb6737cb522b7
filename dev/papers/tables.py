"""Markdown tables of docs/papers.md: published figures beside those of the records in results/."""

import statistics
import textwrap
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from dev.papers import mask_proposals, pixel_embedding, scenes, spatial_propagation
from dev.papers.claims import claims_table
from dev.papers.components import components_table
from dev.papers.configurations import configurations_table
from dev.papers.entries import Figure, Measured, Paths, Row, Table
from dev.papers.links import ROOT, config_link
from dev.result_tables import NO_VALUE, cpu_minutes_of, markdown_table, over_seeds, read_record

TABLES: Tuple[Table, ...] = (
    *pixel_embedding.TABLES,
    *spatial_propagation.TABLES,
    *mask_proposals.TABLES,
    *scenes.TABLES,
)
NOT_YET = "not measured yet"
_Record = Tuple[Path, Dict[str, Any]]


def papers_tables(results: Path) -> Dict[str, str]:
    """Returns all tables by name.

    Args:
        results: the folder of the records.

    Raises:
        ValueError: A record lacks a figure.
    """
    return {
        "components": components_table(),
        "configurations of the papers": configurations_table(results),
        "claims": claims_table(),
        **{f"papers, {table.name}": paper_table(table, results) for table in TABLES},
    }


def paper_table(table: Table, results: Path) -> str:
    """Returns a table below a line that says where its figures were published."""
    rows, own = [], any(isinstance(row.ours, Measured) for row in table.rows)
    for row in table.rows:
        published = [*row.published] or [NO_VALUE] * len(table.columns)
        if not table.wide:
            published = [_joined(published)]
        rows.append([row.name, *published, *_own_cells(row, results)])
    headings = [f"published: {_joined(table.columns)}"]
    if table.wide:
        headings = list(table.columns)
    ours = f"ours: {_joined(table.ours or table.columns)}" if own else "ours"
    details = ["our data", "CPU minutes", "seeds", "configuration"]
    caption = textwrap.fill(table.caption, 100)
    return f"{caption}\n\n{markdown_table([table.subject, *headings, ours, *details], rows)}"


def _own_cells(row: Row, results: Path) -> List[str]:
    """Returns the cells of our figures, their data, minutes and seeds, and the configuration."""
    empty = [NO_VALUE] * 3
    configuration = _configuration(row)
    if not isinstance(row.ours, Measured):
        return [f"missing: {row.ours}", *empty, configuration]
    columns = [_records_of(figure.records, results) for figure in row.ours.figures]
    if not any(columns):
        return [NOT_YET, *empty, configuration]
    figures = [
        _figure(figure, records, row.ours) for figure, records in zip(row.ours.figures, columns)
    ]
    seeds = _joined(list(dict.fromkeys(_seeds(found, results) for found in columns)))
    records = [record for found in columns for record in found]
    if row.ours.training:
        records = _records_of((row.ours.training,), results) or records
    minutes, configuration = _minutes(row.ours, records), _own_configuration(records)
    return [_joined(figures), row.ours.data, minutes, seeds, configuration]


def _figure(figure: Figure, records: Sequence[_Record], ours: Measured) -> str:
    values = []
    for path, record in records:
        for value in _values(record, figure.path, path):
            values.append(None if value is None else ours.factor * value)
    return over_seeds(values, ours.digits) if values else NO_VALUE


def _values(record: Dict[str, Any], keys: str, path: Path) -> List[Any]:
    """Returns the values at a path of keys in a record.

    Raises:
        ValueError: The record has no value there.
    """
    values: List[Any] = [record]
    for key in keys.split("/"):
        try:
            if key == "*":
                values = [item for value in values for item in value]
            elif key.startswith("="):
                values = [item for value in values for item in value if item["name"] == key[1:]]
            else:
                values = [value[key] for value in values]
        except (KeyError, TypeError):
            values = []
    if not values:
        raise ValueError(f"{path.name} has nothing at {keys!r}, which dev/papers names")
    return values


def _minutes(ours: Measured, records: Sequence[_Record]) -> str:
    """Returns the mean CPU minutes of the trainings, "–" if they are not recorded."""
    if ours.seconds:
        parts = [
            statistics.mean(v for path, record in records for v in _values(record, keys, path))
            for keys in ours.seconds
        ]
        return f"{sum(parts) / 60:.1f}"
    trained = [record for _, record in records if _is_run(record) and record["iterations"]]
    return cpu_minutes_of(trained) if trained else NO_VALUE


def _is_run(record: Dict[str, Any]) -> bool:
    """Returns whether ``rpe-d2 train`` wrote a record."""
    return "iterations" in record and "metrics" in record


def _records_of(globs: Paths, results: Path) -> List[_Record]:
    """Returns the records of the first glob that matches any."""
    for glob in globs:
        paths = sorted(results.glob(glob))
        if paths:
            return [(path, read_record(path)) for path in paths]
    return []


def _seeds(records: Sequence[_Record], results: Path) -> str:
    """Returns a link to each record, called after its seed."""
    links = []
    for path, record in records:
        seed = record.get("seed", "record")
        text = ", ".join(map(str, seed)) if isinstance(seed, list) else str(seed)
        links.append(f"[{text}](results/{path.relative_to(results).as_posix()})")
    return ", ".join(links) or NO_VALUE


def _own_configuration(records: Sequence[_Record]) -> str:
    """Returns a link to the configurations of records, or the script that wrote them."""
    names = []
    for _, record in records:
        if _is_run(record) and (ROOT / record["config"]).is_file():
            names.append(config_link(record["config"].removeprefix("configs/")))
        else:
            names.append(f"`{_script(record['command'])}`")
    return ", ".join(dict.fromkeys(names))


def _script(command: str) -> str:
    """Returns the script of a command without its interpreter and its arguments."""
    words = command.split()
    return words[1] if words[0] == "python" else words[0]


def _configuration(row: Row) -> str:
    """Returns a link to the configuration of a row, with the row's overrides."""
    if not row.config:
        return NO_VALUE
    return config_link(row.config, row.changes)


def _joined(cells: Sequence[str]) -> str:
    """Joins the figures of several columns in one cell; a single dash stands for no figure."""
    if set(cells) == {NO_VALUE}:
        return NO_VALUE
    return " / ".join(cells)
