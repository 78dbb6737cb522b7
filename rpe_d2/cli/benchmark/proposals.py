"""``rpe-d2 benchmark proposals``: the cost of proposal generators after the backbone."""

import argparse
import statistics
from typing import Callable, Dict, List

import torch
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import nn

from rpe_d2.engine.run_record import plain_numbers
from rpe_d2.engine.setup import load_config
from rpe_d2.engine.trainer import Trainer

from .arguments import add_noise_arguments, add_override_argument
from .measure import random_input, timed

_ALL_FOREGROUND = "all foreground"


def add_proposal_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of ``proposals``."""
    parser.add_argument(
        "configs", nargs="+", metavar="CONFIG", help="configurations with a proposal generator"
    )
    add_noise_arguments(parser, 512)
    add_override_argument(parser)


def run_proposal_benchmark(args: argparse.Namespace) -> dict:
    """Times the proposal generators of configurations with random weights, in turn.

    The cost of grouping pixels depends on the amount of foreground. A generator with an embedding
    head is measured twice: with its initial weights, and with every cell foreground, which is the
    most expensive case.

    Returns:
        By configuration: median seconds of inference after the backbone, of the generator's forward
        and backward pass in training, and of the whole training step; the generator's share of the
        step; the number of proposals; the inference time relative to that of the first
        configuration.
    """
    runs: Dict[str, Dict[str, Callable[[], object]]] = {}
    for config in args.configs:
        runs[config] = _make_run(config, args, False)
        if hasattr(runs[config]["generator"], "embedding_head"):
            runs[f"{config}, {_ALL_FOREGROUND}"] = _make_run(config, args, True)
    timed_parts = ("inference", "training", "training_step")
    seconds: Dict[str, Dict[str, List[float]]] = {
        name: {part: [] for part in timed_parts} for name in runs
    }
    for repetition in range(args.repeat + 1):  # the first is the warm-up
        for name, run in runs.items():
            for part in timed_parts:
                elapsed = timed(run[part], args.device)
                if repetition:
                    seconds[name][part].append(elapsed)
    results: Dict[str, Dict[str, float]] = {}
    for name, run in runs.items():
        median = {part: statistics.median(times) for part, times in seconds[name].items()}
        first = next(iter(results.values()))["inference_seconds"] if results else None
        results[name] = plain_numbers(
            {
                "inference_seconds": median["inference"],
                "training_seconds": median["training"],
                "training_step_seconds": median["training_step"],
                "share_of_training_step": median["training"] / median["training_step"],
                "proposals": len(run["inference"]()),
                "inference_ratio": median["inference"] / first if first else 1.0,
            }
        )
    headers = [
        "",
        "inference s",
        "training s",
        "training step s",
        "share of step",
        "proposals",
        "inference / first",
    ]
    print(
        tabulate([[name, *row.values()] for name, row in results.items()], headers, floatfmt=".3f")
    )
    return results


def _make_run(config: str, args: argparse.Namespace, all_foreground: bool) -> dict:
    cfg = load_config(config, [*args.opts, "MODEL.DEVICE", args.device, "MODEL.WEIGHTS", ""])
    seed_all_rng(0)
    model = build_model(cfg)
    if not hasattr(model, "proposal_generator"):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; allowed: models with a "
            "proposal generator"
        )
    generator: nn.Module = model.proposal_generator
    if all_foreground:
        generator.embedding_head.classifier[-1].bias.data.copy_(torch.tensor([20.0, -20.0]))
    optimizer = Trainer.build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # every repetition does the same work
    item = random_input(args, 0)
    instances = item["instances"].to(args.device)
    with torch.no_grad():
        images: ImageList = model.preprocess_image([item])
        features = model.backbone(images.tensor)

    def inference():
        generator.eval()
        with torch.no_grad():
            return generator(images, features, None)[0][0]

    def training() -> None:
        generator.train()
        leaves = {name: value.clone().requires_grad_() for name, value in features.items()}
        with EventStorage():
            _, losses = generator(images, leaves, [instances])
        sum(losses.values()).backward()

    def training_step() -> None:
        model.train()
        with EventStorage():
            loss = sum(model([item]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {
        "generator": generator,
        "inference": inference,
        "training": training,
        "training_step": training_step,
    }
