"""Markdown tables of the benchmark and comparison records in results/."""

from pathlib import Path
from typing import Sequence, Tuple

from dev.result_tables import NO_VALUE, markdown_table, read_record
from rpe_d2.visualization.report import comparison_table


def compared(path: Path) -> str:
    """Returns a table of the models in a ``compare.json`` file, with all columns."""
    return comparison_table(read_record(path)["rows"])


def propagation_table(path: Path, columns: Sequence[Tuple[str, str]]) -> str:
    """Returns a table of columns of a record of ``rpe-d2 benchmark spn``.

    Args:
        path: the record.
        columns: the key and the heading of each column.
    """
    rows = []
    for name, row in read_record(path)["results"].items():
        if "x" not in name:  # other measurements: a dense CRF, the speed of a copy
            continue
        row = {**row, "percent_of_limit": 100 * row["fraction_of_limit"]}
        rows.append([name, *(f"{row[key]:.1f}" if key in row else NO_VALUE for key, _ in columns)])
    return markdown_table(["maps", *(heading for _, heading in columns)], rows)


def benchmark_table(folder: Path) -> str:
    """Returns a table of the operator benchmarks in a folder, sorted by file name."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        record = read_record(path)
        if record.get("benchmark") not in ("mean-shift", "pair-loss", "cluster"):
            continue
        settings = record["settings"]
        for case, result in record["results"].items():
            size = "" if "points" in case else f"{settings['points']} "
            row = [f"{record['benchmark']} {case}, {size}x {settings['dim']}"]
            for field in ("milliseconds", "peak_mb"):
                for form in ("op", "dense"):
                    row.append(f"{result[form][field]:.0f}" if form in result else NO_VALUE)
            speedup = f"{result['speedup']:.1f}" if "speedup" in result else NO_VALUE
            row.insert(3, speedup)
            rows.append([*row, str(settings["threads"]), f"[record](results/{path.name})"])
    headings = ["operator, points x dimensions", "ms", "dense form, ms", "faster"]
    headings += ["peak MB", "dense form, MB", "threads", "record"]
    return markdown_table(headings, rows)


def processes_table(path: Path) -> str:
    """Returns a table of a record of ``rpe-d2 benchmark processes``."""
    results = read_record(path)["results"]
    model = results.pop("model")
    one = results["1"]["step_seconds"]
    rows = []
    for count, measured in results.items():
        alone = measured.get("all_reduce_seconds")
        rows.append(
            [
                count,
                f"{measured['step_seconds']:.2f}",
                f"{measured['compute_seconds']:.2f}",
                NO_VALUE if alone is None else f"{alone:.3f}",
                f"{measured['bytes_all_reduced'] / 1e6:.0f}",
                f"{one / measured['step_seconds']:.2f}",
            ]
        )
    for name, seconds in model.items():
        if name.startswith("seconds_on_"):
            rows.append(
                [
                    f"{name.removeprefix('seconds_on_')}, predicted",
                    f"{seconds:.2f}",
                    f"{model['compute_seconds']:.2f}",
                    NO_VALUE,
                    f"{model['bytes_all_reduced'] / 1e6:.0f}",
                    f"{one / seconds:.2f}",
                ]
            )
    headings = ["processes", "step, s", "computation, s", "all-reduce alone, s"]
    return markdown_table([*headings, "MB all-reduced a step", "efficiency"], rows)
