"""Refinement of label maps, which can be interrupted and continued."""

import argparse
import hashlib
import io
import sys
from pathlib import Path
from typing import Any, Dict, Optional

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from rpe_d2.utils.files import replacing_file
from rpe_d2.utils.image_files import list_images
from rpe_d2.utils.label_maps import (
    LABEL_SUFFIXES,
    check_unlabeled,
    read_class_indices,
    unlabeled_value,
)
from rpe_d2.visualization import image_panel, instance_colors

from .mask_refiner import MaskRefiner, start_folder, write_panels

# The file in the output folder that describes what the maps were made from.
_HEADER = Path("refine_masks.json")


class LabelMaps:
    """A folder of label maps and the state of its refinement."""

    def __init__(self, args: argparse.Namespace):
        """
        Args:
            args: the parsed arguments of the command.

        Raises:
            ValueError: If a folder cannot be used, or a map has no image.
        """
        source, images, self.output = Path(args.input), Path(args.images), Path(args.output)
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(
                f"--output {self.output} is a file; allowed: a folder, because --input is one"
            )
        maps = sorted(p for p in source.glob("*") if p.suffix.lower() in LABEL_SUFFIXES)
        if not maps:
            raise ValueError(f"--input {source} has no PNG files, TIFF files or NPY files")
        pictures = {Path(path).stem: Path(path) for path in list_images(str(images))}
        missing = [path.stem for path in maps if path.stem not in pictures]
        if missing:
            raise ValueError(
                f"--images {images} has no image for {len(missing)} maps: {missing[0]} …"
            )
        unlabeled = unlabeled_value(_read_labels(maps[0]))
        check_unlabeled(f"--input {source}", map(_read_labels, maps), unlabeled)
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
        start_folder(self.output, _HEADER, header, [output for *_, output in self.work])
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
            unlabeled = unlabeled_value(labels)
            held_out = (labels != unlabeled) & (used == unlabeled)
            correct += int((refined == labels)[held_out].sum())
            counted += int(held_out.sum())
            with replacing_file(output) as file:
                file.write(_encode(refined, output.suffix.lower()))
            if pictures:
                truth = None if self.keep is None else labels
                image = refiner.drawable(picture)
                _draw_labels(Path(pictures), picture, image, used, refined, truth)
            print(output)
        if counted:
            accuracy = 100 * correct / counted
            print(f"{accuracy:.2f} % of the labels that were not used are predicted correctly")


def _read_labels(path: Path) -> np.ndarray:
    """Reads a map (H, W) uint8 or uint16."""
    labels = read_class_indices(path, "--input")
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= 2**16:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"{path} has the label {wrong}; allowed: 0 to {2**16 - 1}")
    return labels if labels.dtype == np.uint8 else labels.astype(np.uint16)


def _encode(labels: np.ndarray, suffix: str) -> bytes:
    """Encodes a map as a file of the suffix of its input."""
    buffer = io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, labels)
    else:
        Image.fromarray(labels).save(buffer, format="PNG" if suffix == ".png" else "TIFF")
    return buffer.getvalue()


def _keep_labels(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the map with only ``count`` of its labels, chosen at random."""
    known = np.flatnonzero(labels != unlabeled_value(labels))
    chosen = np.random.default_rng(seed).permutation(known)[:count]
    kept = np.full_like(labels, unlabeled_value(labels))
    kept.flat[chosen] = labels.flat[chosen]
    return kept


def _draw_labels(
    folder: Path,
    file: Path,
    image: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    truth: Optional[np.ndarray],
) -> None:
    """Draws an image with its labels before and after, and the ground truth if there is one."""
    unlabeled = unlabeled_value(before)
    colors = np.zeros((unlabeled + 1, 3))
    colors[:unlabeled] = np.resize(instance_colors(255), (unlabeled, 3))
    maps = [(f"{(before != unlabeled).sum()} labels", _dilate(before)), ("spread", after)]
    if (before != unlabeled).mean() > 0.5:
        maps = [("labels", before), ("refined", after)]
    if truth is not None:
        maps.append(("all labels", truth))
    panels = [image_panel(image, "image")]
    panels += [image_panel(colors[labels], title, smooth=False) for title, labels in maps]
    write_panels(folder, file, panels, image)


def _dilate(labels: np.ndarray) -> np.ndarray:
    """Enlarges single labels to dots that remain visible in a small figure."""
    size = max(1, round(max(labels.shape) / 128))
    # Erosion takes the smallest value, and the value of unlabeled pixels is the largest.
    return cv2.erode(labels, np.ones((size, size), np.uint8))
