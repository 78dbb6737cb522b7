"""The command line of ``rpe-d2 refine``."""

import argparse
import hashlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import tifffile
from PIL import Image
from tqdm import tqdm

from rpe_d2.refinement.refine import WEIGHTS, LabelRefiner
from rpe_d2.utils.errors import one_line, one_line_errors
from rpe_d2.utils.files import make_writable_folder, replacing_file, write_new_file
from rpe_d2.utils.image_files import (
    IMAGE_SUFFIXES,
    image_stem,
    list_images,
    plane_names,
    printable,
)
from rpe_d2.utils.images import ImageReader, to_rgb
from rpe_d2.utils.label_folders import match_files
from rpe_d2.utils.label_maps import read_label_map
from rpe_d2.utils.probability_maps import encode_probabilities, read_probabilities
from rpe_d2.utils.readable import UnreadableImage
from rpe_d2.utils.tiff_files import ome_metadata, tiff_layout
from rpe_d2.visualization import draw_instances, image_panel, instance_colors

from .arguments import command_line, number_type
from .mask_refiner import start_folder, write_panels
from .refine_results import Results

# Describes in the output folder what the maps were made from.
_HEADER = Path("run", "refine.json")
_SHIFT = number_type("above 0", lambda value: 0 < value < float("inf"))


def main(argv: Optional[List[str]] = None) -> int:
    """Refines label maps, class probabilities, or the masks of COCO results, of any model.

    Label maps keep their names and number types, and those of several planes are refined plane by
    plane. Class probabilities remain NPZ files. COCO results keep their entries. An interrupted
    command continues when it is started again, and nothing is overwritten.

    Returns:
        Exit status: 0, 1 if a label map could not be refined, or 2 with a one-line error if an
        argument is wrong.
    """
    args = _parse(argv)
    with one_line_errors():
        labels, output = Path(args.labels), Path(args.output)
        if not labels.exists():
            raise ValueError(f"LABELS is {labels}; there is no such file or folder")
        if output.resolve() == labels.resolve():
            raise ValueError(f"--output {output} is the input, which is not overwritten")
        refiner = _FileRefiner(args)
        if args.pictures:
            make_writable_folder("--pictures", Path(args.pictures))
        if labels.suffix.lower() == ".json":
            results = argparse.Namespace(**vars(args), input=args.labels, sparse=False)
            work = Results(results)
            work.refine(refiner, {"input": work.digest, **refiner.settings}, args.pictures)
            return 0
        failures = _refine_maps(refiner, args, command_line("tools/refine.py", argv))
    return 1 if failures else 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Refines label maps or masks of any model, so that they fit the images better."
    )
    parser.add_argument("images", metavar="IMAGES", help="folder of the images, or one image")
    parser.add_argument(
        "labels",
        metavar="LABELS",
        help="folder of label maps with the names of the images, one label map, or COCO results "
        "(JSON); with --probabilities: NPZ files",
    )
    parser.add_argument("--output", required=True, metavar="PATH", help="a new folder or file")
    parser.add_argument(
        "--max-shift",
        type=_SHIFT,
        default=8.0,
        metavar="PIXELS",
        help="no boundary moves farther (8)",
    )
    parser.add_argument(
        "--may-split", action="store_true", help="objects may vanish or fall into parts"
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="LABELS are NPZ files with probabilities (K, H, W), as nnU-Net writes them",
    )
    parser.add_argument("--annotations", metavar="FILE", help="COCO JSON that names the images")
    parser.add_argument("--weights", metavar="FILE", help="other weights, .safetensors or .pth")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument("--channels", default="", help="INPUT.CHANNELS: mean, 2, or 0,1,1")
    parser.add_argument(
        "--pictures", metavar="DIR", help="also draw each image with its labels before and after"
    )
    return parser.parse_args(argv)


class _FileRefiner:
    """Refines labels of image files, for label maps and for :class:`Results`."""

    def __init__(self, args: argparse.Namespace):
        self._refiner = LabelRefiner.load(args.weights, args.device)
        self._reader = ImageReader("RGB", channels=args.channels)
        self._options = {"max_shift": args.max_shift, "may_split": args.may_split}
        weights = Path(args.weights or WEIGHTS).read_bytes()
        self.settings: Dict[str, Any] = {
            "weights": hashlib.sha256(weights).hexdigest(),
            **self._options,
            "channels": args.channels,
        }

    def drawable(self, file: Path) -> np.ndarray:
        """Reads an image (H, W, 3) uint8 RGB."""
        return to_rgb(self._reader.read(str(file)))

    def item(self, file: Path) -> Dict[str, Any]:
        """Reads an image for :meth:`masks`."""
        image = self.drawable(file)
        return {"image": image, "height": image.shape[0], "width": image.shape[1]}

    def masks(self, item: Dict[str, Any], masks: np.ndarray) -> np.ndarray:
        """Refines masks (R, H, W) bool."""
        return self._refiner.refine(item["image"], masks, **self._options).result

    def maps(self, image: np.ndarray, labels: np.ndarray) -> Tuple[np.ndarray, Dict[str, Any]]:
        """Refines a label map or probabilities, and returns them with a report."""
        refined = self._refiner.refine(image, labels, **self._options)
        return refined.result, refined.report


