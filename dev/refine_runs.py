#!/usr/bin/env python3
"""Measures what rpe_d2.refine gains on degraded labels and on stored predictions.

usage: python dev/refine_runs.py degraded | predictions [--weights FILE] [--data ../shared/data]

``degraded`` makes the errors of other models in true label maps of shapes_large_val and of the
nuclei's validation images, one kind at a time, and compares the refiner with simple methods, whose
parameters are chosen on training images. ``predictions`` refines the masks in results/predictions
and evaluates them before and after. Records are stored in results/refine/.
"""

import argparse
import gzip
import json
import shlex
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.refine_opponents import OPPONENTS, apply  # noqa: E402
from rpe_d2.data import load_shapes  # noqa: E402
from rpe_d2.engine.run_record import current_commit, hardware  # noqa: E402
from rpe_d2.evaluation.boundary_ap_evaluator import boundary_metrics  # noqa: E402
from rpe_d2.evaluation.coco_scores import instance_scores  # noqa: E402
from rpe_d2.evaluation.label_metrics import label_metrics, mean_label_metrics  # noqa: E402
from rpe_d2.evaluation.mask_boundaries import mask_boundary  # noqa: E402
from rpe_d2.refinement.degradation import DEGRADATIONS  # noqa: E402
from rpe_d2.refinement.refine import LabelRefiner  # noqa: E402
from rpe_d2.utils.images import ImageReader  # noqa: E402

RESULTS = ROOT / "results" / "refine"
PREDICTIONS = ROOT / "results" / "predictions"
# Predictions with lower scores are left out; label maps show those above the second score.
_LEAST_SCORE, _LABEL_SCORE = 0.05, 0.5
_WIDTH = 2  # of boundaries in pixels
_STRENGTH = 4.0  # of the degradations in pixels
SHAPES, NUCLEI = "shapes", "nuclei"

