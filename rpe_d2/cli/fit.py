"""The command line of ``rpe-d2 fit``."""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

from rpe_d2.data import DeadWorker, UnreadableImage
from rpe_d2.engine.run_errors import TooFewValues, named_run_errors
from rpe_d2.engine.run_record import cpu_seconds, hardware
from rpe_d2.engine.setup import load_config, locked_output_dir
from rpe_d2.engine.train_step import NonFinite
from rpe_d2.evaluation.label_metrics import mean_label_metrics
from rpe_d2.inference import Segmenter
from rpe_d2.inference.fit_data import LabelMaps, Measures
from rpe_d2.inference.fit_rules import MODELS, advice
from rpe_d2.inference.fit_tuning import TRIED, measure_all, tune
from rpe_d2.inference.model_folders import CONFIG
from rpe_d2.utils.errors import one_line_errors
from rpe_d2.utils.files import make_writable_folder, replacing_file
from rpe_d2.utils.images import parse_channels
from rpe_d2.utils.json_text import parse_json, read_text
from rpe_d2.visualization.fit_report import Example, comparison_page, fit_page

from . import train_net
from .arguments import command_line, number_type, positive
from .fit_folder import CONFIG_OF_FIT, STATE, data_file, overrides_here, read_state, write_state
from .fit_preparation import prepare

_REPORT = "report.html"
# Part of the minutes in which settings of prediction are tried.
_TUNING = 0.1
# Held-out images on which they are tried.
_FEWEST_TUNED, _MOST_TUNED = 3, 40
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
            state = read_state(output, args)
    if state is None:
        with one_line_errors(kinds), named_run_errors(), locked_output_dir(str(output)):
            state = prepare(output, args)
            state["cpu_seconds"] = cpu_seconds() - before
            write_state(output, state)
            before = cpu_seconds()
    if not (output / "model_final.pth").exists():
        flags = ["--config-file", str(output / CONFIG_OF_FIT), "--num-gpus", str(args.num_gpus)]
        status = train_net.main([*flags, "--resume", *overrides_here(output, args)])
        if status:
            return status
    with one_line_errors(kinds), named_run_errors():
        if "scores" not in state:
            _finish(output, state, args)
            # Of a training that was interrupted, the time since it was continued.
            used = state.get("cpu_seconds", 0.0) + cpu_seconds() - before
            state["cpu_seconds"] = round(used, 1)
            write_state(output, state)
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
    states = {model: parse_json(read_text(output / model / STATE), "") for model in MODELS}
    with replacing_file(output / _REPORT) as file:
        file.write(comparison_page(states, args.minutes).encode())
    print()
    for model, state in states.items():
        print(f"{model:<12}{_printed_scores(state['scores'])}")
    print(f"report: {output / _REPORT}")


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


def _finish(output: Path, state: Dict[str, Any], args: argparse.Namespace) -> None:
    """Chooses the settings of prediction, evaluates the model and writes the report."""
    config, weights = str(output / CONFIG_OF_FIT), str(output / "model_final.pth")
    content = parse_json(read_text(data_file(output, "held_out")), data_file(output, "held_out"))
    truth = LabelMaps(content)

    def load(opts: Sequence[Any]) -> Segmenter:
        opts = [*opts, *overrides_here(output, args)]
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
    cfg = load_config(config, [*map(str, opts), *overrides_here(output, args)])
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
