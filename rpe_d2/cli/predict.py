"""The command line of ``rpe-d2 predict``."""

import argparse
import contextlib
import json
import math
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import cv2
import numpy as np
import tifffile
from tqdm import tqdm

from rpe_d2.engine.run_errors import TooFewValues
from rpe_d2.inference import Segmentation, Segmenter
from rpe_d2.inference.label_formats import FORMATS
from rpe_d2.inference.predictor import find_images
from rpe_d2.inference.segmenter import SMALLEST_TILE
from rpe_d2.inference.stitching import stitch_planes
from rpe_d2.utils.errors import is_out_of_memory, one_line, one_line_errors
from rpe_d2.utils.files import make_writable_folder, replacing_file, write_new_file
from rpe_d2.utils.image_files import image_stem, printable, split_plane
from rpe_d2.utils.images import parse_channels
from rpe_d2.utils.json_text import parse_json, read_text
from rpe_d2.utils.readable import UnreadableImage
from rpe_d2.utils.tiff_files import TiffLayout, ome_metadata

from .arguments import add_model_arguments, command_line, load_segmenter, number_type

# Subfolders of the output, so that their files have no names of pictures.
_RUN = "run"
_OVERLAYS = "overlays"
_OVERLAY = "overlay"
_LABELS = "tif"
_PROGRESS_AFTER = 5  # seconds

_IOU = number_type("above 0 to 1", lambda value: 0 < value <= 1)


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
        overlays = [output / _OVERLAYS] if _OVERLAY in args.save else []
        for folder in (output, output / _RUN, *overlays):
            make_writable_folder("--output", folder)
        segmenter = load_segmenter(args)
        _check_same_model(output / _RUN, segmenter, args)
        report = _Report(len(share))
        part = "" if count == 1 else f"-{number}-of-{count}"
        with _Sources(output, part) as sources:
            _run(segmenter, share, output, args, sources, report)
        content = {"command": command_line("tools/predict.py", argv), **report.content()}
        text = json.dumps(content, indent=1) + "\n"
        path = write_new_file(output / _RUN / f"report{part}.json", text.encode())
    print(report)
    print(path)
    return 1 if report.failures else 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Segments pictures and writes label maps.", usage="%(prog)s PICTURES [options]"
    )
    parser.add_argument("pictures", nargs="+", help="image files, folders or quoted globs")
    add_model_arguments(parser)
    parser.add_argument("--output", required=True, metavar="DIR")
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
        "--tile",
        type=_tile,
        metavar="PIXELS",
        help="divide pictures into overlapping tiles of this side; 0: never; default: pictures "
        "that are too large at once, if the model has a fixed scale",
    )
    parser.add_argument(
        "--stitch",
        type=_IOU,
        metavar="IOU",
        help="in stacks, objects of neighboring planes with at least this IoU get one label",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        default=(1, 1),
        metavar="I/N",
        help="segment part I of N parts of the pictures",
    )
    return parser.parse_args(argv)


def _tile(text: str) -> int:
    if text.isdecimal() and (int(text) == 0 or int(text) >= SMALLEST_TILE):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}; allowed: 0, or {SMALLEST_TILE} or more pixels")


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


def _check_same_model(folder: Path, segmenter: Segmenter, args: argparse.Namespace) -> None:
    """Refuses to mix the predictions of different models or settings in one folder."""
    here = {
        "model": args.model,
        "weights": segmenter.weights,
        "fingerprint": segmenter.fingerprint,
        "min_score": segmenter.min_score,
        "channels": args.channels,
        "tile": args.tile,
        "stitch": args.stitch,
    }
    path = folder / "model.json"
    try:
        with open(path, "xb") as file:  # another part may have been first
            file.write((json.dumps(here, indent=1) + "\n").encode())
        return
    except FileExistsError:
        there = parse_json(read_text(str(path)), str(path))
    if not isinstance(there, dict):
        raise ValueError(f"{path} is damaged; allowed: another --output")
    for key in ("fingerprint", "min_score", "channels", "tile", "stitch"):
        if there.get(key) != here[key]:
            raise ValueError(
                f"--output {args.output} has predictions with {key} {there.get(key)!r}, and this "
                f"command has {here[key]!r}; allowed: another folder"
            )


class _Sources:
    """Which picture each file of the output folder belongs to.

    Every part of the work appends to a file of its own, one line before the files of a picture are
    written, and reads those of the others when it starts.
    """

    def __init__(self, output: Path, part: str):
        self._output = output
        self._own = output / _RUN / f"pictures{part}.jsonl"
        self._picture_of: Dict[str, str] = {}
        for path in self._own.parent.glob("pictures*.jsonl"):
            for line in read_text(str(path)).splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):  # cut by a crash
                    entry = json.loads(line)
                    self._picture_of.update(dict.fromkeys(entry["files"], entry["picture"]))

    def __enter__(self) -> "_Sources":
        self._file = open(self._own, "a", encoding="utf-8")
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def claim(self, picture: str, files: Sequence[Path]) -> None:
        """Notes that files belong to a picture.

        Raises:
            ValueError: A file belongs to another picture, or is not from this program.
        """
        names = [path.relative_to(self._output).as_posix() for path in files]
        source = os.path.abspath(picture)
        new = []
        for name, path in zip(names, files):
            other = self._picture_of.get(name)
            if other is None and path.exists():
                raise ValueError(
                    f"{printable(picture)}: {path} exists and was not written by predict; allowed: "
                    "another --output"
                )
            if other not in (None, source):
                raise ValueError(
                    f"{printable(picture)}: {path} belongs to {printable(other)}; allowed: another "
                    "--output"
                )
            if other is None:
                new.append(name)
        if new:
            self._picture_of.update(dict.fromkeys(new, source))
            self._file.write(json.dumps({"picture": source, "files": new}) + "\n")
            self._file.flush()