Example = Tuple[np.ndarray, np.ndarray]  # image (H, W, 3) uint8 RGB, true label map (H, W) int32
Method = Callable[[np.ndarray, np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["degraded", "predictions"])
    parser.add_argument("--weights", default=None)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--images", type=int, default=12, help="images of each kind")
    parser.add_argument("--methods", nargs="+", default=[*OPPONENTS], choices=[*OPPONENTS])
    args = parser.parse_args()
    start, cpu = time.time(), time.process_time()
    refiner = LabelRefiner.load(args.weights, "cpu")
    record = degraded(refiner, args) if args.what == "degraded" else predictions(refiner, args)
    content = {
        "command": shlex.join(["dev/refine_runs.py", *sys.argv[1:]]),
        "config": "configs/spn/refiner.yaml",
        "overrides": [],
        "seed": 0,
        "commit": current_commit(),
        "hardware": hardware("cpu"),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.time() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        **record,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{args.what}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(path)


def degraded(refiner: LabelRefiner, args: argparse.Namespace) -> Dict[str, Any]:
    """Compares all methods on degraded labels."""
    methods: Dict[str, Method] = {"given": lambda image, labels: labels}
    chosen = {}
    for name in args.methods:
        opponent = OPPONENTS[name]
        scores = {}
        for value in opponent.values:
            method = _method(name, value)
            rows = [
                scores_of(method(image, given), truth)["boundary_iou"]
                for source in (SHAPES, NUCLEI)
                for image, truth in examples(source, "train", args.data, 4)
                for _, given in _degradations(truth)
            ]
            scores[value] = float(np.mean(rows))
        chosen[name] = max(scores, key=scores.get)
        print(name, scores, flush=True)
        methods[name] = _method(name, chosen[name])
    methods["refine"] = lambda image, labels: refiner.refine(image, labels).result
    table: Dict[str, Any] = {}
    seconds = dict.fromkeys(methods, 0.0)
    count = 0
    for source in (SHAPES, NUCLEI):
        rows: Dict[str, Dict[str, List[Dict[str, float]]]] = {m: {} for m in methods}
        for image, truth in tqdm(list(examples(source, "val", args.data, args.images))):
            for kind, given in _degradations(truth):
                count += 1
                for name, method in methods.items():
                    start = time.process_time()
                    refined = method(image, given)
                    seconds[name] += time.process_time() - start
                    rows[name].setdefault(kind, []).append(scores_of(refined, truth))
        table[source] = {
            name: {
                kind: {key: round(float(np.mean([s[key] for s in part])), 4) for key in part[0]}
                for kind, part in kinds.items()
            }
            for name, kinds in rows.items()
        }
    return {
        "parameters": chosen,
        "cpu_seconds_per_image": {name: round(s / count, 4) for name, s in seconds.items()},
        "scores": table,
    }


def predictions(refiner: LabelRefiner, args: argparse.Namespace) -> Dict[str, Any]:
    """Refines the stored predictions of each model on the nuclei's validation images."""
    truth = COCO(f"{args.data}/nuclei/val.json")
    reader = ImageReader("RGB", "percentile:0.1,99.8")
    table = {}
    for path in sorted(PREDICTIONS.glob("*.json.gz")):
        given = json.loads(gzip.decompress(path.read_bytes()))
        given = [result for result in given if result["score"] >= _LEAST_SCORE]
        refined = []
        for image_id, item in tqdm(sorted(truth.imgs.items()), desc=path.name):
            part = sorted(
                (r for r in given if r["image_id"] == image_id), key=lambda r: -r["score"]
            )
            image = reader(f"{args.data}/nuclei/{item['file_name']}")
            masks = np.array([mask_util.decode(r["segmentation"]) for r in part], bool)
            masks = refiner.refine(image, masks.reshape(-1, *image.shape[:2])).result
            for result, mask in zip(part, masks):
                rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
                refined.append(
                    {**result, "segmentation": rle, "bbox": mask_util.toBbox(rle).tolist()}
                )
        name = path.name.removesuffix(".json.gz")
        table[name] = {
            kind: _instance_metrics(truth, results)
            for kind, results in (("given", given), ("refined", refined))
        }
        print(name, json.dumps(table[name], indent=1), flush=True)
    return {"scores": table}


def _instance_metrics(truth: COCO, results: List[Dict[str, Any]]) -> Dict[str, float]:
    """Returns COCO's AP of masks and boxes, boundary AP, and S of the label maps, in percent."""
    limit = 600
    metrics = {
        "AP": instance_scores(truth, results, limit, "segm")["AP"],
        "box AP": instance_scores(truth, results, limit, "bbox")["AP"],
        "boundary AP": boundary_metrics(truth, results, limit)["AP"],
        "boundary AP, 1 px": boundary_metrics(truth, results, limit, 1)["AP"],
    }
    images = []
    for image_id, item in truth.imgs.items():
        size = item["height"], item["width"]
        kept = [r for r in results if r["image_id"] == image_id and r["score"] >= _LABEL_SCORE]
        kept.sort(key=lambda r: r["score"])  # the best ones are drawn last
        labels = np.zeros(size, np.int32)
        for number, result in enumerate(kept, start=1):
            labels[mask_util.decode(result["segmentation"]) > 0] = number
        target = labels_of([truth.annToRLE(a) for a in truth.imgToAnns[image_id]], size)
        images.append(label_metrics(labels, target))
    mean = mean_label_metrics(images)
    metrics |= {name: 100 * mean[name] for name in ("S@0.5", "S@0.9", "S")}
    return {name: round(float(value), 2) for name, value in metrics.items()}


def _method(name: str, value: float) -> Method:
    return lambda image, labels: apply(OPPONENTS[name], value, image, labels)


def _degradations(truth: np.ndarray) -> Iterator[Tuple[str, np.ndarray]]:
    """Makes one degraded map of each kind, and the true one."""
    yield "none", truth
    for number, (name, change) in enumerate(DEGRADATIONS.items()):
        yield name, change(truth, np.random.default_rng(number), _STRENGTH)


def scores_of(labels: np.ndarray, truth: np.ndarray) -> Dict[str, float]:
    """Returns the IoU, and the IoU of boundaries of 2 pixels, as means over the true objects."""
    ious, boundaries = [], []
    for label in np.unique(truth[truth > 0]):
        pair = [np.ascontiguousarray(maps == label) for maps in (labels, truth)]
        ious.append(_iou(*pair))
        boundaries.append(_iou(*(mask_boundary(mask, _WIDTH) > 0 for mask in pair)))
    return {"iou": float(np.mean(ious)), "boundary_iou": float(np.mean(boundaries))}


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / max(1, np.count_nonzero(a | b))


def examples(source: str, split: str, data: str, count: int) -> Iterator[Example]:
    reader = ImageReader("RGB", "percentile:0.1,99.8")  # the intensities that the refiner sees
    if source == SHAPES:
        for item in load_shapes(f"large_{split}")[:count]:
            size = item["height"], item["width"]
            rles = [annotation["segmentation"] for annotation in item["annotations"]]
            yield reader(item["file_name"]), labels_of(rles, size)
        return
    coco = COCO(f"{data}/nuclei/{split}.json")
    for image_id in sorted(coco.imgs)[:: max(1, len(coco.imgs) // count)][:count]:
        item = coco.imgs[image_id]
        image = reader(f"{data}/nuclei/{item['file_name']}")
        rles = [coco.annToRLE(a) for a in coco.imgToAnns[image_id]]
        yield image, labels_of(rles, image.shape[:2])


def labels_of(rles: List[Any], size: Tuple[int, int]) -> np.ndarray:
    labels = np.zeros(size, np.int32)
    masks = [mask_util.decode(rle).astype(bool) for rle in rles]
    for number, mask in enumerate(sorted(masks, key=np.sum, reverse=True), start=1):
        labels[mask] = number
    return labels


if __name__ == "__main__":
    main()
