"""Semantic label maps drawn over images."""

from typing import Any, List, Sequence, Tuple

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.utils import visualizer
from matplotlib import rc_context

from .instances import instance_colors

_BACKGROUND_COLOR = (40, 40, 40)
_OPACITY = 0.8


def class_colors(names: Sequence[str]) -> List[Tuple[int, int, int]]:
    """Returns an RGB color in 0 to 255 for each class, the same in every image."""
    colors = (255 * instance_colors(len(names))).round().astype(int).tolist()
    return [
        _BACKGROUND_COLOR if name == "background" else tuple(color)
        for name, color in zip(names, colors)
    ]


class Visualizer(visualizer.Visualizer):
    """Detectron2's visualizer, which also draws names with dollar signs as they are."""

    def draw_text(self, *args: Any, **kwargs: Any) -> Any:
        """Draws a text; the arguments are those of Detectron2's method."""
        with rc_context({"text.parse_math": False}):
            return super().draw_text(*args, **kwargs)


def draw_classes(
    rgb: np.ndarray, labels: torch.Tensor, metadata: Metadata, scale: float = 1.0
) -> np.ndarray:
    """Draws a label map over an image.

    Args:
        rgb: (H, W, 3) uint8.
        labels: (H, W) integer. Pixels whose label is not a class of ``metadata`` stay unchanged.
        metadata: metadata with ``stuff_classes``, and with ``stuff_colors`` (0 to 255) if colors
            must be the same in all images.
        scale: enlargement of the image, so that names do not hide it.

    Returns:
        (scale x H, scale x W, 3) uint8.
    """
    return Visualizer(rgb, metadata, scale).draw_sem_seg(labels.cpu(), alpha=_OPACITY).get_image()
