#!/usr/bin/env python3
"""Trains the networks of the table of spatial transformers on distorted digits.

usage: python dev/attention_runs.py GROUP [GROUP ...] [--seeds 1 2 3] [--data ../shared/data]

The group "rates" compares learning rates for every network on RTS, on digits that are neither
trained on nor tested, in 20 CPU seconds each. The groups R, RTS, P and E train every network with
the best of its rates and each seed for 50 CPU seconds. Evaluation is not included. All runs are in
this process with one thread. Records are stored in results/attention/ after each run, and runs that
they hold are kept. The weights of the first seed remain in output/attention/.
"""

import argparse
import json
import math
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.distorted_digits import GRIDS, SIZE, Digits, distort, load_digits  # noqa: E402
from dev.measured_record import write_record  # noqa: E402
from rpe_d2.engine.run_record import current_commit  # noqa: E402
from rpe_d2.modeling.spatial_transformer import (  # noqa: E402
    ConvLocalization,
    FullyConnectedLocalization,
    SpatialTransformer,
)

RESULTS = ROOT / "results" / "attention"
OUTPUT = ROOT / "output" / "attention"
NETWORKS = ("FCN", "CNN")
TRANSFORMS = ("none", "affine", "projective", "tps")
RATES = (0.0005, 0.001, 0.002)
SECONDS = 50.0
SEARCH_SECONDS = 20.0
SEARCH_DISTORTION = "RTS"
BATCH = 64
_COPIES = 10  # distortions of each test digit
_LOCALIZATION_SIZE = 20  # side of the picture that a convolutional localization network sees
_WARMUP = 0.05  # share of the time in which the rate rises


