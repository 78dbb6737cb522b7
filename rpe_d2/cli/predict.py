"""The command line of ``rpe-d2 predict``."""

import argparse
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
import tifffile
from tqdm import tqdm

from rpe_d2.engine.run_errors import TooFewValues
from rpe_d2.inference import Segmentation, Segmenter
from rpe_d2.inference.label_formats import FORMATS
from rpe_d2.inference.predictor import find_images
from rpe_d2.utils.errors import one_line, one_line_errors
from rpe_d2.utils.files import make_writable_folder, replacing_file, write_new_file
from rpe_d2.utils.image_files import image_stem, split_plane
from rpe_d2.utils.images import parse_channels
from rpe_d2.utils.json_text import parse_json, read_text
from rpe_d2.utils.readable import UnreadableImage

from .arguments import command_line

MODEL_FILE = "model.json"
REPORT = "report.json"
_OVERLAY = "overlay"
_LABELS = "tif"


def main(argv: Optional[List[str]] = None) -> int:
    """Segments pictures; writes a label map and further files for each of them.

    A picture of several planes (pages, slices, frames) is segmented plane by plane. Its label map
    is a stack; other files are written for every plane.

    A command that was interrupted continues where it stopped: pictures whose files are all there
    are skipped. Nothing is overwritten. Several processes or machines can share the work with
    ``--shard``.

    Returns:
        Exit status: 0, 1 if a picture could not be segmented, or 2 with a one-line error if an
        argument, a key or the model is wrong.
    """
    args = _parse(argv)
    with one_line_errors():
        parse_channels(args.channels or "")
        pictures = _named(find_images(args.pictures, "PICTURES"))
        number, count = args.shard
        share = pictures[number - 1 :: count]
        output = Path(args.output)
        make_writable_folder("--output", output)
        segmenter = Segmenter.load(
            args.model, args.weights, args.device, min_score=args.min_score, opts=args.opts
        )
        _check_same_model(output, segmenter, args)
        report = _Report(len(share))
        _run(segmenter, share, output, args, report)
        content = {"command": command_line("tools/predict.py", argv), **report.content()}
        name = REPORT if count == 1 else f"report-{number}-of-{count}.json"
        path = write_new_file(output / name, (json.dumps(content, indent=1) + "\n").encode())
    print(report)
    print(path)
    return 1 if report.failures else 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Segments pictures and writes label maps.", usage="%(prog)s PICTURES [options]"
    )
    parser.add_argument("pictures", nargs="+", help="image files, folders or quoted globs")
    parser.add_argument(
        "--model", required=True, help="the output folder of a training, or a configuration"
    )
    parser.add_argument("--weights", default="", metavar="FILE", help="default: the model's own")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument(
        "--min-score",
        type=float,
        metavar="SCORE",
        help="omit objects below this score; default: the model's own, for most models 0.5",
    )
    parser.add_argument(
        "--save",
        nargs="+",
        default=[_LABELS],
        choices=[suffix[1:] for suffix in FORMATS] + [_OVERLAY],
        metavar="FORMAT",
        help="files to write: tif, png, npz, json (COCO), geojson, zip (ImageJ), csv, overlay",
    )
    parser.add_argument("--channels", help="INPUT.CHANNELS: mean, 2, or 0,1,1")
    parser.add_argument(
        "--shard",
        type=_shard,
        default=(1, 1),
        metavar="I/N",
        help="segment part I of N parts of the pictures",
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of the configuration"
    )
    return parser.parse_args(argv)


def _shard(text: str) -> Tuple[int, int]:
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise argparse.ArgumentTypeError(f"{text!r}; allowed: I/N with I from 1 to N, as in 2/4")


def _named(files: Sequence[str]) -> List[Tuple[str, str]]:
    """Returns each file with a name for its output, which does not depend on the part.

    It is the stem of the file. Files that share a stem get their suffix, too, and files that share
    that as well get their folders.
    """
    full = [os.path.abspath(split_plane(file)[0]) for file in files]
    root = os.path.commonpath([os.path.dirname(path) for path in full])
    choices = [
        [image_stem(file) for file in files],
        [os.path.basename(file) for file in files],
        [os.path.relpath(path, root).replace(os.sep, "__") for path in full],
    ]
    names = choices[0]
    for better in choices[1:]:
        known = Counter(names)
        names = [new if known[old] > 1 else old for old, new in zip(names, better)]
    return list(zip(files, names))


