#!/usr/bin/env python3
"""Draws docs/refine.jpg: labels of other models before and after rpe_d2.refine.

usage: python dev/refine_figures.py [--data ../shared/data] [--base DEEPLAB.tflite]

The pictures are the cat and the astronaut of scikit-image with the classes of a DeepLab (see
dev/voc_base.py), and two of the nuclei's validation images with errors made by this package: the
image on which the refinement gains most, and the one on which it loses most or gains least.
"""

import argparse
import sys
from pathlib import Path
from typing import List, Tuple

import cv2
import numpy as np
import skimage.data

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.refine_runs import examples, scores_of  # noqa: E402
from dev.voc_base import DeepLab  # noqa: E402
from rpe_d2.refinement.degradation import mask_grid  # noqa: E402
from rpe_d2.refinement.label_geometry import boundary_pixels  # noqa: E402
from rpe_d2.refinement.refine import LabelRefiner  # noqa: E402

_SIDE = 300  # of a panel in pixels
_WINDOW = 96  # of an image of nuclei
_BASE = "../shared/data/voc2012_val/base/deeplabv3_mnv2_pascal_quant.tflite"

Row = Tuple[str, np.ndarray, np.ndarray, np.ndarray]  # title, image, labels before and after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--base", default=_BASE)
    parser.add_argument("--weights", default=None)
    parser.add_argument("--output", default="docs/refine.jpg")
    args = parser.parse_args()
    refiner = LabelRefiner.load(args.weights, "cpu")
    network = DeepLab(args.base)
    rows: List[Row] = []
    for name in ("cat", "astronaut"):
        image = getattr(skimage.data, name)()
        labels = network.logits(image).argmax(axis=-1).astype(np.uint8)
        refined = refiner.refine(image, labels, max_shift=16, may_split=True).result
        rows.append((f"{name}, DeepLab", image, labels, refined))
    gains = []
    for image, truth in examples("nuclei", "val", args.data, 20):
        given = mask_grid(truth, np.random.default_rng(0), 3.0)
        refined = refiner.refine(image, given).result
        gain = scores_of(refined, truth)["iou"] - scores_of(given, truth)["iou"]
        gains.append((gain, image, given, refined))
    gains.sort(key=lambda entry: entry[0])
    for gain, image, given, refined in (gains[-1], gains[0]):
        rows.append((f"nuclei, IoU {100 * gain:+.1f}", image, given, refined))
    figure = np.vstack([_row(*row) for row in rows])
    cv2.imwrite(str(ROOT / args.output), figure[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])


def _row(title: str, image: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Draws the square of an image with the most changes: alone, and with both outlines."""
    side = min(image.shape[:2]) if title.endswith("DeepLab") else _WINDOW
    changed = (before != after).astype(np.float32)
    density = cv2.boxFilter(changed, -1, (side, side), borderType=cv2.BORDER_CONSTANT)
    y, x = np.unravel_index(density.argmax(), density.shape)
    top = int(np.clip(y - side // 2, 0, image.shape[0] - side))
    left = int(np.clip(x - side // 2, 0, image.shape[1] - side))
    window = (slice(top, top + side), slice(left, left + side))
    panels = [_enlarged(image[window])]
    for labels in (before, after):
        large = cv2.resize(
            labels[window].astype(np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_NEAREST
        )
        panel = _enlarged(image[window])
        panel[boundary_pixels(large.astype(np.int64))] = (255, 220, 0)
        panels.append(panel)
    for panel, text in zip(panels, (title, "before", "after")):
        for color, width in (((0, 0, 0), 4), ((255, 255, 255), 1)):
            cv2.putText(
                panel, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, width, cv2.LINE_AA
            )
    gap = np.full((_SIDE, 6, 3), 255, np.uint8)
    row = np.hstack([panels[0], gap, panels[1], gap, panels[2]])
    return np.vstack([row, np.full((6, row.shape[1], 3), 255, np.uint8)])


def _enlarged(image: np.ndarray) -> np.ndarray:
    image = np.ascontiguousarray(image[..., :3])
    return cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)


if __name__ == "__main__":
    main()
