"""The command line of ``rpe-d2 fit``."""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from rpe_d2.engine.run_record import cpu_seconds, current_commit, hardware
from rpe_d2.engine.setup import load_config, locked_output_dir
from rpe_d2.engine.trainer import Trainer
from rpe_d2.evaluation.label_metrics import mean_label_metrics
from rpe_d2.inference import Segmenter
from rpe_d2.inference.fit_data import (
    Measures,
    label_map,
    measure,
    read_coco_data,
    read_label_data,
    split_images,
)
from rpe_d2.inference.fit_rules import MODELS, Setting, config_text, settings
from rpe_d2.inference.fit_tuning import TRIED, predict_all, tune
from rpe_d2.utils.errors import one_line_errors
from rpe_d2.utils.files import make_writable_folder, replacing_file
from rpe_d2.utils.json_text import parse_json, read_text
from rpe_d2.visualization.fit_report import Example, fit_page

from . import train_net
from .arguments import command_line

_STATE = "fit.json"
_CONFIG = "fit.yaml"
_REPORT = "report.html"
_PARTS = "train", "held_out"
# Part of the minutes that training gets; the rest is for tuning and the evaluation.
_TRAINING = 0.8
_TIMED_STEPS = 10
_FEWEST_STEPS = 20
_BATCH = 4
# Held-out images on which settings are tried, at most.
_MOST_TUNED = 40
_MOST_EXAMPLES = 4
_PRINTED = "S@0.5", "S", "F1@0.5", "PQ", "AJI", "pred", "true"


