"""The generated parts of the documentation: the table of configuration keys and the tables of results."""

import json
import statistics
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from dev.config_tables import config_table
from rpe_d2.engine.run_record import UNTITLED, run_title
from rpe_d2.visualization.report import comparison_table

PAGES = ("README.md", "docs/configuration.md", "docs/experiments.md")
_FILLED_BOXES = (
    "_of_filled_boxes"  # what MaskProposalEvaluator calls masks of proposals that have none
)
_PROPOSALS = [
    (f"proposals_{task}", name, f"{kind} {name}")
    for task, kind in (("segm", "mask"), ("bbox", "box"))
    for name in ("AR@10", "AR@100", "AR@1000", "R50@10", "R50@20", "R50@30", "R50@60")
]
_DETECTORS = [
    (task, name, f"{kind} {name}")
    for task, kind in (("segm", "mask"), ("bbox", "box"))
    for name in ("AP", "AP50", "AP75")
]
_BOUNDARIES = [("boundary", name, name) for name in ("ODS", "OIS", "AP")]
_REFINED_MASKS = [
    ("segm", "AP", "AP"),
    ("segm_boundary", "AP", "boundary AP"),
    ("segm_boundary_2px", "AP", "2 px"),
    ("segm_boundary_1px", "AP", "1 px"),
    ("bbox", "AP", "box AP"),
]
_SEMANTIC = [
    ("sem_seg", "mIoU", "mIoU"),
    ("sem_seg_boundary", "mIoU", "boundary mIoU"),
    ("sem_seg_boundary_1px", "mIoU", "1 px"),
]


