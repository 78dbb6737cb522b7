"""Tables of scene labeling on Stanford Background, and of DeconvNet, from results/scene/."""

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

# Pixel and class accuracy in table 3 of Pinheiro & Collobert (ICML 2014), over five folds.
_PUBLISHED = (
    ("multi-scale network + superpixels (Farabet et al.)", "78.8", "72.4"),
    ("multi-scale network + CRF (Farabet et al.)", "81.4", "76.0"),
    ("CNN1", "79.4", "69.5"),
    ("CNN2", "67.9", "58.0"),
    ("rCNN2, two passes", "79.5", "69.5"),
    ("rCNN3, two passes", "76.2", "67.2"),
    ("rCNN3, three passes, half resolution", "79.8", "69.3"),
    ("rCNN3, three passes", "80.2", "69.9"),
)
# The rows of dev/scene_runs.py, by the names of their records.
_ROWS = {
    "multi_scale": "multi-scale network",
    "multi_scale_superpixels": "multi-scale network + superpixels",
    "rcnn2": "rCNN2, two passes",
    "efficientnet_0": "EfficientNet-Lite0 (ImageNet)",
    "efficientnet_1": "EfficientNet-Lite0 (ImageNet), pair loss",
}
_SCORES = ("pACC", "mACC", "mIoU")


def scene_tables(folder: Path) -> Dict[str, str]:
    """Returns all tables by name."""
    return {
        "scene labeling": scene_table(folder),
        "DeconvNet": deconvnet_table(folder),
    }


def scene_table(folder: Path) -> str:
    """Compares the published rows with the runs ``NAME_SEED.json`` of dev/scene_runs.py.

    The last column has the holes of an image in the predicted label maps and in the true ones.
    """
    empty = [NO_VALUE] * 4
    rows = [[f"{name}, published", *scores, *empty] for name, *scores in _PUBLISHED]
    for name, title in _ROWS.items():
        records = [read_record(path) for path in sorted(folder.glob(f"{name}_[0-9]*.json"))]
        if not records:
            continue
        scores = [
            over_seeds([score_of(record, "sem_seg", score) for record in records])
            for score in _SCORES
        ]
        trained = any(record["iterations"] for record in records)
        minutes = cpu_minutes_of(records, digits=0) if trained else NO_VALUE
        rows.append([title, *scores, minutes, seeds_of(records), _holes(folder / "holes", name)])
    headings = ["network", "pixel accuracy", "class accuracy", "mIoU"]
    return markdown_table([*headings, "CPU minutes", "seeds", "holes (true ones)"], rows)


def _holes(folder: Path, name: str) -> str:
    records = [read_record(path) for path in sorted(folder.glob(f"{name}_[0-9]*.json"))]
    if not records:
        return NO_VALUE
    pred, target = (
        over_seeds([record[key] for record in records])
        for key in ("holes_an_image", "true_holes_an_image")
    )
    return f"{pred} ({target})"


def deconvnet_table(folder: Path) -> str:
    """Compares the ways to predict of dev/deconvnet_runs.py."""
    records = [read_record(path) for path in sorted(folder.glob("deconvnet_[0-9]*.json"))]
    rows: List[List[str]] = []
    for name in records[0]["scores"] if records else ():
        scores = [
            over_seeds([record["scores"][name][key] for record in records]) for key in _SCORES
        ]
        rows.append([name, *scores, seeds_of(records)])
    return markdown_table(["network", "pixel accuracy", "class accuracy", "mIoU", "seeds"], rows)
