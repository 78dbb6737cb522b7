#!/usr/bin/env python3
"""Draws docs/sparse_labels.jpg: labels and colors of a few pixels, spread to all others.

usage: python dev/sparse_figures.py [--seed 1] [--data ../shared/data]

The networks are those of dev/sparse_runs.py. The pictures are the first and the middle one of the
test pictures of Stanford Background, for labels, and the same for color.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import List

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.equal_minutes import weights_of  # noqa: E402
from dev.measured_record import load_model  # noqa: E402
from dev.sparse_opponents import nearest  # noqa: E402
from dev.sparse_runs import (  # noqa: E402
    CONFIG,
    KINDS,
    RESULTS,
    Example,
    errors,
    examples,
    methods_of,
    resize_pictures,
)
from rpe_d2.visualization import instance_colors  # noqa: E402

_TITLES = {"nearest": "nearest", "random_walker": "random walker", "network": "network"}
_COUNT = 300
_SCALE = 0.5  # of a panel
_UNKNOWN = 0  # gray level of unknown and ignored pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--output", default="docs/sparse_labels.jpg")
    args = parser.parse_args()
    resize_pictures(Path(args.data) / "stanford_background")
    rows = [row for kind in KINDS for row in rows_of(kind, args.seed)]
    cv2.imwrite(
        str(ROOT / args.output), np.vstack(rows)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85]
    )


def rows_of(kind: str, seed: int) -> List[np.ndarray]:
    """Draws two pictures: as seen, the known pixels, the result of each method, and the truth."""
    weights = ROOT / weights_of(RESULTS / f"{kind}_{seed}.json")
    cfg, model = load_model(f"configs/{CONFIG}.yaml", str(weights), KINDS[kind].split())
    beta = json.loads((RESULTS / f"{kind}.json").read_text())["random_walker_beta"]
    methods = methods_of(kind, model, beta)
    rows = []
    for example in list(examples(kind, cfg, "test", _COUNT, 3))[:2]:
        panels = [_panel(example.image, "image"), _panel(_dots(kind, example), "known pixels")]
        for name, method in methods.items():
            found = method(example)
            title = f"{_TITLES[name]}, {_score(kind, errors(kind, found, example))}"
            panels.append(_panel(_drawn(kind, found, example), title))
        panels.append(_panel(_drawn(kind, example.truth, example), "truth"))
        rows.append(np.hstack(panels))
    return rows


def _score(kind: str, measured: dict) -> str:
    if kind == "labels":
        return f"{100 * measured['error']:.1f} %"
    return f"{measured['PSNR']:.1f} dB"


def _drawn(kind: str, values: np.ndarray, example: Example) -> np.ndarray:
    """Draws labels (H, W), or a and b (H, W, 2), as an image (H, W, 3) uint8 RGB."""
    if kind == "color":
        color = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        return cv2.cvtColor(np.dstack([example.image[..., :1], color]), cv2.COLOR_LAB2RGB)
    colors = np.zeros((256, 3))
    colors[:255] = np.resize(instance_colors(16), (255, 3))
    colors[255] = _UNKNOWN
    return (255 * colors[values]).astype(np.uint8)


def _dots(kind: str, example: Example) -> np.ndarray:
    """Draws the known pixels as dots."""
    size = np.ones((7, 7), np.uint8)
    near = cv2.dilate(example.known.astype(np.uint8), size) > 0
    drawn = _drawn(kind, nearest(example.truth, example.known), example)
    background = example.image if kind == "color" else np.full_like(drawn, _UNKNOWN)
    return np.where(near[..., None], drawn, background)


def _panel(image: np.ndarray, title: str) -> np.ndarray:
    panel = cv2.resize(image, None, fx=_SCALE, fy=_SCALE, interpolation=cv2.INTER_AREA)
    panel = np.ascontiguousarray(panel)
    for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(panel, title, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, color, width, cv2.LINE_AA)
    return np.pad(panel, ((0, 3), (0, 3), (0, 0)), constant_values=255)


if __name__ == "__main__":
    main()
