"""Refinement of label maps, which can be interrupted and continued."""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Dict, Optional

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image
from tqdm import tqdm

from rpe_d2.inference.predictor import IMAGE_SUFFIXES
from rpe_d2.utils.files import replacing_file
from rpe_d2.visualization import image_panel, instance_colors

from .mask_refiner import UNLABELLED, MaskRefiner, check_header, write_panels

# The file in the output folder that describes what the maps were made from.
_HEADER = "refine_masks.json"


class LabelMaps:
    """A folder of label maps and the state of its refinement."""

    def __init__(self, args: argparse.Namespace):
        """
        Args:
            args: the parsed arguments of the command.

        Raises:
            ValueError: if a folder cannot be used, or a map has no image.
        """
        source, images, self.output = Path(args.input), Path(args.images), Path(args.output)
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(
                f"--output {self.output} is a file; allowed: a folder, because --input is one"
            )
        maps = sorted(source.glob("*.png"))
        if not maps:
            raise ValueError(f"--input {source} has no PNG files")
        pictures = {
            path.stem: path
            for path in sorted(images.glob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
        }
        missing = [path.stem for path in maps if path.stem not in pictures]
        if missing:
            raise ValueError(
                f"--images {images} has no image for {len(missing)} maps: {missing[0]} …"
            )
        self.keep = args.keep
        # (map, image, output)
        self.work = [(path, pictures[path.stem], self.output / path.name) for path in maps]
        digest = hashlib.sha256()
        for path in maps:
            digest.update(f"{path.name}: {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
        self.digest = digest.hexdigest()

    def refine(self, refiner: MaskRefiner, header: Dict[str, Any], pictures: Optional[str]) -> None:
        """Refines the remaining maps and writes each one as soon as it is finished.

        Args:
            refiner: the model.
            header: header of the run.
            pictures: folder for figures, or None.
        """
        self._start(header)
        remaining = [item for item in enumerate(self.work) if not item[1][2].exists()]
        if len(remaining) < len(self.work):
            finished = len(self.work) - len(remaining)
            print(
                f"{finished} of {len(self.work)} maps are in {self.output} already",
                file=sys.stderr,
            )
        correct = counted = 0
        for number, (source, picture, output) in tqdm(remaining, desc="maps", unit="map"):
            labels = _read_labels(source)
            item = refiner.item(picture)
            size = item["height"], item["width"]
            if labels.shape != size:
                raise ValueError(
                    f"{source} has the size {labels.shape[0]} x {labels.shape[1]}; {picture} has "
                    f"{size[0]} x {size[1]}"
                )
            used = labels if self.keep is None else _keep_labels(labels, self.keep, number)
            refined = refiner.labels(item, used)
            held_out = (labels != UNLABELLED) & (used == UNLABELLED)
            correct += int((refined == labels)[held_out].sum())
            counted += int(held_out.sum())
            with replacing_file(output) as file:
                file.write(cv2.imencode(".png", refined)[1].tobytes())
            if pictures:
                truth = None if self.keep is None else labels
                _draw_labels(Path(pictures), picture, used, refined, truth)
            print(output)
        if counted:
            accuracy = 100 * correct / counted
            print(f"{accuracy:.2f} % of the labels that were not used are predicted correctly")

    def _start(self, header: Dict[str, Any]) -> None:
        """Creates the output folder, or checks that its maps come from a run with this header."""
        path = self.output / _HEADER
        if path.exists():
            check_header(path, path.read_text(), header)
            return
        existing = [output for _, _, output in self.work if output.exists()]
        if existing:
            raise ValueError(
                f"--output {self.output} has {existing[0].name} and no {_HEADER}, which describes "
                "its origin; allowed: a new folder, or that of an interrupted run"
            )
        self.output.mkdir(parents=True, exist_ok=True)
        with replacing_file(path) as file:
            file.write(json.dumps(header).encode())


def _read_labels(path: Path) -> np.ndarray:
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if labels is None or labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"{path} is not a PNG of 8-bit labels")
    return labels


def _keep_labels(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the map with only ``count`` of its labels, chosen at random."""
    known = np.flatnonzero(labels != UNLABELLED)
    chosen = np.random.default_rng(seed).permutation(known)[:count]
    kept = np.full_like(labels, UNLABELLED)
    kept.flat[chosen] = labels.flat[chosen]
    return kept


def _draw_labels(
    folder: Path, file: Path, before: np.ndarray, after: np.ndarray, truth: Optional[np.ndarray]
) -> None:
    """Draws an image with its labels before and after, and the ground truth if there is one."""
    image = read_image(str(file), format="RGB")
    colors = np.zeros((UNLABELLED + 1, 3))
    colors[:UNLABELLED] = instance_colors(UNLABELLED)
    maps = [(f"{(before != UNLABELLED).sum()} labels", _dilate(before)), ("spread", after)]
    if (before != UNLABELLED).mean() > 0.5:
        maps = [("labels", before), ("refined", after)]
    if truth is not None:
        maps.append(("all labels", truth))
    panels = [image_panel(image, "image")]
    panels += [image_panel(colors[labels], title, smooth=False) for title, labels in maps]
    write_panels(folder, file, panels, image)


def _dilate(labels: np.ndarray) -> np.ndarray:
    """Enlarges single labels to dots that remain visible in a small figure."""
    size = max(1, round(max(labels.shape) / 128))
    # Erosion takes the smallest value, and UNLABELLED is the largest.
    return cv2.erode(labels, np.ones((size, size), np.uint8))
