"""The table of what ``rpe-d2 fit`` reaches, from results/fit/."""

import json
from pathlib import Path

from dev.result_tables import markdown_table

_DATA = {
    "cells": "generated cells",
    "nuclei": "nuclei",
    "monuseg": "MoNuSeg",
    "shapes": "shapes",
}
_MODELS = {"": "pixel embeddings", "mask_rcnn": "Mask R-CNN", "stardist": "StarDist"}


def fit_table(folder: Path) -> str:
    """Shows the scores of label maps on held-out images, in percent, by data and model."""
    rows = []
    for path in sorted(folder.glob("*_[0-9].json")):
        record = json.loads(path.read_text())
        data, _, model = path.stem.rsplit("_", 1)[0].partition("_")
        metrics = record["metrics"]["label_maps"]
        values = [100 * metrics[name] for name in ("S@0.5", "S", "AJI", "PQ")]
        mask_ap = record["metrics"].get("segm", {}).get("AP")
        ap = "–" if mask_ap is None else f"{mask_ap:.1f}"
        minutes = f"{record['fit_cpu_seconds'] / 60:.0f}"
        rows.append([_DATA[data], _MODELS[model], *(f"{v:.1f}" for v in values), ap, minutes])
    headings = ["data", "model", "S at IoU .5", "mean S", "AJI", "PQ", "mask AP", "CPU minutes"]
    return markdown_table(headings, rows)
