#!/usr/bin/env python3
"""Draws distorted digits and what spatial transformers make of them, for docs/attention.md.

usage: python dev/attention_figures.py [--network FCN] [--data ../shared/data]

It needs the weights that dev/attention_runs.py leaves in output/attention/.
"""

import argparse
import io
import sys
from pathlib import Path

import cv2
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dev.attention_runs import NETWORKS, TRANSFORMS, DigitNetwork, weights_of  # noqa: E402
from dev.distorted_digits import SIZE, Digits, distort, load_digits  # noqa: E402

_TITLES = {
    "R": "R: rotated",
    "RTS": "RTS: rotated, moved and scaled",
    "P": "P: projected",
    "E": "E: elastic",
}
_ROWS = {"none": "digits", "affine": "affine", "projective": "projective", "tps": "spline"}
_GAP = 2  # pixels between digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, default="FCN")
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    args = parser.parse_args()
    digits = load_digits(Path(args.data) / "mnist_digits" / "digits.npz")["test"]
    figure, axes = plt.subplots(2, 2, figsize=(10, 4.6))
    for (distortion, title), place in zip(_TITLES.items(), axes.flat):
        place.imshow(mosaic(digits, distortion, args.network), cmap="gray", vmin=0, vmax=1)
        middles = (SIZE + _GAP) * (np.arange(len(_ROWS)) + 0.5) - _GAP / 2
        place.set(title=title, xticks=[], yticks=middles, yticklabels=_ROWS.values())
        place.tick_params(length=0)
        place.spines[:].set_visible(False)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    picture = cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    path = ROOT / "docs" / "attention.jpg"
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 85])
    print(path.relative_to(ROOT))


@torch.no_grad()
def mosaic(digits: Digits, distortion: str, network: str) -> np.ndarray:
    """Returns rows of ten distorted digits: as they are, and after each kind of transformer.

    Raises:
        FileNotFoundError: A network was not trained.
    """
    first = torch.stack([(digits.labels == label).nonzero()[0, 0] for label in range(10)])
    generator = torch.Generator().manual_seed(1)
    images = distort(digits.images[first], distortion, generator)
    rows = []
    for transform in TRANSFORMS:
        model = DigitNetwork(network, transform).eval()
        if transform != "none":
            path = weights_of(distortion, network, transform)
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path.name} is missing: run python dev/attention_runs.py {distortion}"
                )
            model.load_state_dict(torch.load(path, weights_only=True))
        padded = F.pad(model.transformer(images), (0, _GAP, 0, _GAP), value=1.0)  # (10, 1, h, w)
        rows.append(torch.cat(list(padded[:, 0]), dim=1))
    return torch.cat(rows)[:-_GAP, :-_GAP].numpy()


if __name__ == "__main__":
    main()
