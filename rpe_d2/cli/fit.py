"""The command line of ``rpe-d2 fit``."""

import argparse
import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling import build_model

from rpe_d2.data import DeadWorker, UnreadableImage
from rpe_d2.engine.checkpoint import ModelCheckpointer
from rpe_d2.engine.hooks import TrainingStopped
from rpe_d2.engine.run_errors import TooFewValues, named_run_errors
from rpe_d2.engine.run_record import cpu_seconds, current_commit, hardware
from rpe_d2.engine.setup import load_config, locked_output_dir, read_config
from rpe_d2.engine.train_step import NonFinite
from rpe_d2.engine.trainer import Trainer
from rpe_d2.evaluation.label_metrics import mean_label_metrics
from rpe_d2.inference import Segmenter
from rpe_d2.inference.fit_data import (
    LabelMaps,
    Measures,
    measure,
    read_coco_data,
    read_label_data,
    split_images,
)
from rpe_d2.inference.fit_rules import (
    MODELS,
    Setting,
    advice,
    as_started_from,
    config_text,
    settings,
)
from rpe_d2.inference.fit_tuning import TRIED, measure_all, tune
from rpe_d2.inference.model_folders import CONFIG, find_model_folder, weights_of_folder
from rpe_d2.utils.errors import USER_ERRORS, one_line, one_line_errors
from rpe_d2.utils.files import make_writable_folder, replacing_file
from rpe_d2.utils.images import ImageReader, check_size, parse_channels
from rpe_d2.utils.json_text import parse_json, read_text
from rpe_d2.visualization.fit_report import Example, comparison_page, fit_page

from . import train_net
from .arguments import command_line, number_type, positive

_STATE = "fit.json"
_CONFIG = "fit.yaml"
_REPORT = "report.html"
_DATA = "data"
_PARTS = "train", "held_out"
# Part of the minutes that training gets; the rest is for tuning and the evaluation.
_TRAINING = 0.8
_TUNING = 0.1
_TIMED_STEPS = 10
_FEWEST_STEPS = 20
_BATCH = 4
# Held-out images on which settings are tried.
_FEWEST_TUNED, _MOST_TUNED = 3, 40
# Larger held-out images are not evaluated by COCO's protocol after the training, which does not
# divide them into tiles. In pixels of the network's input.
_MOST_PIXELS = 1024**2
_MOST_EXAMPLES = 4
_PRINTED = "S@0.5", "S", "F1@0.5", "PQ", "AJI", "pred", "true"

_ABOVE_0 = number_type("a number above 0", lambda value: 0 < value <= 100000)


def main(argv: Optional[List[str]] = None) -> int:
    """Trains a model on images and their label maps, with settings that follow from the data.

    A command that was interrupted continues where it stopped.

    Returns:
        Exit status: 0, or 2 with a one-line error if an argument or a file is wrong.
    """
    args = _parse(argv)
    output = Path(args.output).resolve()
    if not args.compare:
        return _fit(output, args)
    with one_line_errors():
        _check_comparison(output)
    for model in MODELS:
        print(f"--model {model}")
        status = _fit(output / model, argparse.Namespace(**{**vars(args), "model": model}))
        if status:
            return status
    _write_comparison(output, args)
    return 0


def _fit(output: Path, args: argparse.Namespace) -> int:
    """Fits one model and returns the exit status."""
    before = cpu_seconds()
    kinds = UnreadableImage, DeadWorker, NonFinite, TooFewValues, ValueError, OSError
    with one_line_errors():
        make_writable_folder("--output", output)
        with locked_output_dir(str(output)):
            state = _read_state(output, args)
    if state is None:
        with one_line_errors(kinds), named_run_errors(), locked_output_dir(str(output)):
            state = _prepare(output, args)
            state["cpu_seconds"] = cpu_seconds() - before
            _write_state(output, state)
            before = cpu_seconds()
    if not (output / "model_final.pth").exists():
        flags = ["--config-file", str(output / _CONFIG), "--num-gpus", str(args.num_gpus)]
        status = train_net.main([*flags, "--resume", *_here(output, args)])
        if status:
            return status
    with one_line_errors(kinds), named_run_errors():
        if "scores" not in state:
            _finish(output, state, args)
            # Of a training that was interrupted, the time since it was continued.
            used = state.get("cpu_seconds", 0.0) + cpu_seconds() - before
            state["cpu_seconds"] = round(used, 1)
            _write_state(output, state)
    _print_end(output, state)
    return 0


