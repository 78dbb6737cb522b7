"""Masks and proposals of groups of pixels, computed from a few soft masks at a time."""

from typing import Callable, Tuple

import torch
from detectron2.structures import Instances

from ..masks import soft_mask_boxes, soft_masks_to_proposals, upsample_masks
from .head import ImageMaps
from .pixel_groups import PixelGroups


def masks_of_groups(
    maps: ImageMaps,
    groups: PixelGroups,
    order: torch.Tensor,
    out_size: Tuple[int, int],
    *,
    stride: int,
    refine: Callable[[torch.Tensor], torch.Tensor],
    mask_threshold: float,
    min_area: float,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Computes the masks of groups in full resolution and drops those that are too small.

    Args:
        maps: predictions for the image.
        groups: groups of its pixels.
        order: (n,) indices of the groups.
        out_size: (height, width) of the masks.
        stride: pixels per cell of the refined soft masks.
        refine: function that refines a few soft masks before they are thresholded.
        mask_threshold: value at or above which a pixel belongs to a soft mask.
        min_area: smallest area of a mask in pixels of the result.

    Returns:
        The indices (m,) of the remaining groups, and their masks (m, height, width) bool.
    """
    masks = torch.empty(len(order), *out_size, dtype=torch.bool, device=maps.logits.device)
    kept = [order[:0]]
    count = 0
    for index, soft_masks in groups.chunks(order):
        upsampled = upsample_masks(
            refine(soft_masks), stride, maps.image_size, out_size, mask_threshold
        )
        # One mask at a time, because torch converts what it sums over one dimension to int64.
        large = torch.stack([mask.count_nonzero() for mask in upsampled]) >= min_area
        kept.append(index[large])
        # The remaining masks are moved in place, without a second copy of all of them.
        for mask in upsampled[large]:
            masks[count] = mask
            count += 1
    return torch.cat(kept), masks[:count]


def proposals_of_groups(
    maps: ImageMaps,
    groups: PixelGroups,
    scores: torch.Tensor,
    out_size: Tuple[int, int],
    *,
    mask_threshold: float,
    mask_size: int,
) -> Instances:
    """Converts groups to proposals, see :func:`rpe_d2.modeling.masks.soft_masks_to_proposals`.

    Args:
        maps: predictions for the image.
        groups: R groups of its pixels.
        scores: (R,) scores in 0-1.
        out_size: (height, width) to which boxes are scaled.
        mask_threshold: value at or above which a cell belongs to a mask.
        mask_size: side of the proposals' masks.
    """
    size = maps.image_size

    def proposals_of(index: torch.Tensor, soft_masks: torch.Tensor) -> Instances:
        present, boxes = soft_mask_boxes(soft_masks, maps.stride, size, mask_threshold)
        return soft_masks_to_proposals(
            soft_masks[present],
            scores[index][present],
            boxes[present],
            maps.stride,
            size,
            out_size,
            mask_threshold,
            mask_size,
        )

    order = torch.argsort(scores, descending=True, stable=True)
    if len(order) == 0:
        return proposals_of(order, groups.soft_masks)
    return Instances.cat([proposals_of(*chunk) for chunk in groups.chunks(order)])
