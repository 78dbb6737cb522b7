#!/usr/bin/env python3
"""Measures how well the labels or colors of a few pixels are spread to all others.

usage: python dev/sparse_runs.py train | measure labels | color ... [--seed 1] [--data DIR]

The pictures of Stanford Background are resized to 256 x 512 in output/sparse/. ``train`` trains a
network of configs/spn/sparse_labels.yaml on 300 pixels of each picture, in 15 CPU minutes.
``measure`` compares it with the nearest known pixel and with the random walker, on test pictures
and for several numbers of known pixels. The parameter of the random walker is chosen on training
pictures. Only pixels that are not given are counted. Records are stored in results/sparse/, and
those that exist are kept.
"""

import argparse
import sys
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.equal_minutes import Run, train, weights_of  # noqa: E402
from dev.measured_record import load_model, write_record  # noqa: E402
from dev.sparse_opponents import nearest, walk_labels, walk_values  # noqa: E402
from rpe_d2.data import ImageMapper, SparsePixelMapper  # noqa: E402
from rpe_d2.evaluation import color_errors  # noqa: E402
from rpe_d2.utils.files import replacing_file  # noqa: E402

GROUP = "sparse"
RESULTS, OUTPUT = ROOT / "results" / GROUP, f"output/{GROUP}"
CONFIG = "spn/sparse_labels"
SIZE = (256, 512)
MINUTES = 15
COUNTS = (75, 150, 300, 600, 1200)  # superpixels
_SETS = ",".join(
    f'"stanford_{part}={OUTPUT}/{part}/images:{OUTPUT}/{part}/labels"' for part in ("train", "test")
)
KINDS = {
    "labels": f"DATASETS.SEM_SEG_DIRS [{_SETS}]",
    "color": f"DATASETS.SEM_SEG_DIRS [{_SETS}] MODEL.SPN.NETWORK sparse_color",
}
_BETAS = (30.0, 130.0, 500.0, 2000.0, 8000.0)
_PICTURES_FOR_BETA = 8

Sums = Dict[str, List[float]]


class Example(NamedTuple):
    """A picture with a few known pixels.

    Attributes:
        item: the input of the network.
        image: (H, W, 3) uint8, what the network sees.
        truth: (H, W) labels, or (H, W, 2) a and b in 0-255.
        known: (H, W) bool.
        counted: (H, W) bool, the pixels that are evaluated.
    """

    item: Dict[str, Any]
    image: np.ndarray
    truth: np.ndarray
    known: np.ndarray
    counted: np.ndarray


def main() -> None:
    args = _parse()
    resize_pictures(Path(args.data) / "stanford_background")
    for kind in args.kinds:
        if args.what == "train":
            run = Run(CONFIG, KINDS[kind], MINUTES, (10, 60))
            if not train(kind, run, args.seed, args.data, GROUP):
                sys.exit(1)
        else:
            measure(kind, args.seed, args.pictures)


def resize_pictures(source: Path) -> None:
    """Writes the pictures and label maps of 256 x 512 that do not exist yet."""
    for part in ("train", "test"):
        for folder, suffix, method in (
            ("images", ".jpg", cv2.INTER_CUBIC),
            ("labels", ".png", cv2.INTER_NEAREST),
        ):
            target = ROOT / OUTPUT / part / folder
            target.mkdir(parents=True, exist_ok=True)
            for path in sorted((source / folder / part).glob(f"*{suffix}")):
                resized = target / f"{path.stem}.png"
                if not resized.exists():
                    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
                    picture = cv2.resize(picture, SIZE[::-1], interpolation=method)
                    with replacing_file(resized) as file:
                        file.write(cv2.imencode(".png", picture)[1].tobytes())