def _check_comparison(output: Path) -> None:
    make_writable_folder("--output", output)
    others = {path.name for path in output.iterdir() if not path.name.startswith(".")}
    others -= {*MODELS, _REPORT}
    if others:
        raise ValueError(
            f"--output is {output}, which has {min(others)}; allowed with --compare: a new "
            "folder, or that of the same command"
        )


def _write_comparison(output: Path, args: argparse.Namespace) -> None:
    """Writes the page that compares the models of a folder, and prints their scores."""
    states = {model: parse_json(read_text(output / model / _STATE), "") for model in MODELS}
    with replacing_file(output / _REPORT) as file:
        file.write(comparison_page(states, args.minutes).encode())
    print()
    for model, state in states.items():
        print(f"{model:<12}{_printed_scores(state['scores'])}")
    print(f"report: {output / _REPORT}")


def _here(output: Path, args: argparse.Namespace) -> List[str]:
    """Returns the overrides that hold in the present place of the folder and on this machine."""
    names = _dataset_names(output)
    entries = [f"{names[part]}={_data_file(output, part)}:/" for part in _PARTS]
    opts = ["OUTPUT_DIR", str(output), "DATASETS.COCO_JSONS", repr(entries)]
    opts += ["DATASETS.TRAIN", repr((names["train"],))]
    return [*opts, *(["MODEL.DEVICE", args.device] if args.device else [])]