class DigitNetwork(nn.Module):
    """A classifier of digits, with or without a spatial transformer before it.

    The layers are those of the paper's appendix: two fully connected layers, or convolutions of 9 x
    9 and 7 x 7 pixels with max pooling, and a linear classifier. They see 28 x 28 pixels. Larger
    pictures are averaged to that size, or sampled by the transformer.
    """

    def __init__(self, network: str, transform: str):
        """
        Args:
            network: "FCN" or "CNN".
            transform: "none", or a transformation of :class:`SpatialTransformer`.
        """
        super().__init__()
        if transform == "none":
            self.transformer: nn.Module = nn.AdaptiveAvgPool2d(SIZE)
        else:
            if network == "FCN":
                localization: nn.Module = FullyConnectedLocalization(1, SIZE)
            else:
                localization = ConvLocalization(1, _LOCALIZATION_SIZE)
            self.transformer = SpatialTransformer(localization, 32, transform, (SIZE, SIZE))
        if network == "FCN":
            layers = [nn.Flatten(), nn.Linear(SIZE**2, 256), nn.ReLU(), nn.Linear(256, 256)]
            layers += [nn.ReLU(), nn.Linear(256, 10)]
        else:
            layers = [nn.Conv2d(1, 16, 9), nn.MaxPool2d(2), nn.ReLU()]  # 28 -> 20 -> 10
            layers += [nn.Conv2d(16, 32, 7), nn.MaxPool2d(2), nn.ReLU()]  # 10 -> 4 -> 2
            layers += [nn.Flatten(), nn.Linear(32 * 2**2, 10)]
        self.classifier = nn.Sequential(*layers)
        self.to(memory_format=torch.channels_last)  # a third faster on a CPU

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the logits (N, 10) of images (N, 1, H, W) in 0-1."""
        return self.classifier(self.transformer(images))


def train(
    model: nn.Module,
    digits: Digits,
    distortion: str,
    rate: float,
    seconds: float,
    seed: int,
    max_iterations: Optional[int] = None,
) -> Dict[str, Any]:
    """Trains a model for CPU seconds, with Adam and a rate that follows a cosine of the time.

    Args:
        model: returns logits of images.
        digits: the digits, which are distorted anew in every batch.
        distortion: name of the distortion.
        rate: the largest learning rate.
        seconds: CPU seconds.
        seed: seed of the batches and of their distortions.
        max_iterations: iterations after which to stop in any case.

    Returns:
        "iterations", "training_cpu_seconds" and "loss", the mean of the last 50 iterations.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    losses: List[float] = []
    model.train()
    start = time.process_time()
    while True:
        passed = (time.process_time() - start) / seconds
        if passed >= 1 or len(losses) == max_iterations:
            break
        factor = min(1.0, passed / _WARMUP + 0.01) * 0.5 * (1 + math.cos(math.pi * passed))
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        chosen = torch.randint(len(digits.labels), (BATCH,), generator=generator)
        images = distort(digits.images[chosen], distortion, generator)
        loss = F.cross_entropy(model(images), digits.labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return {
        "iterations": len(losses),
        "training_cpu_seconds": round(time.process_time() - start, 1),
        "loss": round(sum(losses[-50:]) / max(1, len(losses[-50:])), 4),
    }


@torch.no_grad()
def error_of(model: nn.Module, digits: Digits, distortion: str) -> float:
    """Returns the share of wrong classes in percent, over ten distortions of each digit."""
    model.eval()
    generator = torch.Generator().manual_seed(0)  # the same pictures for every model
    wrong = 0
    for _ in range(_COPIES):
        images = distort(digits.images, distortion, generator)
        wrong += int((model(images).argmax(dim=1) != digits.labels).sum())
    return 100 * wrong / (_COPIES * len(digits.labels))


def run(
    parts: Dict[str, Digits],
    evaluated: str,
    distortion: str,
    network: str,
    transform: str,
    rate: float,
    seconds: float,
    seed: int,
) -> Dict[str, Any]:
    """Trains and evaluates a network, and returns what was measured.

    Args:
        parts: the digits.
        evaluated: the part on which it is evaluated.
        distortion: name of the distortion.
        network: "FCN" or "CNN".
        transform: name of the transformation, or "none".
        rate: the largest learning rate.
        seconds: CPU seconds of the training.
        seed: seed of the weights, the batches and the distortions.
    """
    start, cpu_start = time.perf_counter(), time.process_time()
    torch.manual_seed(seed)
    model = DigitNetwork(network, transform)
    measures = train(model, parts["train"], distortion, rate, seconds, seed)
    error = error_of(model, parts[evaluated], distortion)
    if evaluated == "test" and seed == 1:
        OUTPUT.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), weights_of(distortion, network, transform))
    print(f"{distortion} {network} {transform} {rate:g} seed {seed}: {error:.2f} %", flush=True)
    return {
        "seed": seed,
        "rate": rate,
        "error": round(error, 3),
        "parameters": sum(p.numel() for p in model.parameters()),
        **measures,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu_start, 1),
        "commit": current_commit(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def weights_of(distortion: str, network: str, transform: str) -> Path:
    """Returns the file of the weights of the first seed."""
    return OUTPUT / f"{distortion}_{network}_{transform}.pth"


def search(parts: Dict[str, Digits]) -> None:
    """Trains every network with each learning rate for a short time."""
    path = RESULTS / "rates.json"
    runs = _runs_of(path)
    for network in NETWORKS:
        for transform in TRANSFORMS:
            done = runs.setdefault(f"{network} {transform}", [])
            for rate in RATES:
                if rate not in [each["rate"] for each in done]:
                    case = SEARCH_DISTORTION, network, transform, rate, SEARCH_SECONDS, 1
                    done.append(run(parts, "search", *case))
                    _write(path, "rates", runs, SEARCH_SECONDS)


def table(parts: Dict[str, Digits], distortion: str, seeds: List[int]) -> None:
    """Trains every network on a distortion with each seed."""
    rates = best_rates(RESULTS / "rates.json")
    for network in NETWORKS:
        path = RESULTS / f"{distortion}_{network}.json"
        runs = _runs_of(path)
        for transform in TRANSFORMS:
            done = runs.setdefault(transform, [])
            for seed in seeds:
                if seed not in [each["seed"] for each in done]:
                    rate = rates[f"{network} {transform}"]
                    case = distortion, network, transform, rate, SECONDS, seed
                    done.append(run(parts, "test", *case))
                    _write(path, distortion, runs, SECONDS)


def best_rates(path: Path) -> Dict[str, float]:
    """Returns the rate with the lowest error for each network.

    Raises:
        FileNotFoundError: The rates were not compared.
        ValueError: The comparison is not complete.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is missing: run python dev/attention_runs.py rates")
    runs = _runs_of(path)
    for network in NETWORKS:
        for transform in TRANSFORMS:
            if len(runs.get(f"{network} {transform}", [])) < len(RATES):
                raise ValueError(
                    f"{path.name} lacks rates of {network} {transform}: run python "
                    "dev/attention_runs.py rates"
                )
    return {name: min(done, key=lambda each: each["error"])["rate"] for name, done in runs.items()}


def _runs_of(path: Path) -> Dict[str, List[Dict[str, Any]]]:
    return json.loads(path.read_text())["runs"] if path.is_file() else {}


def _write(path: Path, group: str, runs: Dict[str, List[Dict[str, Any]]], limit: float) -> None:
    """Writes the record of a group of runs, whose times are those of all runs in it."""
    all_runs = [each for done in runs.values() for each in done]
    config = {
        "distortion": SEARCH_DISTORTION if group == "rates" else group,
        "batch": BATCH,
        "optimizer": "Adam",
        "training_cpu_seconds_limit": limit,
    }
    measures = {
        "command": f"python dev/attention_runs.py {group}",
        "seconds": round(sum(each["seconds"] for each in all_runs), 1),
        "cpu_seconds": round(sum(each["cpu_seconds"] for each in all_runs), 1),
        "runs": runs,
    }
    seeds = sorted({each["seed"] for each in all_runs})
    path.parent.mkdir(parents=True, exist_ok=True)
    script = "dev/attention_runs.py"
    write_record(str(path), script, config, [], seeds, time.perf_counter(), measures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="+", choices=["rates", *GRIDS], metavar="GROUP")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = load_digits(Path(args.data) / "mnist_digits" / "digits.npz")
    for group in args.groups:
        if group == "rates":
            search(parts)
        else:
            table(parts, group, args.seeds)


if __name__ == "__main__":
    main()