@dataclass
class _Report:
    """Counts of the pictures and objects of a command, with the reasons of failures.

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
    sources: _Sources,
    report: _Report,
) -> None:
    for file, name in tqdm(pictures, desc="predict", unit="picture", disable=None):
        try:
            planes = segmenter.planes(file)
            files = _files(output, name, len(planes), args.save)
            sources.claim(file, list(files.values()))
            if all(path.exists() for path in files.values()):
                report.before += 1
                continue
            report.objects += _predict(segmenter, planes, files, args)
            report.done += 1
        except (UnreadableImage, TooFewValues, ValueError) as error:
            report.failures[file] = one_line(error)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            report.failures[file] = f"{printable(file)}: out of memory"


def _files(
    output: Path, name: str, num_planes: int, formats: Sequence[str]
) -> Dict[Tuple[str, int], Path]:
    """Returns the path of every file of a picture, by format and plane. A stack has plane -1."""
    files = {}
    for kind in dict.fromkeys(formats):
        folder, suffix = output, kind
        if kind == _OVERLAY:
            folder, suffix = output / _OVERLAYS, "png"
        if num_planes == 1 or kind == _LABELS:
            files[kind, -1] = folder / f"{name}.{suffix}"
        else:
            for plane in range(num_planes):
                files[kind, plane] = folder / f"{name}_{plane:04d}.{suffix}"
    return files


def _progress(unit: str, parts: Sequence[Any]) -> Iterable[Any]:
    """Shows the progress within a picture, if there are several parts and they take long."""
    if len(parts) == 1:
        return parts
    return tqdm(parts, unit=unit, leave=False, delay=_PROGRESS_AFTER, disable=None)


def _predict(
    segmenter: Segmenter,
    planes: Sequence[str],
    files: Dict[Tuple[str, int], Path],
    args: argparse.Namespace,
) -> int:
    """Segments the planes of a picture and writes the files that are missing."""
    stack: List[np.ndarray] = []
    layout = None
    is_stack = len(planes) > 1
    needs_stack = is_stack and (_LABELS, -1) in files and not files[_LABELS, -1].exists()
    objects = 0
    for number, plane in enumerate(_progress("plane", planes)):
        missing = {
            kind: path
            for (kind, place), path in files.items()
            if place in (-1, number) and not (is_stack and kind == _LABELS) and not path.exists()
        }
        if not missing and not needs_stack:
            continue
        found = segmenter.predict(plane, args.channels, args.tile, partial(_progress, "tile"))
        objects += len(found)
        for kind, path in missing.items():
            _write(found, kind, path)
        if needs_stack:
            if stack and found.labels.shape != stack[0].shape:
                sizes = ["{1} x {0}".format(*x.shape) for x in (stack[0], found.labels)]
                raise ValueError(
                    f"{printable(plane)} is {sizes[1]} pixels, and the planes before {sizes[0]}; "
                    "allowed for .tif: one size"
                )
            stack.append(found.labels)
            layout = found.layout
    if needs_stack:
        _write_stack(stack, files[_LABELS, -1], layout, args.stitch)
    return objects


def _write(found: Segmentation, kind: str, path: Path) -> None:
    if kind != _OVERLAY:
        with contextlib.suppress(FileExistsError):  # another process has just written it
            found.save(path)
        return
    content = cv2.imencode(".png", found.overlay()[:, :, ::-1])[1].tobytes()
    with replacing_file(path) as file:
        file.write(content)


def _write_stack(
    stack: List[np.ndarray], path: Path, layout: Optional[TiffLayout], min_iou: Optional[float]
) -> None:
    """Writes the label maps of a stack with its axes, and links objects of neighboring planes."""
    labels = np.stack(stack)
    axes, sides = "Z", (len(stack),)
    if layout and math.prod(layout.sides) == len(stack):
        axes, sides = layout.axes, layout.sides
    labels = labels.reshape(*sides, *labels.shape[1:])
    if min_iou is not None:
        depth = axes.index("Z") if "Z" in axes else len(axes) - 1
        volumes = np.moveaxis(labels, depth, -3)
        linked = np.zeros(volumes.shape, np.uint32)
        for place in np.ndindex(*volumes.shape[:-3]):
            linked[place] = stitch_planes(volumes[place], min_iou)
        if linked.max(initial=0) <= np.iinfo(np.uint16).max:
            linked = linked.astype(np.uint16)
        labels = np.moveaxis(linked, -3, depth)
    with replacing_file(path) as file:
        tifffile.imwrite(
            file,
            np.ascontiguousarray(labels),
            compression="zlib",
            photometric="minisblack",
            **ome_metadata(layout, f"{axes}YX"),
        )


if __name__ == "__main__":
    sys.exit(main())
