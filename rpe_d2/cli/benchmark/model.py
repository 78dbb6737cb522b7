"""``rpe-d2 benchmark model``: training steps and inference of configurations, time and memory."""

import argparse
import itertools
import statistics
import time
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import nn

from rpe_d2.engine.checkpoint import ModelCheckpointer
from rpe_d2.engine.run_record import plain_numbers
from rpe_d2.engine.setup import check_datasets, load_config
from rpe_d2.engine.trainer import Trainer
from rpe_d2.utils.flops import inference_flops

from .arguments import add_noise_arguments, add_override_argument
from .measure import (
    measure_in_new_process,
    peak_memory_mb,
    random_input,
    synchronize,
    timed,
)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of ``model``."""
    parser.add_argument(
        "configs",
        nargs="+",
        metavar="CONFIG[@WEIGHTS]",
        help="configuration files, with or without trained weights",
    )
    add_noise_arguments(parser, 512)
    parser.add_argument("--batch", type=int, default=1, help="noise images per training step (1)")
    parser.add_argument(
        "--data",
        type=int,
        default=0,
        metavar="N",
        help="instead of noise, use N batches and N images of the data sets of each configuration, "
        "with its own sizes and batch size",
    )
    parser.add_argument(
        "--parts",
        action="store_true",
        help="also print how long each part of a training step takes",
    )
    add_override_argument(parser)


class _Parts:
    """The time of each part of training steps.

    The parts are the modules of the model, what else its forward pass does, the backward pass and
    the optimizer. A module that another one calls is a part of its own.
    """

    def __init__(self, model: nn.Module, device: str):
        self.seconds: Dict[str, float] = {}
        self._device = device
        self._open: List[str] = []
        self._last = 0.0
        for name, module in model.named_children():
            module.register_forward_pre_hook(lambda *_, name=name: self._start_module(name))
            module.register_forward_hook(lambda *_: self._stop_module())

    def start(self, name: str) -> None:
        """Starts a part, which interrupts the one around it."""
        self._count()
        self._open.append(name)

    def stop(self) -> None:
        """Ends the part that started last."""
        self._count()
        self._open.pop()

    def _start_module(self, name: str) -> None:
        if self._open:  # inference is no part of a step
            self.start(name)

    def _stop_module(self) -> None:
        if self._open:
            self.stop()

    def _count(self) -> None:
        synchronize(self._device)
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


class _Run(NamedTuple):
    """The measurements of one configuration.

    Attributes:
        training_step: runs a training step.
        inference: runs inference on one image.
        flops: counts the multiply-adds of an inference.
        parameters: the number of parameters.
        parts: the time of the parts of all training steps so far.
    """

    training_step: Callable[[], None]
    inference: Callable[[], None]
    flops: Callable[[], float]
    parameters: int
    parts: _Parts


def run_model_benchmark(args: argparse.Namespace) -> dict:
    """Times a training step and inference on one image, for all configurations in turn.

    The images are noise with brighter ellipses. The cost of inference depends on the number of
    instances that are predicted, and an untrained model may predict more or fewer than a trained
    one. ``CONFIG@WEIGHTS`` and ``--data`` measure the cost in practice.

    Returns:
        By configuration: median seconds of a training step and of the inference on an image, median
        CPU seconds of the step, peak memory of the step in MB, millions of parameters, GFLOPs of
        inference (multiply-adds, as Detectron2 counts them), both times relative to those of the
        first configuration and, with ``--parts``, mean seconds of the parts of a step.
    """
    runs = {config: _make_run(config, args) for config in args.configs}
    seconds: Dict[str, Dict[str, List[float]]] = {
        config: {"training_step": [], "inference": []} for config in runs
    }
    cpu_seconds: Dict[str, List[float]] = {config: [] for config in runs}
    repetitions = max(1, args.data) * args.repeat
    for repetition in range(repetitions + 1):  # the first is the warm-up
        for config, run in runs.items():
            for name, times in seconds[config].items():
                cpu_start = time.process_time()
                elapsed = timed(getattr(run, name), args.device)
                if repetition:
                    times.append(elapsed)
                    if name == "training_step":
                        cpu_seconds[config].append(time.process_time() - cpu_start)
            if not repetition:
                run.parts.seconds.clear()
    results: Dict[str, Dict[str, Any]] = {}
    for config, run in runs.items():
        times = {name: statistics.median(values) for name, values in seconds[config].items()}
        first = next(iter(results.values()), None)
        results[config] = plain_numbers(
            {
                "training_step_seconds": times["training_step"],
                "training_step_cpu_seconds": statistics.median(cpu_seconds[config]),
                "inference_seconds": times["inference"],
                "training_peak_mb": measure_in_new_process(
                    _measure_memory, config, args, device=args.device
                ),
                "parameters_million": run.parameters / 1e6,
                "inference_gflops": run.flops() / 1e9,
                "training_step_ratio": times["training_step"]
                / (first["training_step_seconds"] if first else times["training_step"]),
                "inference_ratio": times["inference"]
                / (first["inference_seconds"] if first else times["inference"]),
            }
        )
    headers = [
        "",
        "training step s",
        "CPU s",
        "inference s",
        "training peak MB",
        "parameters M",
        "inference GFLOPs",
        "step / first",
        "inference / first",
    ]
    rows = [[config, *row.values()] for config, row in results.items()]
    print(tabulate(rows, headers, floatfmt=".2f"))
    if args.parts:
        for config, run in runs.items():
            parts = {name: spent / repetitions for name, spent in run.parts.seconds.items()}
            results[config]["training_step_parts_seconds"] = plain_numbers(parts)
            total = sum(parts.values())
            shares = [
                [name, spent, f"{spent / total:.0%}"]
                for name, spent in sorted(parts.items(), key=lambda item: -item[1])
            ]
            print("", tabulate(shares, [config, "s", "of a step"], floatfmt=".3f"), sep="\n")
    return results


def _make_run(config: str, args: argparse.Namespace) -> _Run:
    path, _, weights = config.partition("@")
    cfg = load_config(path, [*args.opts, "MODEL.DEVICE", args.device, "MODEL.WEIGHTS", ""])
    seed_all_rng(0)
    model = build_model(cfg)
    if weights:
        ModelCheckpointer(model, complete=True).load(weights)
    optimizer = Trainer.build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # every repetition does the same work
    if args.data:
        batches, images = own_data(cfg, args.data)
    else:
        batches = [[random_input(args, seed) for seed in range(args.batch)]]
        images = batches[0][:1]
    next_batch, next_image = itertools.cycle(batches), itertools.cycle(images)
    parts = _Parts(model, args.device)

    def training_step() -> None:
        model.train()
        parts.start("rest of the forward pass")
        with EventStorage():
            loss = sum(model(next(next_batch)).values())
        parts.stop()
        parts.start("optimizer")
        optimizer.zero_grad()
        parts.start("backward pass")
        loss.backward()
        parts.stop()
        optimizer.step()
        parts.stop()

    def inference() -> None:
        model.eval()
        with torch.no_grad():
            model([next(next_image)])

    def flops() -> float:
        model.eval()
        return inference_flops(model, images[:1])

    parameters = sum(parameter.numel() for parameter in model.parameters())
    return _Run(training_step, inference, flops, parameters, parts)


def own_data(cfg: CfgNode, count: int) -> Tuple[List[list], List[dict]]:
    """Loads ``count`` training batches and test images of a configuration."""
    check_datasets(cfg)
    cfg.DATALOADER.NUM_WORKERS = 0
    batches = list(itertools.islice(iter(Trainer.build_train_loader(cfg)), count))
    images = list(itertools.islice(Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]), count))
    return batches, [image for batch in images for image in batch]


def _measure_memory(config: str, args: argparse.Namespace) -> float:
    """Measures the memory for building a model and running one training step, MB."""
    torch.set_num_threads(args.threads)
    return peak_memory_mb(lambda: _make_run(config, args).training_step(), args.device)