def _dataset_names(output: Path) -> Dict[str, str]:
    # A process may fit several models; their datasets need names of their own.
    mark = hashlib.sha256(str(output).encode()).hexdigest()[:8]
    return {part: f"{part}_{mark}" for part in _PARTS}


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
    parser.add_argument(
        "--output", default="output/fit", metavar="DIR", help="a new folder (output/fit)"
    )
    parser.add_argument(
        "--minutes", type=_ABOVE_0, default=60.0, help="wall time of the command, about (60)"
    )
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--model", choices=list(MODELS), default="embeddings")
    models.add_argument(
        "--compare",
        action="store_true",
        help="fit all these models, each for --minutes, and compare their scores",
    )
    parser.add_argument(
        "--from",
        dest="start",
        default="",
        metavar="MODEL",
        help="start from the output folder of another fit or training, or a model of rpe-d2 models",
    )
    parser.add_argument(
        "--channels",
        type=_channels,
        default="",
        help="INPUT.CHANNELS: one as 2, three as 0,1,1 for red, green and blue, or mean",
    )
    parser.add_argument(
        "--plane",
        type=int,
        default=-1,
        help="INPUT.PLANE: the plane that is used of files of several planes, from 0",
    )
    parser.add_argument(
        "--scale", type=_ABOVE_0, help="factor by which images are resized; default: from the data"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the split and training (1)")
    parser.add_argument("--device", default="", help="cpu, cuda; default: a GPU where there is one")
    parser.add_argument("--num-gpus", type=positive, default=1, help="processes that train (1)")
    args = parser.parse_args(argv)
    if args.classes and args.data.endswith(".json"):
        parser.error("--classes is for label maps; allowed: none, as a COCO JSON has classes")
    if args.compare and args.start:
        parser.error("--from is for one model; allowed: --model instead of --compare")
    if args.num_gpus > 1 and args.device != "cpu" and args.num_gpus > torch.cuda.device_count():
        parser.error(
            f"--num-gpus is {args.num_gpus}; this machine has {torch.cuda.device_count()} GPUs, "
            "allowed: at most those, or more processes with --device cpu"
        )
    args.command = command_line("tools/fit.py", argv)
    return args


def _channels(text: str) -> str:
    try:
        parse_channels(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _arguments(args: argparse.Namespace) -> Dict[str, Any]:
    """Returns the arguments that must be the same when a command is continued."""
    names = "classes", "minutes", "model", "channels", "plane", "scale", "seed"
    paths = {name: os.path.abspath(getattr(args, name)) for name in ("data", "labels")}
    start = args.start
    if start:
        with contextlib.suppress(ValueError):  # it may be gone once the training has started
            start = str(find_model_folder(start))
        start = os.path.abspath(start)
    return {**paths, "start": start, **{name: getattr(args, name) for name in names}}


def _read_state(output: Path, args: argparse.Namespace) -> Optional[Dict[str, Any]]:
    path = output / _STATE
    if not path.exists():
        others = sorted(p.name for p in output.iterdir() if not p.name.startswith("."))
        others = [name for name in others if name != _DATA]  # of a command that was interrupted
        if others:
            raise ValueError(
                f"--output is {output}, which has {others[0]} but no {_STATE}; allowed: a new "
                "folder, or that of the same command"
            )
        return None
    state = parse_json(read_text(path), path)
    if not isinstance(state, dict) or not isinstance(state.get("arguments"), dict):
        raise ValueError(f"{path} is damaged; allowed: another --output")
    for name, value in _arguments(args).items():
        before = state["arguments"].get(name, "" if name == "start" else None)
        if before != value:
            flag = "--from" if name == "start" else name
            raise ValueError(
                f"--output is {output}, where {flag} was {before!r}, now {value!r}; allowed: the "
                "same arguments, or a new folder"
            )
    return state


def _write_state(output: Path, state: Dict[str, Any]) -> None:
    with replacing_file(output / _STATE) as file:
        file.write(json.dumps(state, indent=1).encode() + b"\n")


def _prepare(output: Path, args: argparse.Namespace) -> Dict[str, Any]:
    """Reads the data, derives the settings, and writes the configuration."""
    start = time.monotonic()
    source, weights = _read_start(args.start) if args.start else (None, "")
    if args.data.endswith(".json"):
        content = read_coco_data(args.data, args.labels)
    else:
        content = read_label_data(args.data, args.labels, args.classes)
    parts = dict(zip(_PARTS, split_images(content, seed=args.seed)))
    (output / _DATA).mkdir(exist_ok=True)
    for name, part in parts.items():
        with replacing_file(_data_file(output, name)) as file:
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
    names = _dataset_names(output)
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
        **dict(zip(*[iter(_here(output, args))] * 2)),
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
    return state


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
        path = Path(folder) / _CONFIG
        path.write_text(text)
        cfg = load_config(str(path), ["OUTPUT_DIR", folder, "MODEL.DEVICE", "cpu"])
    cfg.MODEL.RPE.NUM_CLASSES = source.MODEL.RPE.NUM_CLASSES
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = source.MODEL.ROI_HEADS.NUM_CLASSES
    ModelCheckpointer(build_model(cfg), complete=True).load(weights)


def _check_images(content: Dict[str, Any], reader: ImageReader) -> None:
    """Reads all images, because an unreadable one would end the command after the training."""
    for image in content["images"]:
        check_size(image, reader(image["file_name"]).shape[:2])


def _data_file(output: Path, part: str) -> Path:
    return output / _DATA / f"{part}.json"


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
            path = Path(folder) / _CONFIG
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


def _finish(output: Path, state: Dict[str, Any], args: argparse.Namespace) -> None:
    """Chooses the settings of prediction, evaluates the model and writes the report."""
    config, weights = str(output / _CONFIG), str(output / "model_final.pth")
    content = parse_json(read_text(_data_file(output, "held_out")), _data_file(output, "held_out"))
    truth = LabelMaps(content)

    def load(opts: Sequence[Any]) -> Segmenter:
        opts = [*opts, *_here(output, args)]
        return Segmenter.load(config, weights, min_score=0.0, opts=opts)

    tried = TRIED if args.model == "embeddings" else {}
    start = time.monotonic()
    load(()).predict(truth.file(0))
    passes = 1 + sum(map(len, tried.values()))
    affordable = int(_TUNING * 60 * args.minutes / (passes * (time.monotonic() - start)))
    count = min(len(truth), _MOST_TUNED, max(_FEWEST_TUNED, affordable))
    chosen = np.linspace(0, len(truth) - 1, count).round().astype(int).tolist()
    tuned = tune(load, truth, chosen, tried)
    opts = [*tuned.opts, "TEST.MIN_SCORE", tuned.min_score]
    cfg = load_config(config, [*map(str, opts), *_here(output, args)])
    cfg.MODEL.WEIGHTS = ""  # those of the folder
    with replacing_file(output / CONFIG) as file:
        file.write(cfg.dump().encode())
    segmenter = Segmenter.load(output, device=args.device or None)
    metrics = measure_all(segmenter, truth)
    state["tuned"] = {"opts": opts, "score": tuned.score, "tried": tuned.tried, "images": count}
    state["scores"] = _scores(metrics)
    state["hardware"] = hardware(cfg.MODEL.DEVICE)
    order = sorted(range(len(truth)), key=lambda n: metrics[n]["S"])
    examples = []
    for number in dict.fromkeys([*order[:_MOST_EXAMPLES], *order[-_MOST_EXAMPLES:]]):
        found, file = segmenter.predict(truth.file(number)), truth.file(number)
        if found.image is not None:  # larger than memory
            target = truth.target(number)[0]
            score = metrics[number]["S"]
            examples.append(Example(file.name, score, found.image, target, found.labels))
    cells = 2 * cfg.MODEL.RPE.STRIDE if args.model == "embeddings" else 0
    text = advice(Measures(**state["measures"]), state, cfg.INPUT.SCALE, cells)
    page = fit_page(state, _losses(output / "metrics.json"), examples, text)
    with replacing_file(output / _REPORT) as file:
        file.write(page.encode())


def _scores(metrics: Sequence[Dict[str, float]]) -> Dict[str, Optional[float]]:
    mean = mean_label_metrics(metrics)
    return {name: None if np.isnan(value) else round(value, 4) for name, value in mean.items()}


def _losses(path: Path) -> List[Tuple[int, float]]:
    """Returns iterations and total losses from the log of a training."""
    losses: Dict[int, float] = {}
    for line in read_text(str(path)).splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # cut by a crash, or no losses
            entry = json.loads(line)
            losses[int(entry["iteration"])] = float(entry["total_loss"])
    return sorted(losses.items())


def _print_settings(measures: Measures, found: Sequence[Setting]) -> None:
    print(
        f"{measures.images} images, {measures.objects} objects, classes: "
        f"{', '.join(measures.classes)}"
    )
    for setting in found:
        print(f"  {setting.key} {setting.value}: {setting.reason}")


def _printed_scores(scores: Dict[str, Optional[float]]) -> str:
    return ", ".join(
        f"{name} {scores[name]:.3f}" for name in _PRINTED if scores.get(name) is not None
    )


def _print_end(output: Path, state: Dict[str, Any]) -> None:
    shown = _printed_scores(state["scores"])
    print(f"held-out images ({state['images']['held_out']}): {shown}")
    print(f"report: {output / _REPORT}")
    print(f"use it: rpe-d2 predict PICTURES --model {output} --output DIR")


if __name__ == "__main__":
    sys.exit(main())
