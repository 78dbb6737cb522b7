"""The generated parts of the README: the table of configuration keys and the table of results."""

import inspect
import json
import re
import statistics
from pathlib import Path
from typing import Dict, List, Tuple

from detectron2.config import get_cfg

from rpe_d2 import config

_ASSIGNMENT = re.compile(r"\s*(cfg(?:\.\w+)*|\w+)\.([A-Z][A-Z_0-9]*) = (?:(\w+) = )?(.*)")


def config_table() -> str:
    """Markdown table of every key of ``add_rpe_config`` with its default and the comment above it."""
    cfg = get_cfg()
    config.add_rpe_config(cfg)
    aliases = {"cfg": ""}
    comment: List[str] = []
    rows = ["| key | default | meaning |", "|---|---|---|"]
    fresh = True  # the next comment line starts a new text
    for line in inspect.getsource(config.add_rpe_config).splitlines():
        text = line.strip()
        if text.startswith("#"):
            if fresh:
                comment = []
            fresh = False
            if not text.startswith("# ----"):
                comment.append(text.lstrip("# "))
            continue
        fresh = True
        match = _ASSIGNMENT.match(line)
        if not match:
            continue
        base, name, alias, _ = match.groups()
        root, _, rest = base.partition(".")
        key = ".".join(part for part in (aliases[root], rest, name) if part)
        if alias:  # a node
            aliases[alias] = key
            continue
        default = cfg
        for part in key.split("."):
            default = default[part]
        default = f'"{default}"' if isinstance(default, str) else default
        meaning = " ".join(comment).replace("|", "\\|")
        rows.append(f"| `{key}` | `{default}` | {meaning} |")
    return "\n".join(rows)


def results_table(folder: Path) -> str:
    """Markdown table of the run records in ``folder`` (see :mod:`rpe_d2.engine.run_record`), by file name."""
    rows = [
        "| run | AP | AP50 | AP75 | AR | touching: AP | AP50 | iterations | minutes | hardware | seed | commit | record |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if "segm" not in record.get("metrics", {}):
            continue
        scores = _scores(record, "segm", ("AP", "AP50", "AP75", "AR"))
        touching = _scores(record, "segm_touching", ("AP", "AP50"))
        rows.append(
            f"| {record['title']} | {' | '.join(scores + touching)} | {record['iterations']} "
            f"| {record['seconds'] / 60:.1f} | {record['hardware']} | {record['seed']} | {record['commit']} "
            f"| [{path.name}](results/{path.name}) |"
        )
    return "\n".join(rows)


def ablation_table(folder: Path) -> str:
    """Markdown table of the run records in ``folder/ablations``: one row a setting, over its seeds.

    The difference is to the first row, the configuration without overrides; where the ranges over the seeds overlap
    it is called none.
    """
    groups: Dict[str, List[dict]] = {}
    for path in sorted((folder / "ablations").glob("*.json")):
        record = json.loads(path.read_text())
        groups.setdefault(_setting(record), []).append(record)
    rows = [
        "| setting | AP | range | difference | AP50 | touching AP | seeds | iterations | minutes a run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    base = groups.get("")
    for name, records in sorted(groups.items()):
        scores = [record["metrics"]["segm"]["AP"] for record in records]
        difference = "–"
        if base and records is not base:
            reference = [record["metrics"]["segm"]["AP"] for record in base]
            apart = max(scores) < min(reference) or min(scores) > max(reference)
            change = statistics.mean(scores) - statistics.mean(reference)
            difference = f"{change:+.1f}" if apart else f"none ({change:+.1f})"
        ap50 = statistics.mean(record["metrics"]["segm"]["AP50"] for record in records)
        touching = statistics.mean(record["metrics"]["segm_touching"]["AP"] for record in records)
        minutes = statistics.mean(record["seconds"] for record in records) / 60
        seeds = ", ".join(sorted(str(record["seed"]) for record in records))
        rows.append(
            f"| {name or records[0]['config']} | {statistics.mean(scores):.1f} | {min(scores):.1f}–{max(scores):.1f} | {difference} "
            f"| {ap50:.1f} | {touching:.1f} | {seeds} | {records[0]['iterations']} | {minutes:.1f} |"
        )
    return "\n".join(rows)


def _setting(record: dict) -> str:
    """The overrides in which an ablation's runs differ, without the seed."""
    overrides = record["overrides"]
    shared = ("SEED", "OUTPUT_DIR", "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD", "MODEL.WEIGHTS")
    pairs = zip(overrides[::2], overrides[1::2])
    changed = [(k, v) for k, v in pairs if k not in shared and not k.startswith("DATASETS.")]
    return ", ".join(f"{key} {value}" for key, value in changed)


def _scores(record: dict, task: str, names: Tuple[str, ...]) -> List[str]:
    values = [record["metrics"].get(task, {}).get(name) for name in names]
    return ["–" if value is None else f"{value:.1f}" for value in values]


def benchmark_table(folder: Path) -> str:
    """Markdown table of the operator benchmarks in ``folder`` (``tools/benchmark.py``), by file name."""
    rows = [
        "| operator, points x dimensions | ms | dense form, ms | faster | peak MB | dense form, MB | threads | record |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if record.get("benchmark") not in ("mean-shift", "pair-loss", "cluster"):
            continue
        settings = record["settings"]
        for case, result in record["results"].items():
            size = "" if "points" in case else f"{settings['points']} "
            row = [f"{record['benchmark']} {case}, {size}x {settings['dim']}"]
            for form, field in (("op", "milliseconds"), ("dense", "milliseconds")):
                row.append(f"{result[form][field]:.0f}" if form in result else "–")
            row.append(f"{result['speedup']:.1f}" if "speedup" in result else "–")
            for form in ("op", "dense"):
                row.append(f"{result[form]['peak_mb']:.0f}" if form in result else "–")
            row += [str(settings["threads"]), f"[{path.name}](results/{path.name})"]
            rows.append(f"| {' | '.join(row)} |")
    return "\n".join(rows)


def update_readme(text: str, results: Path) -> str:
    """README text with the generated parts, each between two marker comments, made anew.

    Raises:
        ValueError: a marker is missing.
    """
    for name, table in (
        ("config keys", config_table()),
        ("results", results_table(results)),
        ("ablations", ablation_table(results)),
        ("benchmarks", benchmark_table(results)),
    ):
        begin, end = (
            f"<!-- {name}: generated by tools/update_readme.py -->",
            f"<!-- end of {name} -->",
        )
        if begin not in text or end not in text:
            raise ValueError(f"README.md lacks the marker {begin!r} or {end!r}")
        head, rest = text.split(begin, 1)
        text = f"{head}{begin}\n{table}\n{end}{rest.split(end, 1)[1]}"
    return text
