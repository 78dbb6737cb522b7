"""``tools/benchmark.py model``: training step and inference of configurations, time and memory, in one run."""

import argparse
import statistics
import time
from typing import Callable, Dict, List, Tuple

import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage
from tabulate import tabulate

from .memory import measure_in_new_process, peak_memory_mb
from .run_record import plain_numbers
from .run_setup import load_config
from .trainer import Trainer


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of the subcommand."""
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="configuration files")
    parser.add_argument("--height", type=int, default=512, help="of the images, pixels (512)")
    parser.add_argument("--width", type=int, default=512, help="of the images, pixels (512)")
    parser.add_argument("--batch", type=int, default=1, help="images a training step (1)")
    parser.add_argument("--instances", type=int, default=10, help="ellipses an image (10)")


def run_model_benchmark(args: argparse.Namespace) -> dict:
    """Times a training step on ``batch`` images and inference on one, of every configuration in turns.

    The images are noise with brighter ellipses, the weights random: what is measured does not depend on what a model
    has learned, except that an untrained one may find more or fewer instances than a trained one.
    """
    runs = {config: _model_runs(config, args) for config in args.configs}
    seconds: Dict[str, Dict[str, List[float]]] = {
        config: {name: [] for name in forms} for config, (forms, _) in runs.items()
    }
    for repetition in range(args.repeat + 1):  # the first is the warm-up
        for config, (forms, _) in runs.items():
            for name, form in forms.items():
                elapsed = _timed(form, args.device)
                if repetition:
                    seconds[config][name].append(elapsed)
    results = {}
    for config, (_, parameters) in runs.items():
        results[config] = plain_numbers(
            {
                "training_step_seconds": statistics.median(seconds[config]["training step"]),
                "inference_seconds": statistics.median(seconds[config]["inference"]),
                "training_peak_mb": measure_in_new_process(
                    _measure_memory, config, args, device=args.device
                ),
                "parameters_million": parameters / 1e6,
            }
        )
    headers = ["", "training step s", "inference s", "training peak MB", "parameters M"]
    print(
        tabulate(
            [[config, *row.values()] for config, row in results.items()], headers, floatfmt=".2f"
        )
    )
    return results


def _model_runs(config: str, args: argparse.Namespace) -> Tuple[Dict[str, Callable[[], None]], int]:
    """The two things that are timed, and the number of parameters."""
    cfg = load_config(config, ["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", ""])
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # every repetition does the same work
    batch = [_random_input(args, seed) for seed in range(args.batch)]

    def training_step() -> None:
        model.train()
        with EventStorage():
            loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def inference() -> None:
        model.eval()
        with torch.no_grad():
            model(batch[:1])

    forms = {"training step": training_step, "inference": inference}
    return forms, sum(parameter.numel() for parameter in model.parameters())


def _random_input(args: argparse.Namespace, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, args.height, args.width, generator=generator) * 100
    y = torch.arange(args.height).view(1, -1, 1)
    x = torch.arange(args.width).view(1, 1, -1)
    center = torch.rand(args.instances, 2, generator=generator) * torch.tensor(
        [args.height, args.width]
    )
    radius = (0.05 + 0.1 * torch.rand(args.instances, 2, generator=generator)) * min(
        args.height, args.width
    )
    center, radius = center.view(-1, 2, 1, 1), radius.view(-1, 2, 1, 1)
    masks = ((y - center[:, 0]) / radius[:, 0]) ** 2 + ((x - center[:, 1]) / radius[:, 1]) ** 2 < 1
    instances = Instances((args.height, args.width))
    instances.gt_masks = BitMasks(masks)
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.zeros(args.instances, dtype=torch.long)
    return {"image": (image + 100 * masks.any(dim=0)).to(torch.uint8), "instances": instances}


def _timed(form: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    form()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _measure_memory(config: str, args: argparse.Namespace) -> float:
    """Building a model and one training step, MB."""
    torch.set_num_threads(args.threads)
    return peak_memory_mb(lambda: _model_runs(config, args)[0]["training step"](), args.device)
