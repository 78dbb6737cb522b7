"""What TensorBoard shows of an embedding model while it trains."""

from typing import List

import torch
from torch.nn import functional as F

from rpe_d2.ops.color import embedding_to_rgb

from .grouping import PixelGroups
from .head import EmbeddingMaps
from .labels import PixelLabels
from .mean_shift_layer import MeanShiftLayer


def loop_embeddings(
    maps: EmbeddingMaps, index: int, size: tuple, shift: MeanShiftLayer, foreground_threshold: float
) -> List[torch.Tensor]:
    """Embedding maps of one image before the first and after each inference loop, (D, h, w), padding cut off."""
    rows, columns = (-(-side // maps.stride) for side in size)
    embeddings = maps.embeddings[index, :, :rows, :columns]
    votes = maps.votes[index, :, :rows, :columns]
    foreground = 1 - maps.logits[index, :, :rows, :columns].softmax(dim=0)[-1]
    sizes = maps.sizes[index, 0, :rows, :columns]
    points = embeddings.flatten(1).T, votes.flatten(1).T, sizes.flatten()
    keys = shift.choose_keys(*points, foreground.flatten() >= foreground_threshold)
    steps = shift.settle(*points, keys, return_trajectory=True)
    return [x.T.reshape(embeddings.shape) for x, _ in steps]


def training_picture(
    image: torch.Tensor,
    input_format: str,
    maps: EmbeddingMaps,
    labels: PixelLabels,
    groups: PixelGroups,
    size: tuple,
    loops: List[torch.Tensor],
) -> torch.Tensor:
    """Image, ground truth, grouped instances and the embedding colours of every loop, side by side.

    Args:
        image: (3, H, W) as the network got it, 0-255.
        input_format: its channel order, "BGR" or "RGB".
        maps: of the batch whose first image this is.
        labels, groups: of this image.
        size: (H, W) without padding.
        loops: from :func:`loop_embeddings`.

    Returns:
        (3, H, W * (3 + number of maps)) uint8 RGB.
    """
    height, width = size
    rgb = image.flip(0) if input_format == "BGR" else image
    panels = [rgb[:3, :height, :width].cpu().to(torch.uint8)]
    truth = labels.instances[:height, :width]
    soft = F.interpolate(
        groups.soft_masks[None], scale_factor=maps.stride, mode="bilinear", align_corners=False
    )[0, :, :height, :width]
    found = torch.full_like(truth, -1)
    if len(soft):
        value, owner = soft.max(dim=0)
        found = torch.where(value > 0.5, owner, found)
    for label_map in (truth, found):
        panels.append(_label_colors(label_map.cpu()))
    # All loops as one picture: the same colour is the same embedding in each.
    colors = embedding_to_rgb(torch.cat(loops, dim=2)).split(loops[0].shape[2], dim=2)
    for color in colors:
        color = F.interpolate(color[None], scale_factor=maps.stride)[0]
        panels.append((color[:, :height, :width] * 255).cpu().to(torch.uint8))
    return torch.cat(panels, dim=2)


def _label_colors(label_map: torch.Tensor) -> torch.Tensor:
    """(H, W) labels, negative = none -> (3, H, W) uint8; neighbouring numbers get unlike colours."""
    palette = torch.randint(64, 256, (3, 1024), generator=torch.Generator().manual_seed(0))
    palette[:, 0] = 0
    return palette[:, torch.where(label_map < 0, 0, label_map % 1023 + 1)].to(torch.uint8)