def measure(kind: str, seed: int, pictures: int) -> None:
    """Compares the methods and writes the record."""
    record = RESULTS / f"{kind}.json"
    if record.exists():
        return
    start = time.perf_counter()
    weights, opts = weights_of(RESULTS / f"{kind}_{seed}.json"), KINDS[kind].split()
    cfg, model = load_model(f"configs/{CONFIG}.yaml", str(ROOT / weights), opts)
    beta = _best_beta(kind, cfg)
    methods = methods_of(kind, model, beta)
    table, seconds, number = {}, dict.fromkeys(methods, 0.0), 0
    for count in COUNTS:
        sums: Dict[str, Sums] = {name: {} for name in methods}
        shares = []
        for example in examples(kind, cfg, "test", count, pictures):
            number += 1
            shares.append(float(example.known.mean()))
            for name, method in methods.items():
                before = time.process_time()
                found = method(example)
                seconds[name] += time.process_time() - before
                for measured, value in errors(kind, found, example).items():
                    sums[name].setdefault(measured, []).append(value)
        table[str(count)] = {
            "share": round(float(np.mean(shares)), 6),
            **{
                name: {key: round(float(np.mean(values)), 4) for key, values in own.items()}
                for name, own in sums.items()
            },
        }
        print(kind, count, table[str(count)], flush=True)
    write_record(
        str(record),
        "dev/sparse_runs.py",
        f"configs/{CONFIG}.yaml",
        opts,
        seed,
        start,
        {
            "weights": str(weights),
            "pictures": pictures,
            "random_walker_beta": beta,
            "cpu_seconds_per_picture": {n: round(s / number, 4) for n, s in seconds.items()},
            "scores": table,
        },
    )


def examples(kind: str, cfg: CfgNode, part: str, count: int, pictures: int) -> Iterator[Example]:
    """Yields evenly spaced pictures of a part, with one known pixel in each superpixel.

    Args:
        kind: "labels" or "color".
        cfg: the configuration of the network.
        part: "train" or "test".
        count: desired number of superpixels.
        pictures: number of pictures, or 0 for all.
    """
    pixels = SparsePixelMapper(cfg, is_train=False)
    read = ImageMapper(cfg, is_train=False)
    items = DatasetCatalog.get(f"stanford_{part}")
    chosen = np.linspace(0, len(items) - 1, min(pictures or len(items), len(items))).astype(int)
    for index in tqdm(chosen, desc=f"{part}, {count}", disable=None):
        random = np.random.default_rng(zlib.crc32(f"{items[index]['image_id']} {count}".encode()))
        item = pixels.with_pixels(read(items[index]), random, count)
        image = np.ascontiguousarray(item["image"].permute(1, 2, 0).numpy())
        if kind == "labels":
            truth, known = item["sem_seg"].numpy(), item["sparse_labels"].numpy().any(axis=0)
            counted = (truth != pixels.ignored_label) & ~known
        else:
            truth, known = 255 * item["values"].permute(1, 2, 0).numpy(), item["known"].numpy()
            counted = ~known
        yield Example(item, image, truth, known, counted)


def methods_of(
    kind: str, model: torch.nn.Module, beta: float
) -> Dict[str, Callable[[Example], np.ndarray]]:
    """Returns the compared methods by name."""

    def propagated(example: Example) -> np.ndarray:
        (output,) = model([example.item])
        if kind == "labels":
            return output["sem_seg"].argmax(dim=0).numpy()
        return 255 * output["sparse_values"].permute(1, 2, 0).numpy()

    return {
        "nearest": lambda example: nearest(example.truth, example.known),
        "random_walker": partial(_walked, kind, beta),
        "network": torch.no_grad()(propagated),
    }


def errors(kind: str, found: np.ndarray, example: Example) -> Dict[str, float]:
    """Measures a result.

    Returns:
        For labels "error", the share of wrong pixels. For color those of ``color_errors``.
    """
    pred, target = found[example.counted], example.truth[example.counted]
    if kind == "labels":
        return {"error": float((pred != target).mean())}
    lightness = example.image[example.counted][:, 0]
    return color_errors(pred.T, target.T, lightness)


def _walked(kind: str, beta: float, example: Example) -> np.ndarray:
    if kind == "labels":
        return walk_labels(example.image, example.truth, example.known, beta)
    return walk_values(example.image[..., 0], example.truth, example.known, beta)


def _best_beta(kind: str, cfg: CfgNode) -> float:
    """Chooses the parameter of the random walker on training pictures."""
    measured, sign = ("error", -1) if kind == "labels" else ("PSNR", 1)
    scores = {}
    for beta in _BETAS:
        values = [
            errors(kind, _walked(kind, beta, example), example)[measured]
            for example in examples(kind, cfg, "train", 300, _PICTURES_FOR_BETA)
        ]
        scores[beta] = sign * float(np.mean(values))
    print("random walker", kind, scores, flush=True)
    return max(scores, key=scores.get)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train", "measure"])
    parser.add_argument("kinds", nargs="+", choices=[*KINDS])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=48, help="number of test pictures; 0: all")
    parser.add_argument("--data", default="../shared/data")
    return parser.parse_args()


if __name__ == "__main__":
    main()
