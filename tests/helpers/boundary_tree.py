"""A miniature of BSDS500: images of two halves, with the contours of three annotators."""

from pathlib import Path
from typing import List, Sequence, Tuple

import numpy as np
from PIL import Image

from tests.helpers.annotations import save_annotations

SIZES = ((48, 72), (72, 48))


def half_and_half(number: int, size: Tuple[int, int]) -> Tuple[np.ndarray, List[np.ndarray]]:
    """Returns an image (H, W, 3) uint8, dark left and bright right, and three contour maps.

    The maps are (H, W) bool. The last annotator drew only the upper half.
    """
    height, width = size
    column = width // 3 + 4 * number
    picture = np.full((height, width, 3), 60, np.uint8)
    picture[:, column:] = 190
    noise = np.random.default_rng(number).integers(0, 12, picture.shape, dtype=np.uint8)
    lines = np.zeros(size, bool)
    lines[:, column] = True
    part = lines.copy()
    part[height // 2 :] = False
    return picture + noise, [lines, lines, part]


def make_tree(root: Path, splits: Sequence[str] = ("train", "val"), per_split: int = 2) -> str:
    """Writes the folders and returns their root."""
    for split in splits:
        for kind in ("images", "groundTruth"):
            (root / kind / split).mkdir(parents=True)
        (root / "images" / split / "Thumbs.db").write_text("")
        for number in range(per_split):
            picture, annotations = half_and_half(number, SIZES[number % len(SIZES)])
            Image.fromarray(picture).save(root / "images" / split / f"{number + 7}.jpg", quality=95)
            save_annotations(root / "groundTruth" / split / f"{number + 7}.mat", annotations)
    return str(root)
