"""``tools/benchmark.py model``: training step and inference of configurations, time and memory, in one run."""

import argparse
import itertools
import statistics
import time
from typing import Any, Callable, Dict, List, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.analysis import FlopCountAnalysis
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import nn

from rpe_d2.engine.checkpoint import ModelCheckpointer
from rpe_d2.engine.run_record import plain_numbers
from rpe_d2.engine.setup import check_datasets, load_config
from rpe_d2.engine.trainer import Trainer

from .memory import measure_in_new_process, peak_memory_mb


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of the subcommand."""
    parser.add_argument(
        "configs",
        nargs="+",
        metavar="CONFIG[@WEIGHTS]",
        help="configuration files, each with trained weights or without",
    )
    parser.add_argument("--height", type=int, default=512, help="of the noise images, pixels (512)")
    parser.add_argument("--width", type=int, default=512, help="of the noise images, pixels (512)")
    parser.add_argument("--batch", type=int, default=1, help="noise images in a training step (1)")
    parser.add_argument("--instances", type=int, default=10, help="ellipses an image (10)")
    parser.add_argument(
        "--data",
        type=int,
        default=0,
        metavar="N",
        help="instead of noise: N batches and N images of each configuration's own data sets, sizes and batch size",
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of all configurations"
    )


class _Run(NamedTuple):
    """What is timed of one configuration, and what is counted."""

    training_step: Callable[[], None]
    inference: Callable[[], None]
    flops: Callable[[], float]
    parameters: int


def run_model_benchmark(args: argparse.Namespace) -> dict:
    """Times a training step and inference on one image, of every configuration in turns.

    Noise images have brighter ellipses. An untrained model may find more or fewer instances than a trained one, which
    changes what inference costs: ``CONFIG@WEIGHTS`` and ``--data`` measure what a user gets.

    Returns:
        By configuration: median seconds of a training step and of the inference on an image, peak memory of the
        step, parameters, GFLOPs of inference (multiply-adds, as Detectron2 counts them), and both times relative to
        the first configuration's.
    """
    runs = {config: _make_run(config, args) for config in args.configs}
    seconds: Dict[str, Dict[str, List[float]]] = {
        config: {"training_step": [], "inference": []} for config in runs
    }
    repetitions = max(1, args.data) * args.repeat
    for repetition in range(repetitions + 1):  # the first is the warm-up
        for config, run in runs.items():
            for name, times in seconds[config].items():
                elapsed = timed(getattr(run, name), args.device)
                if repetition:
                    times.append(elapsed)
    results: Dict[str, Dict[str, Any]] = {}
    for config, run in runs.items():
        times = {name: statistics.median(values) for name, values in seconds[config].items()}
        first = next(iter(results.values()), None)
        results[config] = plain_numbers(
            {
                "training_step_seconds": times["training_step"],
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
        "inference s",
        "training peak MB",
        "parameters M",
        "inference GFLOPs",
        "step / first",
        "inference / first",
    ]
    rows = [[config, *row.values()] for config, row in results.items()]
    print(tabulate(rows, headers, floatfmt=".2f"))
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
        batches, images = _data(cfg, args.data)
    else:
        batches = [[random_input(args, seed) for seed in range(args.batch)]]
        images = batches[0][:1]
    next_batch, next_image = itertools.cycle(batches), itertools.cycle(images)

    def training_step() -> None:
        model.train()
        with EventStorage():
            loss = sum(model(next(next_batch)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def inference() -> None:
        model.eval()
        with torch.no_grad():
            model([next(next_image)])

    def flops() -> float:
        model.eval()
        return inference_flops(model, images[:1])

    parameters = sum(parameter.numel() for parameter in model.parameters())
    return _Run(training_step, inference, flops, parameters)


def _data(cfg: CfgNode, count: int):
    """Training batches and test images of a configuration."""
    check_datasets(cfg)
    cfg.DATALOADER.NUM_WORKERS = 0
    batches = list(itertools.islice(iter(Trainer.build_train_loader(cfg)), count))
    images = list(itertools.islice(Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]), count))
    return batches, [image for batch in images for image in batch]


def inference_flops(model: nn.Module, images: List[dict]) -> float:
    """Multiply-adds of an inference, as Detectron2 counts them."""
    with torch.no_grad():
        counts = FlopCountAnalysis(model, images)
        counts.set_op_handle("aten::scaled_dot_product_attention", attention_flops)
        counts.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counts.tracer_warnings("none")
        return float(counts.total())


def attention_flops(inputs: List[Any], outputs: List[Any]) -> float:
    """Multiply-adds of softmax(Q K^T) V: Q (..., N, D), K (..., M, D), V (..., M, E)."""
    query, key, value = (item.type().sizes() for item in inputs[:3])
    pairs = key[-2]
    for side in query[:-1]:
        pairs *= side
    return float(pairs * (query[-1] + value[-1]))


def random_input(args: argparse.Namespace, seed: int) -> dict:
    """A noise image of ``height`` x ``width`` pixels with ``instances`` brighter ellipses, to train on."""
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


def timed(form: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    form()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _measure_memory(config: str, args: argparse.Namespace) -> float:
    """Building a model and one training step, MB."""
    torch.set_num_threads(args.threads)
    return peak_memory_mb(lambda: _make_run(config, args).training_step(), args.device)
