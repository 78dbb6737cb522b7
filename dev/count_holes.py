#!/usr/bin/env python3
"""Counts the holes of predicted and of true label maps.

usage: python dev/count_holes.py CONFIG WEIGHTS RECORD.json [KEY VALUE ...]

A hole is a connected region that one class other than background encloses. Where the data have no
class "background", that is any class.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.measured_record import (  # noqa: E402
    load_model,
    parse_arguments,
    write_measured_record,
)
from rpe_d2.engine.trainer import Trainer  # noqa: E402
from rpe_d2.utils.label_maps import read_label_map  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args = parse_arguments(parser)
    start = time.perf_counter()
    cfg, model = load_model(args.config, args.weights, args.opts)
    (name,) = cfg.DATASETS.TEST
    classes = MetadataCatalog.get(name).stuff_classes
    background = classes.index("background") if "background" in classes else None
    targets = {item["file_name"]: item["sem_seg_file_name"] for item in DatasetCatalog.get(name)}
    pred, target = [], []
    with torch.no_grad():
        for (item,) in Trainer.build_test_loader(cfg, name):
            (output,) = model([item])
            pred.append(holes(output["sem_seg"].argmax(dim=0).numpy(), background))
            target.append(holes(read_label_map(targets[item["file_name"]]), background))
    measures = {
        "images": len(pred),
        "holes_an_image": float(np.mean([count for count, _ in pred])),
        "pixels_in_holes_an_image": float(np.mean([area for _, area in pred])),
        "true_holes_an_image": float(np.mean([count for count, _ in target])),
    }
    write_measured_record("dev/count_holes.py", args, cfg, start, measures)


def holes(label_map: np.ndarray, background: Optional[int]) -> tuple:
    """Returns the number of holes in the classes of a label map (H, W), and their pixels."""
    count = area = 0
    for label in np.unique(label_map):
        if label in (background, 255):
            continue
        mask = label_map == label
        inside = ndimage.binary_fill_holes(mask) & ~mask
        count += ndimage.label(inside)[1]
        area += int(inside.sum())
    return count, area


if __name__ == "__main__":
    main()
