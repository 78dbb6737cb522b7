"""Preparation of ``rpe-d2 fit``: the data, the settings and the time of a step."""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling import build_model

from rpe_d2.engine.checkpoint import ModelCheckpointer
from rpe_d2.engine.hooks import TrainingStopped
from rpe_d2.engine.run_record import current_commit
from rpe_d2.engine.setup import load_config, read_config
from rpe_d2.engine.trainer import Trainer
from rpe_d2.inference.fit_data import (
    Measures,
    measure,
    read_coco_data,
    read_label_data,
    split_images,
)
from rpe_d2.inference.fit_rules import Setting, as_started_from, config_text, settings
from rpe_d2.inference.model_folders import CONFIG, find_model_folder, weights_of_folder
from rpe_d2.utils.errors import USER_ERRORS, one_line
from rpe_d2.utils.files import replacing_file
from rpe_d2.utils.images import ImageReader, check_size

from .fit_folder import (
    CONFIG_OF_FIT,
    DATA,
    PARTS,
    arguments_of,
    data_file,
    dataset_names,
    overrides_here,
)

# Part of the minutes that training gets; the rest is for tuning and the evaluation.
_TRAINING = 0.8
_TIMED_STEPS = 10
_FEWEST_STEPS = 20
_BATCH = 4
# Larger held-out images are not evaluated by COCO's protocol after the training, which does not
# divide them into tiles. In pixels of the network's input.
_MOST_PIXELS = 1024**2


def prepare(output: Path, args: argparse.Namespace) -> Dict[str, Any]:
    """Reads the data, derives the settings, and writes the configuration.

    Returns:
        The state of the fit, which is not written yet.
    """
    start = time.monotonic()
    source, weights = _read_start(args.start) if args.start else (None, "")
    if args.data.endswith(".json"):
        content = read_coco_data(args.data, args.labels)
    else:
        content = read_label_data(args.data, args.labels, args.classes)
    parts = dict(zip(PARTS, split_images(content, seed=args.seed)))
    (output / DATA).mkdir(exist_ok=True)
    for name, part in parts.items():
        with replacing_file(data_file(output, name)) as file:
            file.write(json.dumps(part).encode())
    measures = measure(parts["train"], args.channels, args.plane)
    _check_images(parts["held_out"], ImageReader("RGB", "auto", args.channels, args.plane))
    found = settings(measures, args.model, args.scale)
    if source is not None:
        with _errors_of_start(args.start):
            found = as_started_from(found, source, args.model)
    _print_settings(measures, found)
    scale = next(setting.value for setting in found if setting.key == "INPUT.SCALE")
    sizes = [image["height"] * image["width"] for image in parts["held_out"]["images"]]
    names = dataset_names(output)
    fixed = {
        "DATASETS.TEST": [names["held_out"]] if max(sizes) * scale**2 <= _MOST_PIXELS else [],
        "INPUT.CHANNELS": args.channels,
        "INPUT.PLANE": args.plane,
        "TEST.FIELD_METRICS": True,
        "TEST.TOUCHING_INSTANCES": measures.touching > 0,
        "MODEL.WEIGHTS": weights,
        "MODEL.DEVICE": args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        "SOLVER.IMS_PER_BATCH": args.num_gpus * -(-_BATCH // args.num_gpus),
        "SEED": args.seed,
        **dict(zip(*[iter(overrides_here(output, args))] * 2)),
    }
    if source is not None:
        with _errors_of_start(args.start):
            _check_fits(config_text(found, args.model, fixed), source, weights)
    step = _seconds_per_step(config_text(found, args.model, fixed), args.num_gpus)
    left = 60 * args.minutes * _TRAINING - (time.monotonic() - start)
    steps = max(_FEWEST_STEPS, int(left / step))
    found.append(
        Setting(
            "SOLVER.MAX_ITER", steps, f"{step:.2f} s a step here; {args.minutes:g} minutes in all"
        )
    )
    fixed["SOLVER.WARMUP_ITERS"] = min(100, steps // 10)
    fixed["SOLVER.CHECKPOINT_PERIOD"] = max(50, steps // 10)
    with replacing_file(output / CONFIG_OF_FIT) as file:
        file.write(config_text(found, args.model, fixed).encode())
    return {
        "arguments": arguments_of(args),
        "command": args.command,
        "commit": current_commit(),
        "images": {name: len(part["images"]) for name, part in parts.items()},
        "measures": measures._asdict(),
        "settings": [setting._asdict() for setting in found],
        "seconds_per_step": step,
    }


@contextlib.contextmanager
def _errors_of_start(folder: str) -> Iterator[None]:
    """Raises what is wrong with ``--from`` as a ValueError of one line that names it."""
    try:
        yield
    except USER_ERRORS as error:
        raise ValueError(f"--from {folder}: {one_line(error)}") from error


def _read_start(folder: str) -> Tuple[CfgNode, str]:
    """Returns the configuration of the model to start from, and its weights."""
    with _errors_of_start(folder):
        found = find_model_folder(folder)
        weights = os.path.abspath(weights_of_folder(found))
        return read_config(str(found / CONFIG), []), weights


def _check_fits(text: str, source: CfgNode, weights: str) -> None:
    """Checks that weights fit a configuration, apart from its number of classes.

    Raises:
        ValueError: A tensor does not fit.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CONFIG_OF_FIT
        path.write_text(text)
        cfg = load_config(str(path), ["OUTPUT_DIR", folder, "MODEL.DEVICE", "cpu"])
    cfg.MODEL.RPE.NUM_CLASSES = source.MODEL.RPE.NUM_CLASSES
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = source.MODEL.ROI_HEADS.NUM_CLASSES
    ModelCheckpointer(build_model(cfg), complete=True).load(weights)


def _check_images(content: Dict[str, Any], reader: ImageReader) -> None:
    """Reads all images, because an unreadable one would end the command after the training."""
    for image in content["images"]:
        check_size(image, reader(image["file_name"]).shape[:2])


def _print_settings(measures: Measures, found: Sequence[Setting]) -> None:
    print(
        f"{measures.images} images, {measures.objects} objects, classes: "
        f"{', '.join(measures.classes)}"
    )
    for setting in found:
        print(f"  {setting.key} {setting.value}: {setting.reason}")


class _Clock(HookBase):
    """Stores the times at which steps end."""

    def __init__(self) -> None:
        self.times: List[float] = []

    def after_step(self) -> None:
        self.times.append(time.monotonic())


def _seconds_per_step(text: str, num_gpus: int) -> float:
    """Returns the median time of a training step of one process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // num_gpus))
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / CONFIG_OF_FIT
            path.write_text(text)
            cfg = load_config(str(path), ["OUTPUT_DIR", folder, "DATASETS.TEST", "()"])
            cfg.SOLVER.MAX_ITER = _TIMED_STEPS
            cfg.SOLVER.IMS_PER_BATCH //= num_gpus
            trainer, clock = Trainer(cfg), _Clock()
            trainer.register_hooks([clock])
            trainer.train()
    except TrainingStopped as stop:
        sys.exit(128 + stop.signal_number)
    finally:
        torch.set_num_threads(threads)
    return float(np.median(np.diff(clock.times)[2:]))
