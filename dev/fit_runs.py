#!/usr/bin/env python3
"""Fits models to folders of labeled pictures with no key set, and stores what they reach.

usage: python dev/fit_runs.py NAME [NAME ...] [--seed 1] [--jobs 2] [--data ../shared/data]

Every step is a command of the program: ``rpe-d2 fit``, ``predict`` and ``evaluate``, and ``train
--eval-only`` for the AP of COCO's protocol. Pictures that are predicted are not among those that
the model was fitted to. Records are stored in results/fit/ and outputs in output/fit_runs/.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Sequence

import cv2
import numpy as np
from detectron2.data import detection_utils

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.training_runs import cpu_seconds_of  # noqa: E402
from rpe_d2.data import load_shapes  # noqa: E402
from rpe_d2.engine.run_record import current_commit, hardware  # noqa: E402
from rpe_d2.utils.label_maps import decode_labels  # noqa: E402

RESULTS = ROOT / "results" / "fit"
OUTPUT = ROOT / "output" / "fit_runs"
_IMAGES, _LABELS, _CLASSES = "images", "labels", "classes"


class Data(NamedTuple):
    """Arguments of ``rpe-d2 fit``, the pictures that are predicted and their true label maps.

    Attributes:
        fit: folders, or a COCO JSON and the folder of its images.
        images: folder of pictures.
        truth: folder of label maps.
        overrides: overrides that name these pictures as the data set of an evaluation; empty for
            no AP.
    """

    fit: List[str]
    images: str
    truth: str
    overrides: Sequence[str] = ()


def cells(folder: Path, data: str) -> Data:
    """Returns the generated fields of cells; the last one is held out."""
    case = Path(data).resolve().parent / "cases" / "label_image_cells"
    made = folder / "made"
    made.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(case.parent)}
    subprocess.run([sys.executable, case / "make.py"], cwd=made, env=environment, check=True)
    for part, numbers in (("fit", (0, 1, 2)), ("test", (3,))):
        for kind, source in ((_IMAGES, "raw"), (_LABELS, "labels")):
            (folder / part / kind).mkdir(parents=True)
            for number in numbers:
                shutil.copy(made / source / f"fov{number}.tif", folder / part / kind)
    names = [shown(folder / p / k) for p in ("fit", "test") for k in (_IMAGES, _LABELS)]
    return Data(names[:2], *names[2:])


def nuclei(folder: Path, data: str) -> Data:
    """Returns the nuclei, whose true label maps are converted from COCO's format."""
    truth = shown(folder / "truth")
    command = ["tools/convert.py", f"{data}/nuclei/val.json", truth, "--to", "tif"]
    run(command, folder / "convert.txt")
    for path in (ROOT / truth).iterdir():  # without the names of folders before those of pictures
        path.rename(path.with_name(path.name.split("__")[-1]))
    coco = repr([f"test={data}/nuclei/val.json:{data}/nuclei"])
    overrides = "DATASETS.COCO_JSONS", coco, "DATASETS.TEST", "('test',)"
    fit = [f"{data}/nuclei/train.json", f"{data}/nuclei"]
    return Data(fit, f"{data}/nuclei/val", truth, overrides)


def monuseg(folder: Path, data: str) -> Data:
    """Returns MoNuSeg's training tiles, and tiles of the same organs from other patients."""
    train, test = (f"{data}/monuseg/{part}" for part in ("train", "test_same_organ"))
    return Data([f"{train}/{_IMAGES}", f"{train}/{_LABELS}"], f"{test}/images", f"{test}/labels")


def shapes(folder: Path, data: str) -> Data:
    """Writes the shapes as pictures, label maps and maps of classes."""
    for part, split in (("fit", "train"), ("test", "val")):
        for kind in (_IMAGES, _LABELS, _CLASSES):
            (folder / part / kind).mkdir(parents=True)
        for number, record in enumerate(load_shapes(split)):
            masks = [annotation["segmentation"] for annotation in record["annotations"]]
            labels = decode_labels(masks, (record["height"], record["width"]))
            ids = [0, *(annotation["category_id"] + 1 for annotation in record["annotations"])]
            picture = detection_utils.read_image(record["file_name"], "BGR")
            for kind, content in (
                (_IMAGES, picture),
                (_LABELS, labels.astype(np.uint16)),
                (_CLASSES, np.array(ids, np.uint8)[labels]),
            ):
                cv2.imwrite(str(folder / part / kind / f"{number:04d}.png"), content)
    fit = [shown(folder / "fit" / kind) for kind in (_IMAGES, _LABELS)]
    fit += ["--classes", shown(folder / "fit" / _CLASSES)]
    test = [shown(folder / "test" / kind) for kind in (_IMAGES, _LABELS)]
    return Data(fit, *test, ("DATASETS.TEST", "('shapes_val',)"))


