#!/usr/bin/env python3
"""Draws mean shift on one of the authors' digit images, with their embeddings and with a model's.

usage: python dev/digit_figures.py CONFIG WEIGHTS MAIN001.mat [--image N]
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog
from scipy.io import loadmat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.measured_record import load_model  # noqa: E402
from rpe_d2.data import PixelLabelMapper  # noqa: E402
from rpe_d2.visualization import (  # noqa: E402
    draw_figure,
    image_panel,
    instance_colors,
    loop_panels,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("weights")
    parser.add_argument("mat", help="main001.mat, with the authors' images and embeddings")
    parser.add_argument("--image", type=int, default=1, help="number of the image, from 0")
    args = parser.parse_args()
    cfg, model = load_model(args.config, args.weights, ["DATASETS.DIGITS_AUTHORS", args.mat])
    item = DatasetCatalog.get("digits_authors")[args.image]
    mapped = PixelLabelMapper(cfg, is_train=True, augmentations=[])(item)
    rgb = mapped["image"].permute(1, 2, 0).numpy()
    masks = mapped["instances"].gt_masks.tensor.numpy()
    labels = np.where(masks.any(axis=0), masks.argmax(axis=0), -1)

    stored = loadmat(args.mat, squeeze_me=True)["predInstanceMaskMat"]
    theirs = [torch.from_numpy(x[..., args.image].astype(np.float32)) for x in stored]
    theirs = [x.permute(2, 0, 1).contiguous() for x in theirs]  # loops 1 to 5

    with torch.no_grad():
        (maps,) = model.predict_maps([mapped])
        ours = model.embeddings_per_loop(maps.unpadded())[: len(theirs) + 1]
    dim = ours[0].shape[0]
    ours = on_three_axes(ours, labels)
    image = image_panel(rgb, "image", "64 x 64 pixels")
    colors = np.concatenate([[[0.0] * 3], instance_colors(len(masks))])
    digits = image_panel((255 * colors[labels + 1]).astype(np.uint8), "true digits", smooth=False)
    rows = [
        [image, digits, *panels("authors", theirs, 1, "3 dimensions", labels)],
        [image, *panels("ours", ours, 0, f"{dim} dimensions, their 3 main axes", labels)],
    ]
    png = draw_figure(rows, "Embeddings after each loop of mean shift, as colors", labels.shape)
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    path = ROOT / "docs" / "paper_loops.jpg"
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 80])
    print(path.relative_to(ROOT))


def panels(name: str, loops: list, first: int, note: str, labels: np.ndarray) -> list:
    """Draws embeddings (3, H, W) as colors, one panel for each loop from number ``first`` on."""
    everywhere = torch.ones(labels.shape, dtype=torch.bool)
    _, colors = loop_panels(loops, everywhere, labels, "", 1, labels.shape)
    return [
        panel._replace(title=f"{name}, loop {number}", note=note)
        for number, panel in enumerate(colors, start=first)
    ]


def on_three_axes(loops: list, labels: np.ndarray) -> list:
    """Projects embeddings (D, H, W) on the axes in which the means of the groups vary most."""
    means = [loops[-1][:, torch.from_numpy(labels == n)].mean(dim=1) for n in np.unique(labels)]
    means = torch.stack(means) - torch.stack(means).mean(dim=0)
    axes = torch.linalg.svd(means).Vh[:3]  # (3, D)
    return [torch.einsum("kd,dhw->khw", axes, x) for x in loops]


if __name__ == "__main__":
    main()
