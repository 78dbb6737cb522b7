#!/usr/bin/env python3
"""Trains the rule by which a refiner accepts the changes that it proposes.

usage: python dev/refine_acceptance.py FOLDER [--images 60] [--data ../shared/data]
    [--predictions RESULTS.json [RESULTS.json ...] --truth HELD_OUT.json]

FOLDER is the output of a training of configs/spn/refiner.yaml. On images that it was trained on,
labels are degraded as in the training: those of all objects, those of every second one, or none.
RESULTS.json are predictions of models for held-out images of the nuclei's training set, such as
those of the split of dev/equal_minutes.py, which are compared with the true objects.
Each region of proposed changes is better or worse than what was given, by a number of pixels, which
is the weight of its cross-entropy. Then the threshold is raised until true label maps of either
kind hardly change. The result is FOLDER/model_best.pth, which dev/ship_model.py
takes.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import numpy as np
import pycocotools.mask as mask_util
import torch
from pycocotools.coco import COCO
from torch.nn import functional as F
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.refine_runs import NUCLEI, SHAPES, examples, labels_of  # noqa: E402
from rpe_d2.refinement.acceptance import change_regions, region_features  # noqa: E402
from rpe_d2.refinement.degradation import degrade_labels  # noqa: E402
from rpe_d2.refinement.label_geometry import compact_labels  # noqa: E402
from rpe_d2.refinement.network import RefinerNetwork, build_refiner_network  # noqa: E402
from rpe_d2.refinement.proposals import propose_labels  # noqa: E402
from rpe_d2.refinement.refine import LabelRefiner, read_refiner_weights  # noqa: E402
from rpe_d2.utils.images import ImageReader  # noqa: E402

_MAX_SHIFT = 8.0
_LABEL_SCORE = 0.5
# A pixel of a prediction counts as much as so many of the degraded labels.
_PREDICTED = 3.0
_STEPS = 2000
# Share of the pixels of true objects that may change.
_MOST_CHANGED = 0.0005


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=60, help="images of each kind")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--predictions", nargs="*", default=[], help="COCO results")
    parser.add_argument("--truth", help="the JSON of their images")
    args = parser.parse_args()
    refiner = load_refiner(args.folder)
    parts = []
    true: Dict[str, List[Tuple[np.ndarray, np.ndarray, int]]] = {}
    for weight, source, *pair in label_pairs(args):
        found, gain = regions_of(refiner, *pair)
        parts.append((found, weight * gain))
        _, labels, truth = pair
        if labels is truth:
            true.setdefault(source, []).append((found, gain, np.count_nonzero(truth)))
    features, gains = (np.concatenate(part) for part in zip(*parts))
    train_rule(refiner.network, features, gains)
    for source, maps in true.items():
        found, gain, areas = zip(*maps)
        raise_threshold(
            refiner.network, np.concatenate(found), -np.concatenate(gain), sum(areas), source
        )
    save(refiner.network, args.folder)


def load_refiner(folder: Path) -> LabelRefiner:
    """Loads the refiner that a training has left, with the acceptance rule before its training."""
    torch.manual_seed(0)
    network = build_refiner_network()
    state = read_refiner_weights(folder / "model_final.pth")
    known = {f"acceptance.{k}": v for k, v in network.acceptance.state_dict().items()}
    network.load_state_dict({**known, **state})
    return LabelRefiner(network)


# Weight, source, image, label map, true label map.
Pair = Tuple[float, str, np.ndarray, np.ndarray, np.ndarray]


def label_pairs(args: argparse.Namespace) -> Iterator[Pair]:
    """Yields images with label maps of degraded truth, and with those of predictions."""
    random = np.random.default_rng(0)
    for source in (SHAPES, NUCLEI):
        for image, truth in tqdm(
            list(examples(source, "train", args.data, args.images)), desc=source
        ):
            degraded = degrade_labels(truth, random)
            every_second = np.isin(degraded, np.unique(truth)[::2])
            mixed = np.where(every_second, degraded, truth)
            for labels in (truth, degraded, mixed):
                yield 1.0, source, image, labels, truth
    for path in args.predictions:
        yield from predicted_pairs(path, args.truth, args.data)


def predicted_pairs(path: str, truth_path: str, data: str) -> Iterator[Pair]:
    """Yields label maps of predictions, in which objects have the labels of the true ones.

    A predicted object and a true one are the same if their IoU is above 0.5.
    """
    truth = COCO(truth_path)
    reader = ImageReader("RGB", "percentile:0.1,99.8")
    results = [r for r in json.loads(Path(path).read_text()) if r["score"] >= _LABEL_SCORE]
    for image_id, item in tqdm(sorted(truth.imgs.items()), desc=path):
        size = item["height"], item["width"]
        true = labels_of([truth.annToRLE(a) for a in truth.imgToAnns[image_id]], size)
        part = sorted((r for r in results if r["image_id"] == image_id), key=lambda r: r["score"])
        labels = np.zeros(size, np.int32)
        for number, result in enumerate(part, start=int(true.max()) + 1):
            labels[mask_util.decode(result["segmentation"]) > 0] = number
        renamed = labels.copy()
        for label in np.unique(labels[labels > 0]):
            mask = labels == label
            best = int(np.bincount(true[mask]).argmax())
            union = np.count_nonzero(mask | (true == best))
            if best and np.count_nonzero(mask & (true == best)) > 0.5 * union:
                renamed[mask] = best
        image = reader(f"{data}/nuclei/{item['file_name']}")
        yield _PREDICTED, path, image, renamed, true


def regions_of(
    refiner: LabelRefiner, image: np.ndarray, labels: np.ndarray, truth: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Returns the features (R, F) of proposed regions, and how many more pixels are right (R,)."""
    values, given = compact_labels(labels)
    target = np.searchsorted(values, truth).clip(max=len(values) - 1)
    target[values[target] != truth] = -1
    proposal = propose_labels(refiner._run, image, given, _MAX_SHIFT)
    regions = change_regions(given, proposal.labels)
    background = 0 if values[0] == 0 else -1
    gain = (proposal.labels == target).astype(float) - (given == target)
    return (
        region_features(given, proposal, regions, background),
        np.bincount(regions.ravel(), gain.ravel())[1:],
    )


