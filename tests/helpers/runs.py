"""tools/train_net.py in a process of its own, and a tiny network with random weights."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pycocotools.mask as mask_util
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from rpe_d2 import add_rpe_config
from rpe_d2.data import render_shapes
from tests.conftest import ROOT

CONFIG = str(ROOT / "configs" / "quickstart" / "rpe_shapes.yaml")
TINY = (
    "MODEL.DEVICE cpu INPUT.MIN_SIZE_TEST 64 "
    "MODEL.RPE.MAX_GROUPS 20 MODEL.MEAN_SHIFT.TEST_LOOPS 2 MODEL.MEAN_SHIFT.MAX_KEYS 256"
).split()


def save_random(config: str, opts: list, path: Path) -> str:
    """Writes random weights of a configuration's model, the same every time; returns the path."""
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.merge_from_file(config)
    cfg.merge_from_list(opts)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, path)
    return str(path)


INSTANT = "configs/quick/rpe_instant_test.yaml"


class Running(subprocess.Popen):
    """A process that writes into files: nobody has to read along lest it waits."""

    def __init__(self, *args, **options):
        self._files = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
        # A group of its own, which can be signalled as a whole.
        super().__init__(
            *args, stdout=self._files[0], stderr=self._files[1], start_new_session=True, **options
        )

    def finish(self, timeout=150) -> subprocess.CompletedProcess:
        """Waits for the end, and kills it where that does not come in time."""
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
        """Waits until it has made a file (a path) or written a text."""
        end = time.time() + timeout
        while not (what.exists() if isinstance(what, Path) else what in "".join(self._texts())):
            assert self.poll() is None, self.finish().stderr
            assert time.time() < end, f"{what} did not appear"
            time.sleep(0.02)


def start_train_net(*arguments, launcher=(), **environment) -> Running:
    """tools/train_net.py, running.

    Args:
        launcher: arguments of Python before the script.
        environment: variables on top of this process's.
    """
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **environment}
    command = [sys.executable, *launcher, "tools/train_net.py", *map(str, arguments)]
    return Running(command, cwd=ROOT, env=variables)


def train_net(*arguments, timeout=150, **options) -> subprocess.CompletedProcess:
    """tools/train_net.py, done."""
    return start_train_net(*arguments, **options).finish(timeout)


def few_images(folder: Path, count: int) -> list:
    """Options for the first pictures of shapes_val as a COCO-format data set."""
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
