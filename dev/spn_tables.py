"""Tables of the propagation network as its authors draw it, and of sparse labels and colors."""

from pathlib import Path
from typing import Dict, List

from dev.result_tables import (
    NO_VALUE,
    cpu_minutes_of,
    markdown_table,
    over_seeds,
    read_record,
    score_of,
    seeds_of,
)

_SEM_SEG, _BAND = "sem_seg", "sem_seg_boundary_2px"
_ROWS = {
    "base": "base",
    "as_drawn": "as drawn",
    "no_propagation": "no propagation",
    "one_way": "one-way, `clipped`",
    "clipped": "three-way, `clipped`",
    "mean_merge": "mean of the directions",
    "learned_merge": "learned weights of the directions",
    "logits": "logits as input",
    "ours": "network `masks`",
}
# Slides 25 and 30 of Liu et al.: overall F-score on Helen, mIoU of FCN-8s on the validation images
# of VOC 2012.
_PUBLISHED = {
    "base": ("82.89", "65.51"),
    "as_drawn": ("89.3", "69.86"),
    "one_way": ("87.09", "60.95"),
}
_BASES = {"mnv2": "MobileNetV2", "dm05": "MobileNetV2, half as wide"}
_METHODS = ("nearest", "random_walker", "network")
_TITLES = {"nearest": "nearest", "random_walker": "random walker", "network": "network"}


def spn_tables(results: Path) -> Dict[str, str]:
    """Returns all tables by name, from the records of a folder."""
    folder = results / "class_propagation"
    return {
        "class propagation": shapes_table(folder),
        "class propagation, VOC": voc_table(folder, results / "refine"),
        "sparse labels": sparse_table(results / "sparse" / "labels.json", {"error": "error, %"}),
        "sparse color": sparse_table(
            results / "sparse" / "color.json", {"PSNR": "PSNR", "delta_E": "ΔE"}
        ),
    }


def shapes_table(folder: Path) -> str:
    """Compares the changes of the network on shapes_large, beside the published figures."""
    rows = []
    for name, title in _ROWS.items():
        records = [read_record(p) for p in sorted(folder.glob(f"shapes_{name}_[0-9].json"))]
        values = [NO_VALUE] * 4
        if records:
            scores = (
                over_seeds([score_of(r, t, "mIoU") for r in records]) for t in (_SEM_SEG, _BAND)
            )
            values = [*scores, seeds_of(records), cpu_minutes_of(records)]
        if records or name in _PUBLISHED:
            rows.append([title, *values, *_PUBLISHED.get(name, (NO_VALUE, NO_VALUE))])
    headings = ["network", "mIoU", "mIoU within 2 px", "seeds", "CPU minutes"]
    return markdown_table([*headings, "published, Helen F", "published, VOC mIoU"], rows)


def voc_table(folder: Path, bases: Path) -> str:
    """Compares two networks on VOC, on the base that they have learned from and on another one."""
    rows = []
    for base, title in _BASES.items():
        suffix = "" if base == "mnv2" else f"_{base}"
        paths = {"base": [bases / f"voc_base_{base}.json"]}
        for name in ("as_drawn", "ours"):
            paths[name] = sorted(folder.glob(f"voc_{name}{suffix}_[0-9].json"))
        for name, files in paths.items():
            for record in [read_record(path) for path in files if path.is_file()]:
                scores = [
                    score_of(record, task, "mIoU") for task in (_SEM_SEG, "sem_seg_boundary", _BAND)
                ]
                rows.append([title, _ROWS[name], *(f"{score:.1f}" for score in scores)])
    return markdown_table(["DeepLab on", "method", "mIoU", "boundary, 2 %", "2 px"], rows)


def sparse_table(path: Path, measures: Dict[str, str]) -> str:
    """Compares the methods by the share of known pixels.

    Args:
        path: the record.
        measures: the headings of its measures. An "error" is a fraction, shown in percent.
    """
    rows: List[List[str]] = []
    for scores in (read_record(path)["scores"] if path.is_file() else {}).values():
        row = [f"{100 * scores['share']:.3f}"]
        for measure in measures:
            factor = 100 if measure == "error" else 1
            row += [f"{factor * scores[method][measure]:.2f}" for method in _METHODS]
        rows.append(row)
    headings = [f"{_TITLES[m]}, {title}" for title in measures.values() for m in _METHODS]
    return markdown_table(["known pixels, %", *headings], rows)