def train_rule(network: RefinerNetwork, found: np.ndarray, pixels: np.ndarray) -> None:
    """Trains the acceptance rule, and prints how much of the possible gain it takes.

    Args:
        network: the refiner's network.
        found: (R, F) features of regions.
        pixels: (R,) how many more pixels are right in each region.
    """
    features, gains = torch.from_numpy(found), torch.from_numpy(pixels).float()
    rule = network.acceptance.requires_grad_(True)
    report("before", rule(features) > 0, gains)
    rule.mean.copy_(features.mean(dim=0))
    rule.std.copy_(features.std(dim=0) + 1e-6)
    with torch.no_grad():  # the rule before, for normalized features
        rule.linear.bias += (rule.linear.weight * rule.mean).sum()
        rule.linear.weight *= rule.std
    weights = gains.abs()
    optimizer = torch.optim.Adam(rule.parameters(), lr=0.01)
    for step in range(_STEPS):
        chosen = torch.randint(len(features), (4096,))
        loss = F.binary_cross_entropy_with_logits(
            rule(features[chosen]), (gains[chosen] > 0).float(), weights[chosen]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - step / _STEPS)
    report("after", rule(features) > 0, gains)
    rule.requires_grad_(False)


def raise_threshold(
    network: RefinerNetwork, found: np.ndarray, harm: np.ndarray, area: int, source: str
) -> None:
    """Raises the threshold of acceptance until few pixels of true label maps change.

    Args:
        network: the refiner's network.
        found: (R, F) features of regions.
        harm: (R,) how many pixels of each region would become wrong.
        area: number of pixels of all objects.
        source: name of the data.
    """
    logits = network.acceptance(torch.from_numpy(found)).numpy()
    order = np.argsort(-logits)
    share = np.cumsum(harm[order]) / area
    too_many = logits[order[share > _MOST_CHANGED]]
    threshold = max(0.0, float(too_many[0])) if len(too_many) else 0.0
    before = harm[logits > 0].sum() / area
    after = harm[logits > threshold].sum() / area
    print(f"{source}, true labels changed: {100 * before:.3f} %, then {100 * after:.3f} %")
    network.acceptance.linear.bias.data -= threshold


def save(network: RefinerNetwork, folder: Path) -> None:
    """Saves the weights as ``model_best.pth``."""
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"model": state}, folder / "model_best.pth")
    print(folder / "model_best.pth")


def report(when: str, accepted: torch.Tensor, gains: torch.Tensor) -> None:
    taken = gains[accepted]
    print(
        f"{when}: {len(gains)} regions, {int(accepted.sum())} accepted; pixels mended "
        f"{taken.clamp(min=0).sum():.0f} of {gains.clamp(min=0).sum():.0f}, harmed "
        f"{-taken.clamp(max=0).sum():.0f} of {-gains.clamp(max=0).sum():.0f}"
    )


if __name__ == "__main__":
    main()
