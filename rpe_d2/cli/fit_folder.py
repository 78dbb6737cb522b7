"""The folder of a fit: the names of its files, and its state."""

import argparse
import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Optional

from rpe_d2.inference.model_folders import find_model_folder
from rpe_d2.utils.files import replacing_file
from rpe_d2.utils.json_text import parse_json, read_text

STATE = "fit.json"
CONFIG_OF_FIT = "fit.yaml"
DATA = "data"
PARTS = "train", "held_out"


def overrides_here(output: Path, args: argparse.Namespace) -> List[str]:
    """Returns the overrides that hold in the present place of the folder and on this machine."""
    names = dataset_names(output)
    entries = [f"{names[part]}={data_file(output, part)}:/" for part in PARTS]
    opts = ["OUTPUT_DIR", str(output), "DATASETS.COCO_JSONS", repr(entries)]
    opts += ["DATASETS.TRAIN", repr((names["train"],))]
    return [*opts, *(["MODEL.DEVICE", args.device] if args.device else [])]


def dataset_names(output: Path) -> Dict[str, str]:
    """Returns the names of the data sets by part: a process may fit several models."""
    mark = hashlib.sha256(str(output).encode()).hexdigest()[:8]
    return {part: f"{part}_{mark}" for part in PARTS}


def data_file(output: Path, part: str) -> Path:
    """Returns the file in COCO's format of a part of the data."""
    return output / DATA / f"{part}.json"


def arguments_of(args: argparse.Namespace) -> Dict[str, Any]:
    """Returns the arguments that must be the same when a command is continued."""
    names = "classes", "minutes", "model", "channels", "plane", "scale", "seed"
    paths = {name: os.path.abspath(getattr(args, name)) for name in ("data", "labels")}
    start = args.start
    if start:
        with contextlib.suppress(ValueError):  # it may be gone once the training has started
            start = str(find_model_folder(start))
        start = os.path.abspath(start)
    return {**paths, "start": start, **{name: getattr(args, name) for name in names}}


def read_state(output: Path, args: argparse.Namespace) -> Optional[Dict[str, Any]]:
    """Reads the state of a fit; None for a new folder.

    Raises:
        ValueError: The folder is that of something else or of other arguments. The message is one
            line.
    """
    path = output / STATE
    if not path.exists():
        others = sorted(p.name for p in output.iterdir() if not p.name.startswith("."))
        others = [name for name in others if name != DATA]  # of a command that was interrupted
        if others:
            raise ValueError(
                f"--output is {output}, which has {others[0]} but no {STATE}; allowed: a new "
                "folder, or that of the same command"
            )
        return None
    state = parse_json(read_text(path), path)
    if not isinstance(state, dict) or not isinstance(state.get("arguments"), dict):
        raise ValueError(f"{path} is damaged; allowed: another --output")
    for name, value in arguments_of(args).items():
        before = state["arguments"].get(name, "" if name == "start" else None)
        if before != value:
            flag = "--from" if name == "start" else name
            raise ValueError(
                f"--output is {output}, where {flag} was {before!r}, now {value!r}; allowed: the "
                "same arguments, or a new folder"
            )
    return state


def write_state(output: Path, state: Dict[str, Any]) -> None:
    """Writes the state of a fit."""
    with replacing_file(output / STATE) as file:
        file.write(json.dumps(state, indent=1).encode() + b"\n")