class Fit(NamedTuple):
    """A fit: what returns its data, further arguments and wall minutes with one thread."""

    data: Callable[[Path, str], Data]
    minutes: float
    args: str = ""


_MASK_RCNN = "--model mask_rcnn"
RUNS = {
    "cells": Fit(cells, 10),
    "nuclei": Fit(nuclei, 55),
    "nuclei_mask_rcnn": Fit(nuclei, 55, _MASK_RCNN),
    "monuseg": Fit(monuseg, 55),
    "monuseg_mask_rcnn": Fit(monuseg, 55, _MASK_RCNN),
    "shapes": Fit(shapes, 24),
    "shapes_mask_rcnn": Fit(shapes, 24, _MASK_RCNN),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=RUNS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    args = parser.parse_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(fit, name, args.seed, args.data) for name in args.names]
    for job in jobs:
        job.result()


def fit(name: str, seed: int, data: str) -> None:
    """Fits a model, measures it and stores the record."""
    case = RUNS[name]
    folder = OUTPUT / f"{name}_{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = case.data(folder, data)
    model, labels, scores = (shown(folder / part) for part in ("model", "pred", "scores.json"))
    commands = [
        [
            *["tools/fit.py", *found.fit, "--output", model, "--minutes", str(case.minutes)],
            *["--seed", str(seed), *case.args.split()],
        ],
        ["tools/predict.py", found.images, "--model", model, "--output", labels, "--save", "tif"],
        ["tools/evaluate.py", labels, found.truth, "--json", scores],
    ]
    if found.overrides:
        commands.append(
            [
                *["tools/train_net.py", "--config-file", f"{model}/config.yaml", "--eval-only"],
                *["MODEL.WEIGHTS", f"{model}/model_final.pth", "DATASETS.TRAIN", "()"],
                *[*found.overrides, "OUTPUT_DIR", f"{model}/ap"],
            ]
        )
    start = time.monotonic()
    seconds = [run(command, folder / f"log{n}.txt") for n, command in enumerate(commands)]
    state = json.loads((ROOT / model / "fit.json").read_text())
    metrics: Dict[str, Any] = {"label_maps": json.loads((ROOT / scores).read_text())["mean"]}
    if found.overrides:
        metrics.update(json.loads((ROOT / model / "ap" / "result.json").read_text())["metrics"])
    record = {
        "config": "rpe-d2 fit",
        "overrides": [],
        "command": f"python dev/fit_runs.py {name} --seed {seed}",
        "commands": [shlex.join(["python", *command]) for command in commands],
        "seed": seed,
        "minutes": case.minutes,
        "settings": {setting["key"]: setting["value"] for setting in state["settings"]},
        "tuned": state["tuned"]["opts"],
        "images": state["images"],
        "commit": current_commit(),
        "hardware": hardware("cpu"),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - start, 1),
        "fit_cpu_seconds": round(seconds[0], 1),
        "predict_cpu_seconds": round(seconds[1], 1),
        "held_out": state["scores"],
        "metrics": metrics,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}_{seed}.json").write_text(json.dumps(record, indent=1) + "\n")
    s, aji = (metrics["label_maps"][key] for key in ("S@0.5", "AJI"))
    print(f"{name}: {seconds[0] / 60:.1f} CPU minutes, S@0.5 {s:.3f}, AJI {aji:.3f}", flush=True)


def run(command: List[str], output: Path) -> float:
    """Runs a command with one thread and returns the CPU seconds of its processes."""
    seconds = cpu_seconds_of(command, output)
    if seconds is None:
        raise RuntimeError(f"failed, see {output}")
    return seconds


def shown(path: Path) -> str:
    """Returns a path as it stands in a record: relative to the repository."""
    return str(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
