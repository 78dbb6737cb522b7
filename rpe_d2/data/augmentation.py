"""Augmentations that Detectron2 lacks, for images without an upright orientation."""

from typing import List

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T


def additional_augmentations(cfg: CfgNode) -> List[T.Augmentation]:
    """Builds the training augmentations of ``INPUT.QUARTER_TURNS`` and ``INPUT.COLOR_JITTER``.

    They are applied after Detectron2's own.

    Raises:
        ValueError: ``INPUT.COLOR_JITTER`` is out of range.
    """
    # Projects that have not added this package's keys may use the mapper too.
    augmentations = [RandomQuarterTurn()] if cfg.INPUT.get("QUARTER_TURNS") else []
    jitter = cfg.INPUT.get("COLOR_JITTER", 0.0)
    if not 0 <= jitter < 1:
        raise ValueError(f"INPUT.COLOR_JITTER is {jitter}; allowed: 0 to below 1")
    if jitter:
        low, high = 1 - jitter, 1 + jitter
        augmentations += [
            T.RandomContrast(low, high),
            T.RandomBrightness(low, high),
            T.RandomSaturation(low, high),
        ]
    return augmentations


class RandomQuarterTurn(T.Augmentation):
    """Rotates by 0, 90, 180 or 270 degrees, with a flip all eight symmetries of the square."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return QuarterTurnTransform(np.random.randint(4), *image.shape[:2])


class QuarterTurnTransform(T.Transform):
    """Rotates an image counterclockwise by multiples of 90 degrees, without interpolation."""

    def __init__(self, quarters: int, height: int, width: int):
        """
        Args:
            quarters: number of quarter turns, 0 to 3.
            height: height of the input image in pixels.
            width: width of the input image in pixels.
        """
        super().__init__()
        self.quarters = quarters
        self.height, self.width = height, width

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(image, self.quarters))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Transforms (N, 2) x, y in continuous pixel coordinates."""
        x, y = coords[:, 0], coords[:, 1]
        turned = {
            0: (x, y),
            1: (y, self.width - x),
            2: (self.width - x, self.height - y),
            3: (self.height - y, x),
        }[self.quarters]
        return np.stack(turned, axis=1)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation)

    def inverse(self) -> "QuarterTurnTransform":
        size = (self.width, self.height) if self.quarters % 2 else (self.height, self.width)
        return QuarterTurnTransform(-self.quarters % 4, *size)
