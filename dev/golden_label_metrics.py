#!/usr/bin/env python3
"""Writes tests/golden/label_metrics.json: values of other packages for random label maps.

usage: pip install stardist cellpose torchmetrics, then python dev/golden_label_metrics.py

Cellpose's aggregated_jaccard_index is another measure: it divides by the union of the foregrounds,
and not by the sum of the unions of pairs.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from cellpose.metrics import average_precision
from stardist.matching import matching
from torchmetrics.detection import PanopticQuality

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.evaluation.test_label_metrics import GOLDEN, random_labels  # noqa: E402


def main() -> None:
    values = {}
    for seed in range(100, 124):
        pred, target = random_labels(seed, (80, 90), 12)
        if pred.max() == 0 or target.max() == 0:
            continue  # the packages differ in what they return
        scores = {}
        for threshold in (0.5, 0.7, 0.9):
            of_stardist = matching(target, pred, thresh=threshold)
            of_cellpose = average_precision([target], [pred], [threshold])[0].item()
            assert abs(of_stardist.accuracy - of_cellpose) < 1e-6
            scores[f"S@{threshold}"] = float(of_stardist.accuracy)
            scores[f"F1@{threshold}"] = float(of_stardist.f1)
        maps = [
            torch.stack([torch.from_numpy(x.astype(int) > 0), torch.from_numpy(x.astype(int))], -1)
            for x in (pred, target)
        ]
        quality = PanopticQuality(things={1}, stuffs={0}, return_per_class=True)
        scores["PQ"] = float(quality(*(x[None].long() for x in maps)).flatten()[0])
        values[seed] = scores
    packages = {name: version(name) for name in ("stardist", "cellpose", "torchmetrics")}
    content = {"command": "python dev/golden_label_metrics.py", "packages": packages}
    GOLDEN.write_text(json.dumps({**content, "values": values}, indent=1) + "\n")


if __name__ == "__main__":
    main()
