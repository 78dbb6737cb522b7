#!/usr/bin/env python3
"""Evaluates one model after several numbers of mean-shift loops, with statistics of its pairs.

usage: python dev/decode_loops.py [--loops 0,1,5,10] CONFIG WEIGHTS RECORD.json [KEY VALUE ...]

The record holds, for each number of loops, the metrics of BestIoUEvaluator, the percentage of
pairs of pixels that are on the wrong side of the cosine at which embeddings are merged, and the
percentage of the objects' pixels in predicted masks whose class is right: each pixel's own class,
and the class that its instance has voted for.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.measured_record import (  # noqa: E402
    load_model,
    parse_arguments,
    write_measured_record,
)
from rpe_d2.data import PixelLabelMapper  # noqa: E402
from rpe_d2.engine.run_record import plain_numbers  # noqa: E402
from rpe_d2.evaluation import BestIoUEvaluator  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loops", default="0,1,5,10", help="numbers of loops")
    args = parse_arguments(parser)
    start = time.perf_counter()
    cfg, model = load_model(args.config, args.weights, args.opts)
    (name,) = cfg.DATASETS.TEST
    mapper = PixelLabelMapper(cfg, is_train=True, augmentations=[])
    items = [mapper(item) for item in DatasetCatalog.get(name)]
    results = {
        loops: evaluate(model, name, items, loops) for loops in map(int, args.loops.split(","))
    }
    measures = {"loops": plain_numbers(results)}
    write_measured_record("dev/decode_loops.py", args, cfg, start, measures)


@torch.no_grad()
def evaluate(model: torch.nn.Module, name: str, items: List[dict], loops: int) -> Dict[str, float]:
    """Returns the metrics of a data set, whose mapped items are given, after a number of loops."""
    model.mean_shift.test_loops = loops
    merge_cosine = model.grouping.merge_cosine
    evaluator = BestIoUEvaluator(name)
    wrong, class_maps = [], []
    for item in items:
        (output,) = model([item])
        evaluator.process([item], [output])
        (maps,) = model.predict_maps([item])
        maps = maps.unpadded()
        masks, classes = item["instances"].gt_masks.tensor, item["instances"].gt_classes
        x = model.embeddings_per_loop(maps)[-1]
        wrong.append(wrong_pairs(x, [*masks, ~masks.any(dim=0)], merge_cosine))
        background = len(maps.logits) - 1
        voted = output["instances"]
        class_maps.append(
            (
                painted(masks, classes, background),
                maps.logits.argmax(dim=0),
                painted(voted.pred_masks, voted.pred_classes, background),
            )
        )
    target, by_pixel, by_vote = (
        torch.cat([m.flatten() for m in part]) for part in zip(*class_maps)
    )
    counted = (target != background) & (by_vote != background)
    same, different = (np.concatenate(part) for part in zip(*wrong))
    return {
        **evaluator.evaluate()["best_iou"],
        "same_instance_below": 100 * same.mean(),
        "different_instances_above": 100 * different.mean(),
        "right_class_by_pixel": 100 * float((by_pixel == target)[counted].float().mean()),
        "right_class_by_vote": 100 * float((by_vote == target)[counted].float().mean()),
    }


def wrong_pairs(
    x: torch.Tensor, masks: Sequence[torch.Tensor], cosine: float
) -> Tuple[List[float], List[float]]:
    """Returns the fractions of the pairs within and between groups on the wrong side of a cosine.

    As in the pair loss, every group has the same weight, and so has every pair of groups.

    Args:
        x: (D, H, W) unit vectors.
        masks: (H, W) bool, the groups.
        cosine: pairs of a group should be at or above it, and others below.
    """
    groups = [x[:, mask].T for mask in masks if mask.any()]
    same, different = [], []
    for number, group in enumerate(groups):
        same.append(float((group @ group.T < cosine).float().mean()))
        for other in groups[:number]:
            different.append(float((group @ other.T >= cosine).float().mean()))
    return same, different


def painted(masks: torch.Tensor, classes: torch.Tensor, background: int) -> torch.Tensor:
    """Returns the class map (H, W) of disjoint masks (N, H, W)."""
    class_map = torch.full(masks.shape[1:], background)
    for mask, label in zip(masks, classes):
        class_map[mask] = label
    return class_map


if __name__ == "__main__":
    main()
