#!/usr/bin/env python3
"""Evaluates one model after several numbers of mean-shift loops, with statistics of its pairs.

usage: python dev/decode_loops.py CONFIG WEIGHTS RECORD.json [--loops 0 1 5 10] [KEY VALUE ...]

The record holds, for each number of loops, the metrics of BestIoUEvaluator and the percentage of
pairs of pixels that are on the wrong side of the cosine at which embeddings are merged.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Dict, List

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rpe_d2.data import PixelLabelMapper  # noqa: E402
from rpe_d2.engine.run_record import current_commit, hardware, plain_numbers  # noqa: E402
from rpe_d2.engine.setup import load_config  # noqa: E402
from rpe_d2.evaluation import BestIoUEvaluator  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("weights")
    parser.add_argument("record")
    parser.add_argument("--loops", type=int, nargs="+", default=[0, 1, 5, 10])
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    cfg = load_config(args.config, ["MODEL.DEVICE", "cpu", *args.opts])
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(args.weights)
    (name,) = cfg.DATASETS.TEST
    mapper = PixelLabelMapper(cfg, is_train=True, augmentations=[])
    items = [mapper(item) for item in DatasetCatalog.get(name)]
    results = {}
    for loops in args.loops:
        model.mean_shift.test_loops = loops
        loader = build_detection_test_loader(cfg, name)
        metrics = inference_on_dataset(model, loader, BestIoUEvaluator(name))
        results[loops] = {**metrics["best_iou"], **wrong_pairs(model, items)}
    record = {
        "config": args.config,
        "overrides": args.opts,
        "weights": args.weights,
        "command": shlex.join(["python", "dev/decode_loops.py", *sys.argv[1:]]),
        "commit": current_commit(),
        "hardware": hardware(cfg.MODEL.DEVICE),
        "loops": plain_numbers(results),
    }
    Path(args.record).write_text(json.dumps(record, indent=1) + "\n")


@torch.no_grad()
def wrong_pairs(model: torch.nn.Module, items: List[dict]) -> Dict[str, float]:
    """Returns the percentages of pairs that the last loop leaves on the wrong side, over images.

    As in the pair loss, every group, background included, has the same weight, and so has every
    pair of groups.
    """
    same, different = [], []
    for item in items:
        (maps,) = model.predict_maps([item])
        x = model.embeddings_per_loop(maps.unpadded())[-1].flatten(1).T  # (H W, D)
        masks = item["instances"].gt_masks.tensor
        groups = [x[mask.flatten()] for mask in (*masks, ~masks.any(dim=0)) if mask.any()]
        for number, group in enumerate(groups):
            same.append(far(group, group, model.grouping.merge_cosine))
            for other in groups[:number]:
                different.append(1 - far(group, other, model.grouping.merge_cosine))
    return {
        "same_instance_below": 100 * float(np.mean(same)),
        "different_instances_above": 100 * float(np.mean(different)),
    }


def far(x: torch.Tensor, other: torch.Tensor, cosine: float) -> float:
    """Returns the fraction of pairs between two groups whose cosine is below a threshold."""
    return float((x @ other.T < cosine).float().mean())


if __name__ == "__main__":
    main()