def main(argv: Optional[List[str]] = None) -> int:
    """Trains a model on images and their label maps, with settings that follow from the data.

    A command that was interrupted continues where it stopped.

    Returns:
        Exit status: 0, or 2 with a one-line error if an argument or a file is wrong.
    """
    args = _parse(argv)
    with one_line_errors():
        output = Path(args.output)
        make_writable_folder("--output", output)
        with locked_output_dir(str(output)):
            state = _read_state(output, args) or _prepare(output, args)
    if not (output / "model_final.pth").exists():
        flags = ["--config-file", str(output / _CONFIG), "--num-gpus", str(args.num_gpus)]
        status = train_net.main([*flags, "--resume"])
        if status:
            return status
    with one_line_errors():
        if "scores" not in state:
            _finish(output, state, args.device)
            _write_state(output, state)
    _print_end(output, state)
    return 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Trains a model on images and label maps. All settings follow from the data."
    )
    parser.add_argument("data", metavar="IMAGES", help="folder of images, or COCO JSON")
    parser.add_argument(
        "labels", metavar="LABELS", help="folder of label maps, or of the images of the COCO JSON"
    )
    parser.add_argument(
        "--classes", default="", metavar="PATH", help="CSV file, or folder of class maps"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--minutes", type=_minutes, default=60.0, help="wall time of the command, about (60)"
    )
    parser.add_argument("--model", choices=list(MODELS), default="embeddings")
    parser.add_argument(
        "--channels", default="", help="channels of the images, as 2, 0,1,1 or mean"
    )
    parser.add_argument(
        "--scale", type=_scale, help="factor by which images are resized; default: from the data"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the split and training (1)")
    parser.add_argument("--device", default="", help="cpu, cuda; default: a GPU where there is one")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes that train (1)")
    args = parser.parse_args(argv)
    args.command = command_line("rpe-d2 fit", argv)
    return args


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value <= 100000:
        raise argparse.ArgumentTypeError(f"{text}; allowed: minutes above 0")
    return value


def _scale(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 16:
        raise argparse.ArgumentTypeError(f"{text}; allowed: 0.01 to 16")
    return value


def _arguments(args: argparse.Namespace) -> Dict[str, Any]:
    """Returns the arguments that must be the same when a command is continued."""
    names = "data", "labels", "classes", "minutes", "model", "channels", "scale", "seed"
    return {name: getattr(args, name) for name in names}


def _read_state(output: Path, args: argparse.Namespace) -> Optional[Dict[str, Any]]:
    path = output / _STATE
    if not path.exists():
        others = sorted(p.name for p in output.iterdir() if not p.name.startswith("."))
        if others:
            raise ValueError(
                f"--output is {output}, which has {others[0]} but no {_STATE}; allowed: a new "
                "folder, or that of the same command"
            )
        return None
    state = parse_json(read_text(path), path)
    for name, value in _arguments(args).items():
        if state["arguments"].get(name) != value:
            raise ValueError(
                f"--output is {output}, where {name} was {state['arguments'].get(name)!r}, now "
                f"{value!r}; allowed: the same arguments, or a new folder"
            )
    return state


def _write_state(output: Path, state: Dict[str, Any]) -> None:
    with replacing_file(output / _STATE) as file:
        file.write(json.dumps(state, indent=1).encode() + b"\n")


def _prepare(output: Path, args: argparse.Namespace) -> Dict[str, Any]:
    """Reads the data, derives the settings, and writes the configuration."""
    start = time.monotonic()
    if args.data.endswith(".json"):
        content = read_coco_data(args.data, args.labels)
    else:
        content = read_label_data(args.data, args.labels, args.classes)
    parts = dict(zip(_PARTS, split_images(content, seed=args.seed)))
    (output / "data").mkdir(exist_ok=True)
    for name, part in parts.items():
        with replacing_file(_data_file(output, name)) as file:
            file.write(json.dumps(part).encode())
    measures = measure(parts["train"], args.channels)
    found = settings(measures, args.model, args.scale)
    _print_settings(measures, found)
    # A process may fit several models; their datasets need names of their own.
    mark = hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:8]
    names = {name: f"{name}_{mark}" for name in _PARTS}
    batch = args.num_gpus * -(-_BATCH // args.num_gpus)
    fixed = {
        "DATASETS.COCO_JSONS": [f"{names[n]}={_data_file(output, n).resolve()}:/" for n in _PARTS],
        "DATASETS.TRAIN": [names["train"]],
        "DATASETS.TEST": [names["held_out"]],
        "INPUT.CHANNELS": args.channels,
        "TEST.FIELD_METRICS": True,
        "TEST.TOUCHING_INSTANCES": measures.touching > 0,
        "MODEL.DEVICE": args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        "SOLVER.IMS_PER_BATCH": batch,
        "SEED": args.seed,
        "OUTPUT_DIR": str(output),
    }
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
    with replacing_file(output / _CONFIG) as file:
        file.write(config_text(found, args.model, fixed).encode())
    state = {
        "arguments": _arguments(args),
        "command": args.command,
        "commit": current_commit(),
        "images": {name: len(part["images"]) for name, part in parts.items()},
        "measures": measures._asdict(),
        "settings": [setting._asdict() for setting in found],
        "seconds_per_step": step,
    }
    _write_state(output, state)
    return state


def _data_file(output: Path, part: str) -> Path:
    return output / "data" / f"{part}.json"


class _Clock(HookBase):
    """Stores the times at which steps end."""

    def __init__(self) -> None:
        self.times: List[float] = []

    def after_step(self) -> None:
        self.times.append(time.monotonic())


def _seconds_per_step(text: str, num_gpus: int) -> float:
    """Returns the median time of a training step of one process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _CONFIG
        path.write_text(text)
        cfg = load_config(str(path), ["OUTPUT_DIR", folder, "DATASETS.TEST", "()"])
        cfg.SOLVER.MAX_ITER = _TIMED_STEPS
        cfg.SOLVER.IMS_PER_BATCH //= num_gpus
        trainer, clock = Trainer(cfg), _Clock()
        trainer.register_hooks([clock])
        trainer.train()
    return float(np.median(np.diff(clock.times)[2:]))


def _finish(output: Path, state: Dict[str, Any], device: str) -> None:
    """Chooses the settings of prediction, evaluates the model and writes the report."""
    config, weights = str(output / _CONFIG), str(output / "model_final.pth")
    content = parse_json(read_text(_data_file(output, "held_out")), "held_out.json")
    images = [Path(image["file_name"]) for image in content["images"]]
    truth = [label_map(content, image) for image in content["images"]]
    chosen = np.linspace(0, len(images) - 1, min(len(images), _MOST_TUNED)).round().astype(int)

    def load(opts: Sequence[Any]) -> Segmenter:
        return Segmenter.load(config, weights, device or None, min_score=0.0, opts=opts)

    tried = TRIED if state["arguments"]["model"] == "embeddings" else {}
    tuned = tune(load, [images[n] for n in chosen], [truth[n] for n in chosen], tried)
    opts = [*tuned.opts, "TEST.MIN_SCORE", tuned.min_score]
    cfg = load_config(config, [*map(str, opts)])
    cfg.MODEL.WEIGHTS = ""  # those of the folder
    with replacing_file(output / "config.yaml") as file:
        file.write(cfg.dump().encode())
    found = predict_all(Segmenter.load(output, device=device or None), images, truth)
    state["tuned"] = {"opts": opts, "score": tuned.score, "tried": tuned.tried}
    state["scores"] = _scores([metrics for _, metrics in found])
    state["hardware"] = hardware(cfg.MODEL.DEVICE)
    state["cpu_seconds"] = round(cpu_seconds(), 1)
    order = sorted(range(len(found)), key=lambda n: found[n][1]["S"])
    shown = dict.fromkeys([*order[:_MOST_EXAMPLES], *order[-_MOST_EXAMPLES:]])
    examples = [
        Example(images[n].name, found[n][1]["S"], found[n][0].image, truth[n], found[n][0].labels)
        for n in shown
    ]
    losses = _losses(output / "metrics.json")
    page = fit_page(state, losses, examples, _advice(cfg, state))
    with replacing_file(output / _REPORT) as file:
        file.write(page.encode())


def _scores(metrics: Sequence[Dict[str, float]]) -> Dict[str, Optional[float]]:
    mean = mean_label_metrics(metrics)
    return {name: None if np.isnan(value) else round(value, 4) for name, value in mean.items()}


def _losses(path: Path) -> List[Tuple[int, float]]:
    """Returns iterations and total losses from the log of a training."""
    lines = map(json.loads, path.read_text().splitlines())
    return [(line["iteration"], line["total_loss"]) for line in lines if "total_loss" in line]


def _advice(cfg: CfgNode, state: Dict[str, Any]) -> List[str]:
    """Returns what may help next, one sentence each."""
    measures, scores = Measures(**state["measures"]), state["scores"]
    found = []
    small = measures.diameters[1] * cfg.INPUT.SCALE
    cells = 2 * cfg.MODEL.RPE.STRIDE
    if small < cells:
        found.append(
            f"A tenth of the objects are smaller than two cells of the network ({small:.0f} of "
            f"{cells} px): try --scale {cfg.INPUT.SCALE * cells / small:.2g}."
        )
    if state["images"]["train"] < 10:
        found.append(
            f"{state['images']['train']} images were trained on. More labeled images help most."
        )
    if state["images"]["held_out"] < 5:
        found.append(
            f"The scores are of {state['images']['held_out']} held-out images alone, and the "
            "settings of prediction were chosen on them: they may be lower on new images."
        )
    if scores["S@0.5"] is not None and scores["S"] is not None:
        if scores["S@0.5"] < 0.6:
            found.append(
                f"Many objects are missed or merged (S@0.5 is {scores['S@0.5']:.2f}): give more "
                f"--minutes than {state['arguments']['minutes']:g}, and look at the worst images "
                "for labels that are missing."
            )
        elif scores["S"] < 0.65 * scores["S@0.5"]:
            found.append(
                "Objects are found, but their outlines are not exact (S is much lower than "
                "S@0.5): more --minutes or a larger --scale may help."
            )
    return found or ["Nothing stands out. More images and more --minutes help most models."]


def _print_settings(measures: Measures, found: Sequence[Setting]) -> None:
    print(
        f"{measures.images} images, {measures.objects} objects, classes: "
        f"{', '.join(measures.classes)}"
    )
    for setting in found:
        print(f"  {setting.key} {setting.value}: {setting.reason}")


def _print_end(output: Path, state: Dict[str, Any]) -> None:
    scores = state["scores"]
    shown = ", ".join(
        f"{name} {scores[name]:.3f}" for name in _PRINTED if scores.get(name) is not None
    )
    print(f"held-out images ({state['images']['held_out']}): {shown}")
    print(f"report: {output / _REPORT}")
    print(f"use it: rpe-d2 predict PICTURES --model {output} --output DIR")


if __name__ == "__main__":
    sys.exit(main())
