#!/usr/bin/env python3
"""Draws the embeddings of a contour model before and after the second stage of its training.

usage: python dev/contour_figures.py CONFIG BEFORE.pth AFTER.pth BSDS [--image N]

The level that is drawn has all levels together.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.measured_record import load_model  # noqa: E402
from rpe_d2.data import BoundaryMapper  # noqa: E402
from rpe_d2.visualization import draw_figure, image_panel  # noqa: E402
from rpe_d2.visualization.contours import annotator_panels, level_panels  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("bsds", help="folder of BSDS500")
    parser.add_argument("--image", type=int, default=0, help="number of the image, from 0")
    args = parser.parse_args()
    rows = []
    for name, weights in (("pair loss alone", args.before), ("both losses", args.after)):
        cfg, model = load_model(args.config, weights, ["DATASETS.BSDS", args.bsds])
        item = DatasetCatalog.get(cfg.DATASETS.TEST[0])[args.image]
        mapped = BoundaryMapper(cfg, is_train=False)(item)
        annotations = mapped["boundaries"].numpy()
        with torch.no_grad():
            maps, scores = model.predict_levels(mapped)
        embeddings = maps.embeddings[0][-1:]
        (panels,), (output,) = level_panels(
            embeddings, scores[-1:], ["all levels"], "pca", annotations.mean(axis=0)
        )
        row = [panels._replace(title=name), output._replace(title=f"{name}: output")]
        if rows:
            rows.append([*annotator_panels(annotations), *row])
        else:
            rgb = mapped["image"].permute(1, 2, 0).numpy()
            if cfg.INPUT.FORMAT == "BGR":
                rgb = rgb[:, :, ::-1]
            rows.append([image_panel(rgb, "image", ""), *row])
    png = draw_figure(rows, "Embeddings before and after fine-tuning", rgb.shape[:2])
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    path = ROOT / "docs" / "contour_embeddings.jpg"
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 80])
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
