#!/usr/bin/env python3
"""Trains StarDist on the images of a fit for given CPU minutes and writes label maps.

usage: PYTHON dev/stardist_run.py FIT IMAGES OUTPUT --minutes 60 [--seed 1]

PYTHON belongs to an environment with the packages stardist, tensorflow-cpu, pycocotools and psutil.
FIT is the folder of a ``rpe-d2 fit``: StarDist trains on its images and chooses its thresholds on
its held-out images. The settings are those of StarDist's example notebook; its learning rate falls
by a cosine to the end of the minutes. Intensities are scaled by the same percentiles as there.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Dict, List, Tuple

for _name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ[_name] = "1"

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import pycocotools.mask as mask_util  # noqa: E402
import tifffile  # noqa: E402
from csbdeep.utils import normalize  # noqa: E402
from keras.callbacks import Callback  # noqa: E402
from PIL import Image  # noqa: E402
from stardist import fill_label_holes  # noqa: E402
from stardist.models import Config2D, StarDist2D  # noqa: E402

_PATCH = 256
_RAYS = 32


class _UntilCPUTime(Callback):
    """Lets the learning rate fall by a cosine, and stops when the CPU time is used."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds, self.start, self.steps = seconds, cpu_seconds(), 0

    def on_train_begin(self, logs: object = None) -> None:
        self.rate = float(self.model.optimizer.learning_rate.numpy())

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.steps += 1
        part = (cpu_seconds() - self.start) / self.seconds
        self.model.optimizer.learning_rate.assign(
            self.rate * (1 + np.cos(np.pi * min(part, 1))) / 2
        )
        if part >= 1:
            self.model.stop_training = True


def cpu_seconds() -> float:
    return sum(psutil.Process().cpu_times()[:4])


def read_part(path: Path) -> Tuple[List[np.ndarray], List[np.ndarray]]:
    """Returns normalized images (H, W, 3) and label maps (H, W) of a JSON in COCO's format."""
    content = json.loads(path.read_text())
    objects: Dict[int, list] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        objects[annotation["image_id"]].append(annotation["segmentation"])
    images, labels = [], []
    for image in content["images"]:
        target = np.zeros((image["height"], image["width"]), np.uint16)
        for number, rle in enumerate(objects[image["id"]], start=1):
            target[mask_util.decode(rle) > 0] = number
        images.append(read_image(Path(image["file_name"])))
        labels.append(fill_label_holes(target))
    return images, labels


def read_image(path: Path) -> np.ndarray:
    return normalize(np.asarray(Image.open(path).convert("RGB")), 1, 99.8, axis=(0, 1))


def augment(image: np.ndarray, labels: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Flips, turns and changes intensities, as the notebook does."""
    turns, flip = np.random.randint(4), np.random.rand() < 0.5
    image, labels = np.rot90(image, turns), np.rot90(labels, turns)
    if flip:
        image, labels = image[::-1], labels[::-1]
    image = image * np.random.uniform(0.6, 2) + np.random.uniform(-0.2, 0.2)
    return image + 0.02 * np.random.normal(0, 1, image.shape) * np.random.uniform(0, 1), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("fit", "images", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.output.mkdir(parents=True)
    np.random.seed(args.seed)
    train, held_out = (read_part(args.fit / "data" / f"{n}.json") for n in ("train", "held_out"))
    config = Config2D(
        n_rays=_RAYS,
        grid=(2, 2),
        n_channel_in=3,
        train_patch_size=(_PATCH, _PATCH),
        train_batch_size=4,
        train_tensorboard=False,
        train_reduce_lr=None,
        train_n_val_patches=8,
    )
    model = StarDist2D(config, name="model", basedir=str(args.output))
    model.prepare_for_training()
    clock = _UntilCPUTime(60 * args.minutes)
    model.callbacks.append(clock)
    model.train(*train, validation_data=held_out, augmenter=augment, seed=args.seed, epochs=10**4)
    training = cpu_seconds() - clock.start
    model.optimize_thresholds(*held_out)
    start, count = time.monotonic(), 0
    for path in sorted(args.images.iterdir()):
        labels, _ = model.predict_instances(read_image(path))
        tifffile.imwrite(args.output / f"{path.stem}.tif", labels.astype(np.uint16))
        count += 1
    record = {
        "minutes": args.minutes,
        "seed": args.seed,
        "steps": clock.steps,
        "training_cpu_seconds": round(training, 1),
        "cpu_seconds": round(cpu_seconds(), 1),
        "seconds_an_image": round((time.monotonic() - start) / count, 3),
        "thresholds": model.thresholds._asdict(),
    }
    (args.output / "run.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