def results_table(results: Path, subfolder: str = "", by_file: bool = False) -> str:
    """Markdown table of the run records in a folder (see :mod:`rpe_d2.engine.run_record`), by file name.

    Args:
        by_file: runs are called what their files are: what they differ by may be their commit alone.
    """
    rows = [
        "| run | AP | AP50 | AP75 | AR | touching: AP | AP50 | iterations | minutes | CPU minutes | hardware | seed | commit | record |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted((results / subfolder).glob("*.json")):
        record = json.loads(path.read_text())
        if "segm" not in record.get("metrics", {}):
            continue
        scores = _scores(record, "segm", ("AP", "AP50", "AP75", "AR"))
        touching = _scores(record, "segm_touching", ("AP", "AP50"))
        minutes, cpu = f"{record['seconds'] / 60:.1f}", "–"
        if "cpu_seconds" in record:
            cpu = f"{record['cpu_seconds'] / 60:.0f}"
        if _is_resumed(record):
            minutes = cpu = "–"
        title = path.stem if by_file else run_title(record["config"], record["overrides"])
        rows.append(
            f"| {title} | {' | '.join(scores + touching)} | {record['iterations']} "
            f"| {minutes} | {cpu} | {record['hardware']} | {record['seed']} | {record['commit']} "
            f"| [{path.name}](results/{path.relative_to(results)}) |"
        )
    return "\n".join(rows)


def _is_resumed(record: dict) -> bool:
    """Whether the record knows the time of the run's last part alone."""
    return record.get("resumed_from", 0) > 0


def _scores(record: dict, task: str, names: Tuple[str, ...]) -> List[str]:
    values = [record["metrics"].get(task, {}).get(name) for name in names]
    return ["–" if value is None else f"{value:.1f}" for value in values]


def ablation_table(folder: Path) -> str:
    """Markdown table of the run records of an ablation in a folder: one row a setting, mean and range over its seeds.

    A setting is what a run overrides beyond what all runs override. The difference is to the runs that override nothing
    more; where the ranges over the seeds overlap it is called none. Settings of inference alone, which are tried on
    weights of the same seed, have no difference where its sign depends on the seed.
    """
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    shared = set.intersection(*(set(_pairs(record)) for record in records)) if records else set()
    groups: Dict[str, List[dict]] = {}
    for record in records:
        changed = [f"{key} {value}" for key, value in _pairs(record) if (key, value) not in shared]
        setting = ", ".join(changed) + (" (at inference only)" if not record["iterations"] else "")
        groups.setdefault(setting, []).append(record)
    rows = [
        "| setting | AP | difference | AP50 | touching: AP | seeds | iterations | CPU minutes a run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    reference = {record["seed"]: record["metrics"]["segm"]["AP"] for record in groups.get("", [])}
    for name, runs in sorted(groups.items()):
        scores = [run["metrics"]["segm"]["AP"] for run in runs]
        difference = "–"
        if name and reference:
            if runs[0]["iterations"]:
                change = statistics.mean(scores) - statistics.mean(reference.values())
                apart = max(scores) < min(reference.values()) or min(scores) > max(
                    reference.values()
                )
            else:
                changes = [score - reference[run["seed"]] for score, run in zip(scores, runs)]
                change = statistics.mean(changes)
                apart = max(changes) < 0 or min(changes) > 0
            difference = f"{change:+.1f}" if apart else f"none ({change:+.1f})"
        rows.append(
            f"| {name or 'as configured'} | {_over_seeds(scores)} | {difference} "
            f"| {_over_seeds([run['metrics']['segm']['AP50'] for run in runs])} "
            f"| {_over_seeds([run['metrics']['segm_touching']['AP'] for run in runs])} "
            f"| {', '.join(sorted(str(run['seed']) for run in runs))} | {runs[0]['iterations']} "
            f"| {statistics.mean(run['cpu_seconds'] for run in runs) / 60:.1f} |"
        )
    return "\n".join(rows)


def _pairs(record: dict) -> List[Tuple[str, str]]:
    """The overrides of a run that make its setting."""
    overrides = record["overrides"]
    return [
        (key, value)
        for key, value in zip(overrides[::2], overrides[1::2])
        if key not in UNTITLED and not key.startswith("DATASETS.")
    ]


def seeds_table(folder: Path, columns: Sequence[Tuple[str, str, str]]) -> str:
    """Markdown table of the run records in a folder: one row a setting and length, mean and range over its seeds.

    Args:
        columns: metrics' task, score and heading of each column. Records that have none of them are left out.
    """
    groups: Dict[Tuple[str, int], List[dict]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        title = run_title(record["config"], record["overrides"])
        if any(task.endswith(_FILLED_BOXES) for task in record["metrics"]):
            title += " (masks: filled boxes)"
        if any(_score(record, task, name) is not None for task, name, _ in columns):
            groups.setdefault((title, record["iterations"]), []).append(record)
    rows = [
        f"| run | {' | '.join(heading for _, _, heading in columns)} | seeds | iterations | CPU minutes a run |",
        "|" + "---|" * (len(columns) + 4),
    ]
    for (title, iterations), records in sorted(groups.items()):
        cells = [
            _over_seeds([_score(record, task, name) for record in records])
            for task, name, _ in columns
        ]
        seeds = ", ".join(sorted(str(record["seed"]) for record in records))
        rows.append(
            f"| {title} | {' | '.join(cells)} | {seeds} | {iterations} | {_minutes(records)} |"
        )
    return "\n".join(rows)


def pair_loss_table(folders: Dict[str, Path]) -> str:
    """Markdown table of semantic heads with the pair loss against the same without it: means over the seeds of both.

    A row for each head, number of iterations and pair loss (its weight, and keys that only it reads). Beside a
    difference of means stands the larger of the two ranges over the seeds; bold: the difference is larger. Then, how
    many seeds have a higher score with it: runs of a seed start from the same weights and see the same batches.

    Args:
        folders: by the name of the labels trained on: run records that set ``PAIR_LOSS_WEIGHT``.

    Raises:
        ValueError: a run with it has none that differs in nothing else, or the other way round.
    """
    columns = [("sem_seg", "mIoU"), ("sem_seg_boundary", "boundary mIoU")]
    headings = [
        cell
        for _, name in columns
        for cell in (name, "with pair loss", "difference (spread)", "higher")
    ]
    rows = [
        f"| labels | configuration | pair loss | {' | '.join(headings)} | seeds | iterations "
        "| CPU minutes a run, without and with |",
        "|" + "---|" * (len(headings) + 6),
    ]
    for labels, folder in folders.items():
        without: Dict[tuple, dict] = {}  # by all that it is apart from the pair loss
        variants: Dict[tuple, Dict[tuple, dict]] = {}  # with it, by what a row shows
        for path in sorted(folder.glob("*.json")):
            record = json.loads(path.read_text())
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
                f"{folder}: {config} with SEED {seed} has no run that differs in nothing but {_PAIR_WEIGHT}"
            )
        for (name, iterations, weight, others), runs in sorted(variants.items()):
            pair = [[without[run] for run in sorted(runs)], [runs[run] for run in sorted(runs)]]
            cells = [" ".join([f"{weight:g}", *(value for _, value in others)])]
            for task, _ in columns:
                scores = [[run["metrics"][task]["mIoU"] for run in records] for records in pair]
                higher = sum(one < other for one, other in zip(*scores))
                cells += [*map(_over_seeds, scores), _difference(*scores)]
                cells.append(f"{higher} of {len(runs)}")
            seeds = ", ".join(str(record["seed"]) for record in pair[0])
            rows.append(
                f"| {labels} | {name} | {' | '.join(cells)} | {seeds} | {iterations} "
                f"| {_minutes(pair[0])} and {_minutes(pair[1])} |"
            )
    return "\n".join(rows)


_PAIR_WEIGHT = "MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT"
_OF_PAIR_LOSS = ("MODEL.RPE.PAIR_LOSS_FORM",)  # read by nothing else


def _split_pair_loss(record: dict) -> Tuple[float, tuple, tuple]:
    """Weight of the pair loss, other keys of it, and what the run is apart from both: configuration, seed, ..."""
    pairs = sorted(_pairs(record))
    others = tuple(pair for pair in pairs if pair[0] in _OF_PAIR_LOSS)
    rest = tuple(pair for pair in pairs if pair[0] not in (_PAIR_WEIGHT, *_OF_PAIR_LOSS))
    run = (Path(record["config"]).stem, record["seed"], record["iterations"], rest)
    return float(dict(pairs)[_PAIR_WEIGHT]), others, run


def _minutes(records: List[dict]) -> str:
    """Mean CPU minutes of the runs whose time is known as a whole."""
    whole = [record["cpu_seconds"] for record in records if not _is_resumed(record)]
    return f"{statistics.mean(whole) / 60:.1f}" if whole else "–"


def _difference(one: List[float], other: List[float]) -> str:
    """Of two means, and the larger of the two ranges; bold where it is larger than that; one seed has no range."""
    change = statistics.mean(other) - statistics.mean(one)
    text = f"{round(change, 1) + 0.0:+.1f}"  # no "-0.0"
    if len(one) == 1:
        return f"{text} (–)"
    spread = max(max(values) - min(values) for values in (one, other))
    bold = "**" if abs(change) > spread else ""
    return f"{bold}{text}{bold} ({spread:.1f})"


def _score(record: dict, task: str, name: str) -> Optional[float]:
    metrics = record["metrics"]
    return metrics.get(task, metrics.get(task + _FILLED_BOXES, {})).get(name)


def _over_seeds(values: List[Optional[float]]) -> str:
    """Mean, and the range where there are several."""
    if None in values:
        return "–"
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f}–{max(values):.1f})"


