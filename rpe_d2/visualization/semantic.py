"""Maps of classes over their picture."""

from typing import List, Sequence, Tuple

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.utils.visualizer import Visualizer

from .instances import instance_colors

_BACKGROUND_COLOR = (40, 40, 40)
_OPACITY = 0.8


def class_colors(names: Sequence[str]) -> List[Tuple[int, int, int]]:
    """RGB in 0-255 of each class, the same in every picture; "background" is dark."""
    colors = (255 * instance_colors(len(names))).round().astype(int).tolist()
    return [
        _BACKGROUND_COLOR if name == "background" else tuple(color)
        for name, color in zip(names, colors)
    ]


def draw_classes(
    rgb: np.ndarray, labels: torch.Tensor, metadata: Metadata, scale: float = 1.0
) -> np.ndarray:
    """A picture under its classes.

    Args:
        rgb: (H, W, 3) uint8.
        labels: (H, W) integers from 0 on; what is no class of ``metadata`` is left as it is.
        metadata: with stuff_classes, and stuff_colors (0-255) where colours shall be the same in all pictures.
        scale: by which the picture is enlarged, so that names do not hide it.

    Returns:
        (scale x H, scale x W, 3) uint8.
    """
    visualizer = Visualizer(rgb, metadata, scale=scale)
    return visualizer.draw_sem_seg(labels.cpu(), alpha=_OPACITY).get_image()