def _check_same_model(output: Path, segmenter: Segmenter, args: argparse.Namespace) -> None:
    """Refuses to mix the predictions of different models or settings in one folder."""
    here = {
        "model": args.model,
        "weights": segmenter.weights,
        "sha256": segmenter.fingerprint,
        "min_score": segmenter.min_score,
        "channels": args.channels,
        "overrides": args.opts,
    }
    path = output / MODEL_FILE
    if path.exists():
        there = parse_json(read_text(str(path)), str(path))
        for key in ("sha256", "min_score", "channels", "overrides"):
            if there.get(key) != here[key]:
                raise ValueError(
                    f"--output {output} has predictions with {key} {there.get(key)!r}, and this "
                    f"command has {here[key]!r}; allowed: another folder"
                )
        return
    with replacing_file(path) as file:
        file.write((json.dumps(here, indent=1) + "\n").encode())


@dataclass
class _Report:
    """What has been done.

    Attributes:
        pictures: number of the pictures of this command.
        done: number of pictures that were segmented now.
        before: number of pictures whose files were there.
        objects: number of objects that were found now.
        failures: the reason by picture.
    """

    pictures: int
    done: int = 0
    before: int = 0
    objects: int = 0
    failures: Dict[str, str] = field(default_factory=dict)

    def content(self) -> Dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __str__(self) -> str:
        lines = [f"{self.done} of {self.pictures} pictures segmented, {self.objects} objects"]
        if self.before:
            lines.append(f"{self.before} were done before")
        lines += [f"failed: {reason}" for reason in self.failures.values()]
        return "\n".join(lines)


def _run(
    segmenter: Segmenter,
    pictures: Sequence[Tuple[str, str]],
    output: Path,
    args: argparse.Namespace,
    report: _Report,
) -> None:
    for file, name in tqdm(pictures, desc="predict", unit="picture", disable=None):
        try:
            planes = segmenter.planes(file)
            files = _files(output, name, len(planes), args.save)
            if all(path.exists() for path in files.values()):
                report.before += 1
                continue
            report.objects += _predict(segmenter, planes, files, args)
            report.done += 1
        except (UnreadableImage, TooFewValues, ValueError) as error:
            report.failures[file] = one_line(error)


def _files(
    output: Path, name: str, num_planes: int, formats: Sequence[str]
) -> Dict[Tuple[str, int], Path]:
    """Returns the path of every file of a picture, by format and plane. A stack has plane -1."""
    files = {}
    for kind in dict.fromkeys(formats):
        suffix = "_overlay.png" if kind == _OVERLAY else f".{kind}"
        if num_planes == 1 or kind == _LABELS:
            files[kind, -1] = output / f"{name}{suffix}"
        else:
            for plane in range(num_planes):
                files[kind, plane] = output / f"{name}_{plane:04d}{suffix}"
    return files


def _predict(
    segmenter: Segmenter,
    planes: Sequence[str],
    files: Dict[Tuple[str, int], Path],
    args: argparse.Namespace,
) -> int:
    """Segments the planes of a picture and writes the files that are missing."""
    stack: List[np.ndarray] = []
    objects = 0
    for number, plane in enumerate(planes):
        found = segmenter.predict(plane, args.channels)
        objects += len(found)
        for (kind, place), path in files.items():
            if kind == _LABELS and len(planes) > 1:
                continue
            if place in (-1, number) and not path.exists():
                _write(found, kind, path)
        if len(planes) > 1 and (_LABELS, -1) in files:
            stack.append(found.labels)
    if stack and not files[_LABELS, -1].exists():
        _write_stack(stack, files[_LABELS, -1], planes[0])
    return objects


def _write(found: Segmentation, kind: str, path: Path) -> None:
    if kind != _OVERLAY:
        found.save(path)
        return
    content = cv2.imencode(".png", found.overlay()[:, :, ::-1])[1].tobytes()
    with replacing_file(path) as file:
        file.write(content)


def _write_stack(stack: List[np.ndarray], path: Path, name: str) -> None:
    shapes = {labels.shape for labels in stack}
    if len(shapes) > 1:
        raise ValueError(
            f"{name}: its planes have the sizes {sorted(shapes)}; allowed for .tif: one size"
        )
    dtype = np.result_type(*stack)
    with replacing_file(path) as file:
        tifffile.imwrite(
            file,
            np.stack(stack).astype(dtype),
            compression="zlib",
            photometric="minisblack",
            metadata={"axes": "ZYX"},
        )


if __name__ == "__main__":
    sys.exit(main())
