#!/usr/bin/env python3
"""Measures what the division of large pictures into tiles changes, and how much memory it takes.

usage: python dev/tile_runs.py equal | seams | memory [--data ../shared/data] [--side 20000]

* equal: how many objects of MoNuSeg's pictures are the same without tiles and with four of them.
* seams: S at an IoU of 0.5 of the objects on the seams of tiles, and of the others, in a picture of
  4000 x 4000 pixels that is made of 16 pictures.
* memory: the largest memory of ``rpe-d2 predict`` for a picture of 20,000 x 20,000 pixels.

The model is the shipped one, "nuclei". Records are stored in results/tiles/.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, Sequence, Tuple

import numpy as np
import tifffile
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.measured_record import write_record  # noqa: E402
from rpe_d2 import Segmenter  # noqa: E402
from rpe_d2.evaluation.label_metrics import LabelOverlaps, label_overlaps  # noqa: E402
from rpe_d2.inference.tiles import spans  # noqa: E402
from rpe_d2.utils.images import ImageReader  # noqa: E402
from rpe_d2.utils.label_maps import read_label_map  # noqa: E402

RESULTS = ROOT / "results" / "tiles"
OUTPUT = ROOT / "output" / "tiles"
MODEL = "nuclei"
# The core of a tile, which divides a picture of 1000 x 1000 pixels into four.
_QUARTER = 512
# The core and the margin of tiles where none is asked for, see rpe_d2/inference/segmenter.py.
_TILE, _MARGIN = 768, 192
_SAME_IOU, _FOUND_IOU = 0.9, 0.5
_BLOCK = 512  # side of a tile in the file of the large picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--side", type=int, default=20_000, help="of the picture of memory")
    args = parser.parse_args()
    start = time.perf_counter()
    measures = MEASURES[args.what](args)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{args.what}.json"
    write_record(str(path), "dev/tile_runs.py", MODEL, [], 0, start, measures)
    print(path.read_text())


def equal(args: argparse.Namespace) -> Dict[str, Any]:
    """Compares predictions without tiles and with four tiles."""
    model = Segmenter.load(MODEL)
    whole = tiled = same = 0
    for image, _ in tqdm(list(pictures(args.data, "train", "test_same_organ")), disable=None):
        first = model.predict(image, tile=0).labels
        second = model.predict(image, tile=_QUARTER).labels
        overlaps = label_overlaps(second, first)
        same += int((overlaps.iou >= _SAME_IOU).sum())
        whole += len(overlaps.target_areas)
        tiled += len(overlaps.pred_areas)
    return {
        "objects_without_tiles": whole,
        "objects_with_tiles": tiled,
        "equal": same,
        "equal_share": round(same / max(whole, tiled), 5),
    }


def seams(args: argparse.Namespace) -> Dict[str, Any]:
    """Compares the objects that lie on a seam with the others."""
    images, truth = zip(*pictures(args.data, "train"))
    image = mosaic(images)
    offsets = np.cumsum([0, *(int(labels.max()) for labels in truth[:-1])])
    target = mosaic([np.where(t > 0, t + o, 0) for t, o in zip(truth, offsets)])
    pred = Segmenter.load(MODEL).predict(image).labels
    cores = spans(len(image), 1.0, _TILE, _MARGIN)
    on_seam = lines(image.shape[:2], [core.core_start for core in cores[1:]])
    on_border = lines(image.shape[:2], range(1000, len(image), 1000))
    overlaps = label_overlaps(pred, target)
    kinds = {}
    for name in ("pred", "target"):
        labels = pred if name == "pred" else target
        values, indices = np.unique(labels[labels > 0], return_inverse=True)
        # Objects that the borders of the pictures cut are in neither group.
        kind = np.zeros(len(values), np.int64)
        kind[np.unique(indices[on_seam[labels > 0]])] = 1
        kind[np.unique(indices[on_border[labels > 0]])] = 2
        kinds[name] = kind
    names = {0: "elsewhere", 1: "seams"}
    return {name: scores(overlaps, kinds, kind) for kind, name in names.items()}


def scores(overlaps: LabelOverlaps, kinds: Dict[str, np.ndarray], kind: int) -> Dict[str, float]:
    """Returns S at an IoU of 0.5 of the objects of a kind."""
    found = overlaps.iou > _FOUND_IOU
    hit_target = np.zeros(len(overlaps.target_areas), bool)
    hit_target[overlaps.target[found]] = True
    hit_pred = np.zeros(len(overlaps.pred_areas), bool)
    hit_pred[overlaps.pred[found]] = True
    hits = int((hit_target & (kinds["target"] == kind)).sum())
    missed = int((~hit_target & (kinds["target"] == kind)).sum())
    false = int((~hit_pred & (kinds["pred"] == kind)).sum())
    return {
        "objects": hits + missed,
        "missed": missed,
        "false": false,
        "S@0.5": round(hits / (hits + missed + false), 4),
    }


def lines(size: Tuple[int, int], places: Any) -> np.ndarray:
    """Marks the pixels (H, W) on both sides of horizontal and of vertical lines."""
    marked = np.zeros(size, bool)
    for place in places:
        marked[place - 1 : place + 1] = marked[:, place - 1 : place + 1] = True
    return marked


def memory(args: argparse.Namespace) -> Dict[str, Any]:
    """Predicts a large picture with the program, in a process of its own."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    picture = OUTPUT / f"{args.side}.tif"
    if not picture.exists():
        write_large(picture, args)
    output = OUTPUT / f"predicted_{args.side}"
    if output.exists():
        raise SystemExit(f"{output} exists already")
    command = [sys.executable, "tools/predict.py", picture, "--model", MODEL]
    start = time.perf_counter()
    with open(OUTPUT / "predict.txt", "w") as log:
        subprocess.run(
            [*map(str, command), "--output", str(output), "--save", "tif"],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    (labels,) = output.glob("*.tif")
    with tifffile.TiffFile(labels) as file:
        shape, dtype = file.series[0].shape, str(file.series[0].dtype)
    return {
        "side": args.side,
        "largest_memory_gb": round(used.ru_maxrss / 2**20, 2),
        "cpu_seconds_of_prediction": round(used.ru_utime + used.ru_stime),
        "seconds_of_prediction": round(time.perf_counter() - start),
        "labels": {"shape": shape, "dtype": dtype},
    }


def write_large(path: Path, args: argparse.Namespace) -> None:
    """Writes a tiled TIFF file that repeats MoNuSeg's training pictures."""
    image = mosaic([image for image, _ in pictures(args.data, "train")])
    starts = range(0, args.side, _BLOCK)

    def blocks() -> Iterator[np.ndarray]:
        for top in tqdm(starts, desc="write", disable=None):
            for left in starts:
                rows, columns = (np.arange(n, n + _BLOCK) % len(image) for n in (top, left))
                yield image[np.ix_(rows, columns)]

    tifffile.imwrite(
        path,
        blocks(),
        shape=(args.side, args.side, 3),
        dtype=np.uint8,
        tile=(_BLOCK, _BLOCK),
        photometric="rgb",
        compression="zlib",
        compressionargs={"level": 1},
    )


def mosaic(images: Sequence[np.ndarray]) -> np.ndarray:
    """Puts 16 images side by side, in four rows."""
    return np.concatenate([np.concatenate(images[n : n + 4], axis=1) for n in range(0, 16, 4)])


def pictures(data: str, *parts: str) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """Yields MoNuSeg's pictures (1000, 1000, 3) uint8 RGB and their label maps."""
    reader = ImageReader("RGB")
    for part in parts:
        for path in sorted(Path(data, "monuseg", part, "images").glob("*.jpg")):
            labels = path.parents[1] / "labels" / f"{path.stem}.tif"
            yield reader(str(path)), read_label_map(str(labels))


MEASURES = {"equal": equal, "seams": seams, "memory": memory}


if __name__ == "__main__":
    main()