def _refine_maps(refiner: _FileRefiner, args: argparse.Namespace, command: str) -> Dict[str, str]:
    """Refines the maps that are not refined yet. Returns the reasons of failures by file."""
    pairs = _pairs(args)
    kind = "files" if args.probabilities else "label maps"
    refine_file = _refine_probabilities if args.probabilities else _refine_labels
    output = Path(args.output)
    header = {"labels": os.path.abspath(args.labels), **refiner.settings}
    start_folder(output, _HEADER, header, [output / Path(labels).name for _, labels in pairs])
    failures: Dict[str, str] = {}
    reports: Dict[str, Any] = {}
    for image, labels in tqdm(pairs, desc="refine", unit="map", disable=None):
        target = output / Path(labels).name
        if target.exists():
            continue
        try:
            content, reports[labels] = refine_file(refiner, image, labels, args.pictures)
            with replacing_file(target) as file:
                file.write(content)
        except (UnreadableImage, ValueError) as error:
            failures[labels] = one_line(error)
    changed = sum(part["changed_pixels"] for rows in reports.values() for part in rows)
    before = len(pairs) - len(reports) - len(failures)
    print(f"{len(reports)} of {len(pairs)} {kind} refined, {changed} pixels changed")
    if before:
        print(f"{before} were done before")
    for reason in failures.values():
        print(f"failed: {reason}")
    content = {"command": command, "failures": failures, kind: reports}
    text = json.dumps(content, indent=1) + "\n"
    print(write_new_file(output / _HEADER.parent / "report.json", text.encode()))
    return failures


def _pairs(args: argparse.Namespace) -> List[Tuple[str, str]]:
    """Returns the files of each image and of its labels."""
    suffixes = (".npz",) if args.probabilities else IMAGE_SUFFIXES
    is_folder = os.path.isdir(args.labels)
    files = list_images(args.labels, suffixes=(".npz", *suffixes)) if is_folder else [args.labels]
    if not any(file.lower().endswith(suffixes) for file in files):
        hint = "" if args.probabilities or not files else "; .npz files need --probabilities"
        raise ValueError(f"LABELS is {args.labels}; allowed: {', '.join(suffixes)}{hint}")
    if not is_folder:
        return [(args.images, args.labels)]
    matched = match_files(("LABELS", args.labels), ("IMAGES", args.images), suffixes)
    return [(image, labels) for labels, image in matched]


def _refine_labels(
    refiner: _FileRefiner, image: str, labels: str, pictures: Optional[str]
) -> Tuple[bytes, List[Dict[str, Any]]]:
    """Refines all planes of a label map.

    Returns:
        The content of the new file, and a report of each plane.
    """
    planes = plane_names(image), plane_names(labels)
    if len(planes[0]) != len(planes[1]):
        raise ValueError(
            f"{printable(labels)} has {len(planes[1])} planes; allowed with {printable(image)}: "
            f"{len(planes[0])}"
        )
    refined, reports = [], []
    for picture, plane in zip(*planes):
        given = read_label_map(plane)
        pixels = refiner.drawable(Path(picture))
        try:
            new, report = refiner.maps(pixels, given)
        except ValueError as error:
            raise ValueError(f"{printable(plane)}: {error}") from error
        if pictures:
            _draw(Path(pictures), Path(image_stem(plane)), pixels, given, new)
        refined.append(new)
        reports.append({name: value for name, value in report.items() if name != "objects"})
    refined_map = np.stack(refined) if len(refined) > 1 else refined[0]
    return _encoded(refined_map, labels, os.path.splitext(labels)[1].lower()), reports


def _refine_probabilities(
    refiner: _FileRefiner, image: str, file: str, pictures: Optional[str]
) -> Tuple[bytes, List[Dict[str, Any]]]:
    """Refines the probabilities of classes.

    Returns:
        The content of the new file, and a list of one report.
    """
    pixels = refiner.drawable(Path(image))
    given = read_probabilities(file, pixels.shape[:2])
    new, report = refiner.maps(pixels, given)
    if pictures:
        _draw(Path(pictures), Path(image_stem(file)), pixels, given.argmax(0), new.argmax(0))
    report.pop("objects")
    return encode_probabilities(new), [report]


def _encoded(labels: np.ndarray, source: str, suffix: str) -> bytes:
    """Encodes a label map as a file of the kind of its input."""
    largest = int(labels.max(initial=0))
    kind = next(k for k in (np.uint8, np.uint16, np.uint32) if largest <= np.iinfo(k).max)
    if labels.min(initial=0) < 0:
        kind = np.int32
    labels = labels.astype(kind)
    buffer = io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, labels)
    elif suffix == ".png":
        Image.fromarray(labels).save(buffer, format="PNG")
    else:
        layout = tiff_layout(source)
        axes = f"{layout.axes if layout and labels.ndim == 3 else 'Z' * (labels.ndim - 2)}YX"
        if layout and labels.ndim == 3 and np.prod(layout.sides) == len(labels):
            labels = labels.reshape(*layout.sides, *labels.shape[1:])
        tifffile.imwrite(
            buffer,
            labels,
            compression="zlib",
            photometric="minisblack",
            **ome_metadata(layout, axes),
        )
    return buffer.getvalue()


def _draw(
    folder: Path, file: Path, image: np.ndarray, before: np.ndarray, after: np.ndarray
) -> None:
    """Draws an image with its objects before and after."""
    values = np.setdiff1d(before, [0])
    colors, names = instance_colors(len(values)), [""] * len(values)
    panels = [image_panel(image, "image")]
    for title, labels in (("labels", before), ("refined", after)):
        masks = labels == values[:, None, None]
        panels.append(image_panel(draw_instances(image, masks, colors, names), title))
    write_panels(folder, file, panels, image)


if __name__ == "__main__":
    sys.exit(main())
