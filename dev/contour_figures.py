#!/usr/bin/env python3
"""Draws the embeddings of a contour model before and after the second stage of its training.

usage: python dev/contour_figures.py CONFIG BEFORE.pth AFTER.pth [--image NAME]

The image is one of scikit-image's own. What is drawn has the levels of the network together. The
second row has the angles of the embeddings around the contours that the model predicts.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch
from skimage.morphology import skeletonize

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.measured_record import load_model  # noqa: E402
from rpe_d2.visualization import (  # noqa: E402
    angle_panels,
    draw_figure,
    image_panel,
    level_panels,
)

_SIDE = 480  # pixels of the longer side, as in BSDS500
_CONTOUR = 0.5  # output above which a pixel is on a contour
_STAGES = {
    # Without the logistic stage, pixels are scored by their distances from the two groups' centers.
    "pair loss alone": ["MODEL.BOUNDARY.LOGISTIC_LOSS_WEIGHT", "0.0"],
    "both losses": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--image", default="chelsea", help="a function of skimage.data")
    args = parser.parse_args()
    rgb = getattr(skimage.data, args.image)()
    scale = _SIDE / max(rgb.shape[:2])
    rgb = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    row, angles = [image_panel(rgb, "image", f"{args.image}, of scikit-image")], []
    for (name, opts), weights in zip(_STAGES.items(), (args.before, args.after)):
        cfg, model = load_model(args.config, weights, opts)
        image = rgb if cfg.INPUT.FORMAT == "RGB" else rgb[:, :, ::-1]
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        with torch.no_grad():
            maps, scores = model.predict_levels({"image": tensor})
        levels = level_panels(maps.embeddings[0][-1:], scores[-1:], ["all levels"], "pca")
        (embeddings,), (output,) = levels
        contours = skeletonize((scores[-1] > _CONTOUR).numpy())
        for panel in angle_panels(maps.embeddings[0][-1], contours.astype(np.float32)):
            angles.append(panel._replace(title=f"{name}: {panel.title}"))
        row += [embeddings._replace(title=name), output._replace(title=f"{name}: contours")]
    png = draw_figure([row, angles], "Embeddings of contours after each stage", rgb.shape[:2])
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    path = ROOT / "docs" / "contour_embeddings.jpg"
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 80])
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
