#!/usr/bin/env python3
"""Measures what angles of embeddings encode around the contours of a configuration's test images.

usage: python dev/contour_angles.py CONFIG WEIGHTS RECORD.json DATASETS.BSDS DIR [KEY VALUE ...]

Without weights ("") the network is untrained. The record holds means over the images: the
correlations of the angles, single and doubled, with the orientation of the nearest contour, and R
squared of the distance to it.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.env import seed_all_rng

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.measured_record import (  # noqa: E402
    load_model,
    parse_arguments,
    write_measured_record,
)
from rpe_d2.data import BoundaryMapper  # noqa: E402
from rpe_d2.visualization import contour_angles  # noqa: E402


@torch.no_grad()
def main() -> None:
    args = parse_arguments(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    start = time.perf_counter()
    seed_all_rng(1)
    cfg, model = load_model(args.config, args.weights, args.opts)
    mapper = BoundaryMapper(cfg, is_train=True, augmentations=[])
    (name,) = cfg.DATASETS.TEST
    found = []
    for item in DatasetCatalog.get(name):
        mapped = mapper(item)
        maps, _ = model.predict_levels(mapped)
        truth = mapped["boundaries"].float().mean(dim=0).numpy()
        angles = contour_angles(maps.embeddings[0][-1], truth)
        if angles is not None:
            found.append(angles)
    measures = {"images": len(found)}
    for value in ("orientation", "doubled", "distance"):
        measures[value] = round(statistics.mean(getattr(angles, value) for angles in found), 3)
    print(measures)
    write_measured_record("dev/contour_angles.py", args, cfg, start, measures)


if __name__ == "__main__":
    main()
