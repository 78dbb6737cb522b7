"""Soft masks from a picture to a grid of cells and back."""

from typing import Sequence

import torch
from torch.nn import functional as F

from .layers import resize_maps

# Full-resolution masks are made this many pixels at a time (float32: 256 MB).
_UPSAMPLE_ELEMENTS = 1 << 26


def masks_on_grid(masks: torch.Tensor, size: Sequence[int], stride: int) -> torch.Tensor:
    """Masks of a picture as means over the cells of a grid.

    Args:
        masks: (R, h, w) bool or in 0-1, of any resolution.
        size: (H, W) of the network's input image, which they are resized to.
        stride: pixels per cell; the last cells may reach beyond the image.

    Returns:
        (R, ceil(H / stride), ceil(W / stride)) float32 in 0-1.
    """
    if len(masks) == 0:
        return masks.new_zeros(0, *(-(-side // stride) for side in size), dtype=torch.float32)
    masks = resize_maps(masks.float()[None], size)
    return F.avg_pool2d(masks, stride, ceil_mode=True)[0]


def upsample_masks(
    soft_masks: torch.Tensor, stride: int, size: tuple, out_size: tuple, threshold: float
) -> torch.Tensor:
    """Soft masks on a grid to boolean masks of a picture; interpolated first, cut afterwards.

    Args:
        soft_masks: (R, h, w) in 0-1 on cells of ``stride`` pixels.
        stride: pixels per cell.
        size: (H, W) of the network's input image.
        out_size: (height, width) wanted.
        threshold: in 0-1.

    Returns:
        (R, height, width) bool.
    """
    height, width = (side * stride for side in soft_masks.shape[-2:])
    at_once = max(1, _UPSAMPLE_ELEMENTS // max(1, height * width, out_size[0] * out_size[1]))
    masks = torch.empty(len(soft_masks), *out_size, dtype=torch.bool, device=soft_masks.device)
    for start in range(0, len(soft_masks), at_once):
        chunk = soft_masks[None, start : start + at_once]
        chunk = F.interpolate(chunk, size=(height, width), mode="bilinear", align_corners=False)
        chunk = chunk[..., : size[0], : size[1]]
        if tuple(out_size) != tuple(size):
            chunk = F.interpolate(chunk, size=tuple(out_size), mode="bilinear", align_corners=False)
        masks[start : start + at_once] = chunk[0] >= threshold
    return masks


def cut_at_half(masks: torch.Tensor, threshold: float) -> torch.Tensor:
    """(R, 1, m, m) that are 0.5 where masks (R, m, m) are at their threshold: there Detectron2 cuts them."""
    low = masks * (0.5 / threshold)
    high = 1 - (1 - masks) * (0.5 / (1 - threshold))
    return torch.where(masks < threshold, low, high).unsqueeze(1)
