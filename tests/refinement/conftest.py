"""Scenes of labeled objects."""

import cv2
import numpy as np
import pytest


def scene(seed: int, size: int = 96, count: int = 9) -> np.ndarray:
    """Draws ellipses that touch and hide each other into a label map (size, size) int32."""
    random = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    for label in random.permutation(count) + 1:
        center = tuple(int(v) for v in random.integers(0, size, 2))
        axes = tuple(int(v) for v in random.integers(4, size // 6, 2))
        cv2.ellipse(labels, center, axes, float(random.uniform(0, 180)), 0, 360, int(label), -1)
    return labels


def image_of(labels: np.ndarray, seed: int = 0, noise: float = 8.0) -> np.ndarray:
    """Colors a label map: an image (H, W, 3) uint8 in which each label has one color."""
    random = np.random.default_rng(seed)
    colors = random.uniform(30, 225, (int(labels.max()) + 1, 3))
    return np.clip(colors[labels] + random.normal(0, noise, (*labels.shape, 3)), 0, 255).astype(
        np.uint8
    )


@pytest.fixture(params=range(3))
def labels(request) -> np.ndarray:
    return scene(request.param)
