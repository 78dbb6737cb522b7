"""Runs of tools/train_net.py in processes of their own, and what tests of runs share."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Iterator, List

import pycocotools.mask as mask_util
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from rpe_d2 import add_rpe_config
from rpe_d2.data import render_shapes
from rpe_d2.engine.checkpoint import ModelCheckpointer
from tests.conftest import ROOT

CONFIG = str(ROOT / "configs" / "quickstart" / "rpe_shapes.yaml")
TINY = (
    "MODEL.DEVICE cpu INPUT.MIN_SIZE_TEST 64 "
    "MODEL.RPE.MAX_GROUPS 20 MODEL.MEAN_SHIFT.TEST_LOOPS 2 MODEL.MEAN_SHIFT.MAX_KEYS 256"
).split()


def save_random(config: str, opts: list, path: Path) -> str:
    """Writes random weights of a configuration's model, always the same, and returns the path."""
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.merge_from_file(config)
    cfg.merge_from_list(opts)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, path)
    return str(path)


INSTANT = "configs/quick/rpe_instant_test.yaml"


def overrides(text: str) -> List[str]:
    """Flattens YAML text into the KEY VALUE overrides of a command line."""

    def flat(node: dict, prefix: str) -> Iterator[str]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield from (f"{prefix}{key}", str(value))

    return list(flat(yaml.safe_load(text), ""))


# Losses become infinite within a few steps.
DIVERGING = overrides(
    """
    MODEL: {RESNETS: {NORM: FrozenBN}}
    SOLVER:
      OPTIMIZER: SGD
      BASE_LR: 1.0e+30
      CLIP_GRADIENTS: {ENABLED: False}
      WARMUP_ITERS: 0
    """
)


class Payload:
    """Creates a file when it is unpickled by a loader that runs code."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Iterations:
    """Stands in for a trainer, whose only state is the number of its last iteration."""

    iteration = 0

    def state_dict(self) -> dict:
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict) -> None:
        self.iteration = state["iteration"]


def save_large_checkpoint(folder: str) -> None:
    """Saves a checkpoint of more than 600 kB as iteration 9."""
    model = nn.Linear(400, 400)
    checkpointer = ModelCheckpointer(model, folder, complete=False, trainer=Iterations())
    checkpointer.save("model_0000009", iteration=9)


def assert_same_run(output: Path, expected: Path) -> None:
    """Checks that weights, optimizer, averages and best score of two runs are equal bit for bit."""
    for name in ("model_final.pth", "model_best.pth"):
        actual, target = (
            torch.load(folder / name, weights_only=True) for folder in (output, expected)
        )
        for key in ("best", "metric", "iteration"):
            assert actual.get(key) == target.get(key), (name, key)
        for part in ("model", "ema"):
            assert actual[part].keys() == target[part].keys()
            for tensor in actual[part]:
                assert torch.equal(actual[part][tensor], target[part][tensor]), (name, part, tensor)
        trainers = actual["trainer"]["_trainer"], target["trainer"]["_trainer"]
        states = [trainer["optimizer"]["state"] for trainer in trainers]
        for index, state in states[1].items():
            assert all(torch.equal(value, states[0][index][key]) for key, value in state.items())
        assert trainers[0]["images_seen"] == trainers[1]["images_seen"]
    assert (output / "last_checkpoint").read_text() == "model_final.pth"


class Running(subprocess.Popen):
    """A process whose output goes to files, so that it never waits for a reader."""

    def __init__(self, *args, **options):
        self._files = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
        # A new session is a process group of its own, which can be signaled as a whole.
        super().__init__(
            *args, stdout=self._files[0], stderr=self._files[1], start_new_session=True, **options
        )

    def finish(self, timeout=150) -> subprocess.CompletedProcess:
        """Waits for the end of the process, and kills its group after the timeout in seconds."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(self.args, self.returncode, *self._texts())

    def _texts(self) -> list:
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read())
        return texts

    def wait_for(self, what, timeout=120) -> None:
        """Waits until the process has created a file, given as a Path, or has printed a text."""
        end = time.time() + timeout
        while not (what.exists() if isinstance(what, Path) else what in "".join(self._texts())):
            assert self.poll() is None, self.finish().stderr
            assert time.time() < end, f"{what} did not appear"
            time.sleep(0.02)


def start_train_net(*arguments, launcher=(), **environment) -> Running:
    """Starts tools/train_net.py.

    Args:
        arguments: the arguments of the script.
        launcher: arguments of Python before the script.
        environment: environment variables in addition to this process's.
    """
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **environment}
    command = [sys.executable, *launcher, "tools/train_net.py", *map(str, arguments)]
    return Running(command, cwd=ROOT, env=variables)


def train_net(*arguments, timeout=150, **options) -> subprocess.CompletedProcess:
    """Runs tools/train_net.py to its end."""
    return start_train_net(*arguments, **options).finish(timeout)


def few_images(folder: Path, count: int) -> list:
    """Writes the first images of shapes_val as a COCO-format data set.

    Returns:
        The overrides that train and evaluate on it.
    """
    classes = MetadataCatalog.get("shapes_val").thing_classes
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(classes)],
    }
    for index, item in enumerate(DatasetCatalog.get("shapes_val")[:count]):
        Image.fromarray(render_shapes("val", index)).save(folder / f"{index}.png")
        content["images"].append(
            {
                "id": index,
                "file_name": f"{index}.png",
                "height": item["height"],
                "width": item["width"],
            }
        )
        for annotation in item["annotations"]:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": index,
                    "category_id": annotation["category_id"] + 1,
                    "iscrowd": 0,
                    "area": int(mask_util.area(annotation["segmentation"])),
                    "bbox": annotation["bbox"],
                    "segmentation": annotation["segmentation"],
                }
            )
    (folder / "data.json").write_text(json.dumps(content))
    name = f"few_{count}"
    return [
        "DATASETS.COCO_JSONS", json.dumps([f"{name}={folder}/data.json:{folder}"]),
        "DATASETS.TEST", f"('{name}',)", "DATASETS.TRAIN", f"('{name}',)",
    ]  # fmt: skip
