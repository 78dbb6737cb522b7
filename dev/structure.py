#!/usr/bin/env python3
"""Prints the sizes of the project's packages, and how many files an image passes through.

usage: python dev/structure.py

An image passes through a file if one of its functions runs while the image is mapped and used in a
training step (configs/quickstart/rpe_shapes.yaml), or while its proposals are computed at inference
(configs/proposals/rpe_shapes.yaml).
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Callable, Set

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import rpe_d2

PACKAGE = Path(rpe_d2.__file__).resolve().parent
ROOT = PACKAGE.parent


def lines(folder: Path, pattern: str = "*.py") -> int:
    """Counts the lines of the files below a folder."""
    return sum(len(path.read_text().splitlines()) for path in folder.rglob(pattern))


def count_keys(cfg: CfgNode) -> int:
    """Counts the keys of a configuration, without nodes."""
    return sum(count_keys(v) if isinstance(v, CfgNode) else 1 for v in cfg.values())


def files_run_by(call: Callable[[], None]) -> Set[str]:
    """Returns the files of the package with a function that runs during a call."""
    files = set()

    def note(frame, event, argument):
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(str(PACKAGE)) and frame.f_code.co_name != "<module>":
            files.add(str(Path(name).relative_to(PACKAGE)))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return files


def read(name: str) -> CfgNode:
    cfg = get_cfg()
    rpe_d2.add_rpe_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / name))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def training_files() -> Set[str]:
    """Returns the files that one image passes through in a training step of PixelEmbeddingNet."""
    cfg = read("quickstart/rpe_shapes.yaml")
    item = DatasetCatalog.get("shapes_train")[0]
    mapper = rpe_d2.data.PixelLabelMapper(cfg, is_train=True)
    model = build_model(cfg).train()

    def step() -> None:
        with EventStorage():
            model([mapper(item)])

    return files_run_by(step)


def proposal_files() -> Set[str]:
    """Returns the files that the proposals of one image pass through at inference."""
    cfg = read("proposals/rpe_shapes.yaml")
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    image = {"image": torch.zeros(3, 128, 128, dtype=torch.uint8), "height": 128, "width": 128}
    with torch.no_grad():
        return files_run_by(lambda: model([image]))


def main() -> None:
    rooms = Counter()
    for path in sorted(PACKAGE.iterdir()):
        if path.is_dir() and lines(path):
            rooms[path.name] = lines(path)
        elif path.suffix == ".py":
            rooms[path.name] = len(path.read_text().splitlines())
    for name, count in rooms.items():
        print(f"{count:7,}  rpe_d2/{name}")
    print(f"{sum(rooms.values()):7,}  rpe_d2")
    for name, pattern in (("tests", "*.py"), ("tools", "*.py"), ("configs", "*.yaml")):
        print(f"{lines(ROOT / name, pattern):7,}  {name}")
    print(f"{len(list((PACKAGE / 'engine').glob('*.py'))):7,}  files in engine")
    with_ours, host = get_cfg(), count_keys(get_cfg())
    rpe_d2.add_rpe_config(with_ours)
    print(f"{count_keys(with_ours) - host:7,}  configuration keys")
    print(f"{len((ROOT / 'README.md').read_bytes()):7,}  bytes of README.md")
    for text, files in (("a training image", training_files()), ("a proposal", proposal_files())):
        print(f"{len(files):7,}  files that {text} passes through: {', '.join(sorted(files))}")


if __name__ == "__main__":
    main()