def compared(path: Path) -> str:
    """Markdown table of the models in a ``compare.json`` of tools/compare.py."""
    return comparison_table(json.loads(path.read_text())["rows"])


def propagation_table(path: Path) -> str:
    """Markdown table of a record of ``tools/benchmark.py spn``."""
    rows = [
        "| maps | ms | plain torch, ms | autograd over `unbind()`, ms | compiled, ms | autograd over `x[t]`, ms | "
        "faster than plain torch | than `unbind()` | than compiled | than `x[t]` | % of the limit |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in json.loads(path.read_text())["results"].items():
        if "x" not in name:
            continue
        cells = [
            f"{row[key]:.1f}" if key in row else "–"
            for key in (
                "op_milliseconds",
                "torch_milliseconds",
                "unbind_milliseconds",
                "compile_milliseconds",
                "index_milliseconds",
                "op_faster_than_torch",
                "op_faster_than_unbind",
                "op_faster_than_compile",
                "op_faster_than_index",
            )
        ]
        rows.append(f"| {name} | {' | '.join(cells)} | {100 * row['fraction_of_limit']:.0f} |")
    return "\n".join(rows)


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


def processes_table(path: Path) -> str:
    """Markdown table of a record of ``tools/benchmark.py processes``."""
    results = json.loads(path.read_text())["results"]
    model = results.pop("model")
    one = results["1"]["step_seconds"]
    rows = [
        "| processes | step, s | of it computing, s | all-reduce by itself, s | MB all-reduced a step | efficiency |",
        "|---|---|---|---|---|---|",
    ]
    for count, measured in results.items():
        alone = measured.get("all_reduce_seconds")
        rows.append(
            f"| {count} | {measured['step_seconds']:.2f} | {measured['compute_seconds']:.2f} "
            f"| {'–' if alone is None else f'{alone:.3f}'} | {measured['bytes_all_reduced'] / 1e6:.0f} "
            f"| {one / measured['step_seconds']:.2f} |"
        )
    for name, seconds in model.items():
        if name.startswith("seconds_on_"):
            rows.append(
                f"| {name.removeprefix('seconds_on_')}, predicted | {seconds:.2f} | {model['compute_seconds']:.2f} | – "
                f"| {model['bytes_all_reduced'] / 1e6:.0f} | {one / seconds:.2f} |"
            )
    return "\n".join(rows)


def generated_tables(results: Path) -> Dict[str, str]:
    """All tables by name: configuration keys, and what the records in a folder say."""
    return {
        "config keys": config_table(),
        "results": results_table(results),
        "search": results_table(results, "search", by_file=True),
        "ablations": ablation_table(results / "ablations"),
        "proposals": seeds_table(results / "proposals", _PROPOSALS),
        "detectors on proposals": seeds_table(results / "proposals", _DETECTORS),
        "benchmarks": benchmark_table(results),
        "refined masks": seeds_table(results / "spn", _REFINED_MASKS),
        "refined maps": seeds_table(results / "spn", _SEMANTIC),
        "pair loss": pair_loss_table(
            {name: results / "semantic" / name for name in ("clean", "noisy")}
        ),
        "boundaries": seeds_table(results / "boundary", _BOUNDARIES),
        "mask proposals": compared(results / "compare_proposals_shapes.json"),
        "systems on shapes": compared(results / "compare_shapes.json"),
        "systems on nuclei": compared(results / "compare_nuclei.json"),
        "propagation": propagation_table(results / "benchmark_spn.json"),
        "processes": processes_table(results / "benchmark_processes.json"),
    }


def update_pages(root: Path) -> Dict[Path, str]:
    """The pages of the documentation with the generated tables, each between two marker comments, made anew.

    Args:
        root: folder of README.md, docs/ and results/.

    Returns:
        Text by page.

    Raises:
        ValueError: a table has no place, or two.
    """
    pages = {root / name: (root / name).read_text() for name in PAGES}
    for name, table in generated_tables(root / "results").items():
        begin = f"<!-- {name}: generated by dev/update_docs.py -->"
        end = f"<!-- end of {name} -->"
        places = [page for page, text in pages.items() if begin in text and end in text]
        if len(places) != 1:
            raise ValueError(f"{begin!r} and {end!r} are in {len(places)} of {', '.join(PAGES)}")
        (page,) = places
        if page.parent != root:
            table = table.replace("](results/", "](../results/")
        head, rest = pages[page].split(begin, 1)
        pages[page] = f"{head}{begin}\n{table}\n{end}{rest.split(end, 1)[1]}"
    return pages
