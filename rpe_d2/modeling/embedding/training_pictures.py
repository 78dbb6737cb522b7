"""Visualization of an embedding model in TensorBoard during training."""

from typing import List, Optional

import torch
from torch.nn import functional as F

from rpe_d2.ops.color import embedding_to_rgb

from .grouping import PixelGrouping
from .head import ImageMaps
from .image_points import image_points
from .labels import PixelLabels
from .mean_shift_layer import MeanShiftLayer
from .pixel_groups import PixelGroups


def embeddings_per_loop(
    maps: ImageMaps, shift: Optional[MeanShiftLayer], grouping: PixelGrouping
) -> List[torch.Tensor]:
    """Returns the embedding maps (D, h, w) before the first and after each inference loop.

    They cover the image without the padding of its batch. Without a layer that shifts them, there
    are no loops.
    """
    maps = maps.unpadded()
    if shift is None:
        return [maps.embeddings]
    points = image_points(
        maps,
        grouping.foreground(maps),
        shift,
        foreground_threshold=grouping.foreground_threshold,
        min_foreground=-1.0,
    )
    steps = shift.shift_points(
        points.x, points.votes, points.sizes, points.keys, return_trajectory=True
    )
    return [x.T.reshape(maps.embeddings.shape) for x, _ in steps]


def training_picture(
    image: torch.Tensor,
    input_format: str,
    maps: ImageMaps,
    labels: PixelLabels,
    groups: PixelGroups,
    loops: List[torch.Tensor],
) -> torch.Tensor:
    """Draws the image, the ground truth, the groups and the embeddings of every loop side by side.

    Args:
        image: (3, H, W) input of the network in 0-255.
        input_format: its channel order, "BGR" or "RGB".
        maps: predictions for the image.
        labels: ground truth of the image.
        groups: groups of the image.
        loops: embedding maps (D, h, w), see :func:`embeddings_per_loop`.

    Returns:
        (3, H, W * (3 + number of embedding maps)) uint8 RGB.
    """
    height, width = maps.image_size
    rgb = image.flip(0) if input_format == "BGR" else image
    panels = [rgb[:3, :height, :width].cpu().to(torch.uint8)]
    target = labels.instances[:height, :width]
    soft = F.interpolate(
        groups.soft_masks[None], scale_factor=maps.stride, mode="bilinear", align_corners=False
    )[0, :, :height, :width]
    pred = torch.full_like(target, -1)
    if len(soft):
        value, owner = soft.max(dim=0)
        pred = torch.where(value > 0.5, owner, pred)
    panels += [_label_colors(label_map.cpu()) for label_map in (target, pred)]
    # Colored as one image, equal embeddings of different loops have equal colors.
    colors = embedding_to_rgb(torch.cat(loops, dim=2)).split(loops[0].shape[2], dim=2)
    for color in colors:
        color = F.interpolate(color[None], scale_factor=maps.stride)[0]
        panels.append((color[:, :height, :width] * 255).cpu().to(torch.uint8))
    return torch.cat(panels, dim=2)


def _label_colors(label_map: torch.Tensor) -> torch.Tensor:
    """Colors labels (H, W), black for negative ones. Returns (3, H, W) uint8."""
    palette = torch.randint(64, 256, (3, 1024), generator=torch.Generator().manual_seed(0))
    palette[:, 0] = 0
    return palette[:, torch.where(label_map < 0, 0, label_map % 1023 + 1)].to(torch.uint8)
