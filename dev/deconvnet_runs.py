#!/usr/bin/env python3
"""Trains DeconvNet in two stages on shapes, and compares its ways to predict a semantic map.

usage: python dev/deconvnet_runs.py [--iterations 300] [--proposals 25] [--images 100] [--seed 1]

The first stage sees crops of objects, the second one whole images. As a control, the same network
is trained on whole images for the time of both. Maps are predicted for whole images, or as the sum
or the maximum over the crops of proposals of an RPN, alone and together with FCN-8s. Trainings that
exist in output/deconvnet/ are kept. The record is stored in results/scene/.
"""

import argparse
import itertools
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.measured_record import load_model, write_record  # noqa: E402
from dev.training_runs import cpu_seconds_of  # noqa: E402
from rpe_d2.baselines.proposal_scores import mean_probabilities, scores_of_proposals  # noqa: E402
from rpe_d2.engine.trainer import Trainer  # noqa: E402

OUTPUT = ROOT / "output" / "deconvnet"
RECORD = ROOT / "results" / "scene" / "deconvnet_{seed}.json"
_SIZE = 128  # of shapes, and of the crops that the network sees
DECONVNET = "semantic/deconvnet_shapes"
_QUIET = ["TEST.BOUNDARIES", "False", "TEST.EVAL_PERIOD", "0"]


class Stage(NamedTuple):
    """A training: its configuration, its length as a multiple, its overrides and its start."""

    config: str
    length: int = 1
    opts: str = ""
    start: str = ""


STAGES: Dict[str, Stage] = {
    "fcn": Stage("semantic/fcn_8s_vgg16_shapes", 2),
    "proposals": Stage("proposals/rpn_shapes", 2),
    "control": Stage(DECONVNET, 2),
    "objects": Stage(DECONVNET, 1, "INPUT.OBJECT_CROP 1.2"),
    "images": Stage(DECONVNET, 1, start="objects"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=300, help="of each stage")
    parser.add_argument("--proposals", type=int, default=25, help="proposals of an image")
    parser.add_argument("--images", type=int, default=100, help="images to evaluate")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    begin = time.perf_counter()
    used = {name: train(name, stage, args) for name, stage in STAGES.items()}
    measures = {
        "iterations": args.iterations,
        "training_cpu_seconds": {name: round(seconds, 1) for name, seconds in used.items()},
        "scores": evaluate(args),
    }
    path = str(RECORD).format(seed=args.seed)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    configs = sorted({f"configs/{stage.config}.yaml" for stage in STAGES.values()})
    write_record(path, "dev/deconvnet_runs.py", configs, [], args.seed, begin, measures)
    print(path)


def folder_of(name: str, args: argparse.Namespace) -> Path:
    return OUTPUT / f"{name}_{args.iterations}_{args.seed}"


def train(name: str, stage: Stage, args: argparse.Namespace) -> float:
    """Trains a network unless its weights exist, and returns the CPU seconds that it took."""
    folder = folder_of(name, args)
    seconds = folder / "cpu_seconds.txt"
    if not seconds.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = ["tools/train_net.py", "--config-file", f"configs/{stage.config}.yaml"]
        command += ["SOLVER.MAX_ITER", str(stage.length * args.iterations), "SEED", str(args.seed)]
        command += ["DATASETS.TEST", "()", *_QUIET, *stage.opts.split()]
        if stage.start:
            command += ["MODEL.WEIGHTS", str(folder_of(stage.start, args) / "model_final.pth")]
        used = cpu_seconds_of([*command, "OUTPUT_DIR", str(folder)], folder / "output.txt")
        if used is None:
            sys.exit(1)
        seconds.write_text(f"{used}\n")
    return float(seconds.read_text())


def evaluate(args: argparse.Namespace) -> Dict[str, Dict[str, float]]:
    """Returns mIoU, mACC and pACC of every way to predict, in percent."""
    models = {}
    for name, stage in STAGES.items():
        weights = str(folder_of(name, args) / "model_final.pth")
        opts = [*_QUIET, "OUTPUT_DIR", str(OUTPUT / "evaluation")]
        cfg, models[name] = load_model(f"configs/{stage.config}.yaml", weights, opts)
        if name == "control":
            semantic_cfg = cfg
    (data,) = semantic_cfg.DATASETS.TEST

    def whole(name: str) -> Callable[[Dict[str, Any]], torch.Tensor]:
        return lambda item: models[name]([item])[0]["sem_seg"]

    def over_proposals(combine: str) -> Callable[[Dict[str, Any]], torch.Tensor]:
        def predict(item: Dict[str, Any]) -> torch.Tensor:
            proposals = models["proposals"]([item])[0]["proposals"][: args.proposals]
            boxes = proposals.proposal_boxes.tensor
            return scores_of_proposals(models["images"], item, boxes, combine=combine, size=_SIZE)

        return predict

    ways = {
        "FCN-8s": whole("fcn"),
        "DeconvNet, one stage": whole("control"),
        "DeconvNet, two stages": whole("images"),
        "DeconvNet, sum over proposals": over_proposals("sum"),
        "DeconvNet, maximum over proposals": over_proposals("max"),
    }
    names = [*ways, *(f"{name}, with FCN-8s" for name in [*ways][1:])]
    evaluators = {name: Trainer.build_evaluator(semantic_cfg, data) for name in names}
    for evaluator in evaluators.values():
        evaluator.reset()
    loader = Trainer.build_test_loader(semantic_cfg, data)
    with torch.no_grad():
        for (item,) in itertools.islice(loader, args.images):
            scores = {name: predict(item) for name, predict in ways.items()}
            for name in [*ways][1:]:
                both = mean_probabilities(scores[name], scores["FCN-8s"])
                scores[f"{name}, with FCN-8s"] = both
            for name, evaluator in evaluators.items():
                evaluator.process([item], [{"sem_seg": scores[name]}])
    return {name: _summary(evaluator.evaluate()) for name, evaluator in evaluators.items()}


def _summary(metrics: Dict[str, Dict[str, float]]) -> Dict[str, float]:
    keys: List[str] = ["mIoU", "mACC", "pACC"]
    return {key: round(float(metrics["sem_seg"][key]), 2) for key in keys}


if __name__ == "__main__":
    main()
