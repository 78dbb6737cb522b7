#!/usr/bin/env python3
"""Measures the CPU seconds of a training step with several ways to save time.

usage: python dev/step_variants.py results/benchmark_step_variants.json CONFIG [CONFIG ...]

All variants of a configuration take their steps in turn, with one thread, on batches of its data.
"""

import statistics
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List

import torch
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.measured_record import write_record  # noqa: E402
from rpe_d2.cli.benchmark.model import own_data  # noqa: E402
from rpe_d2.engine.setup import load_config  # noqa: E402
from rpe_d2.engine.trainer import Trainer  # noqa: E402

VARIANTS = "plain", "channels_last", "foreach", "bfloat16"
BATCHES = 3
ROUNDS = 8
SEED = 0


def main() -> None:
    record, *configs = sys.argv[1:]
    torch.set_num_threads(1)
    start = time.perf_counter()
    found = {config: measure(config) for config in configs}
    measures = {"cpu_seconds_per_step": found}
    write_record(record, "dev/step_variants.py", configs, [], SEED, start, measures)


def measure(config: str) -> Dict[str, Dict[str, float]]:
    """Returns the median CPU seconds of a step, and their ratio to the plain ones, by variant."""
    cfg = load_config(config, ["MODEL.DEVICE", "cpu"])
    batches, _ = own_data(cfg, BATCHES)
    steps = {variant: make_step(cfg, variant) for variant in VARIANTS}
    seconds: Dict[str, List[float]] = {variant: [] for variant in VARIANTS}
    for number in range(ROUNDS + 1):
        for variant, step in steps.items():
            before = time.process_time()
            for batch in batches:
                step(batch)
            if number:  # the first round warms up
                seconds[variant].append((time.process_time() - before) / len(batches))
    plain = statistics.median(seconds["plain"])
    found = {}
    for variant, values in seconds.items():
        median = statistics.median(values)
        found[variant] = {"seconds": round(median, 3), "ratio": round(median / plain, 3)}
        print(config, variant, found[variant], flush=True)
    return found


def make_step(cfg, variant: str) -> Callable[[list], None]:
    """Builds a model of its own and returns what trains it on a batch, without changing it."""
    seed_all_rng(SEED)
    model = build_model(cfg).train()
    optimizer = Trainer.build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group.update(lr=0.0, foreach=variant == "foreach")
    if variant == "channels_last":
        model.to(memory_format=torch.channels_last)

    def step(batch: list) -> None:
        with EventStorage(), torch.autocast("cpu", enabled=variant == "bfloat16"):
            loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
