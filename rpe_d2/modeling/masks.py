"""Proposals with soft masks relative to their boxes, the format that generators and ROI heads share."""

from typing import Optional, Tuple

import torch
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F
from torchvision.ops import nms, roi_align

from .soft_masks import cut_at_half


def mask_overlaps(
    soft_masks: torch.Tensor, relative_to: str, mask_threshold: float
) -> torch.Tensor:
    """Common areas of masks.

    Args:
        soft_masks: (R, h, w) in 0-1.
        relative_to: "union": the usual IoU. "smaller": of the smaller mask.
        mask_threshold: where the masks are cut.

    Returns:
        (R, R) in 0-1; 0 for empty masks.
    """
    masks = (soft_masks >= mask_threshold).flatten(1).float()
    areas = masks.sum(dim=1)
    common = masks @ masks.T
    if relative_to == "union":
        area = areas[:, None] + areas - common
    else:
        area = torch.minimum(areas[:, None], areas)
    return common / area.clamp(min=1)


def suppress(overlaps: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression: what overlaps a better one that stays by more than the threshold goes.

    Args:
        overlaps: (R, R) symmetric, in 0-1.
        scores: (R,).
        threshold: 0-1; at 1 everything stays.

    Returns:
        (K,) indices of what stays, by falling score.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    # Row i suppresses column j only where i is the better one.
    suppresses = (overlaps[order][:, order] > threshold).triu(diagonal=1)
    stays = torch.ones_like(scores, dtype=torch.bool)
    # Each round settles at least one more; the longest chain of overlaps bounds the rounds.
    while True:
        settled = ~(suppresses & stays[:, None]).any(dim=0)
        if torch.equal(settled, stays):
            return order[stays]
        stays = settled


def suppress_overlaps(
    soft_masks: torch.Tensor, scores: torch.Tensor, threshold: float, mask_threshold: float
) -> torch.Tensor:
    """:func:`suppress` of masks that overlap by more than a part of the smaller one.

    Of a group and the two halves that a narrower bandwidth finds in it, either the whole or the halves stay; by IoU a
    whole and its smaller part would.

    Args:
        soft_masks: (R, h, w) in 0-1.
        scores: (R,).
        threshold: 0-1; at 1 everything stays.
        mask_threshold: where the masks are cut.

    Returns:
        (K,) indices of what stays, by falling score.
    """
    return suppress(mask_overlaps(soft_masks, "smaller", mask_threshold), scores, threshold)


def rank_duplicates_last(
    overlaps: torch.Tensor, scores: torch.Tensor, threshold: float, duplicate_threshold: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Soft suppression (linear Soft-NMS; Bodla et al., ICCV 2017) with two thresholds.

    What overlaps a better one that stays is not lost: it may be the better fit, and heads that refine boxes learn from
    both.

    Args:
        overlaps: (R, R) IoUs, symmetric, in 0-1.
        scores: (R,) in 0-1.
        threshold: the score of what overlaps a better one by more is multiplied by 1 - IoU.
        duplicate_threshold: what overlaps a better one by more is dropped; at "threshold", this is :func:`suppress`.

    Returns:
        (K,) indices and (K,) scores of what stays, by falling score.
    """
    kept = suppress(overlaps, scores, max(threshold, duplicate_threshold))
    overlaps, ranked = overlaps[kept][:, kept], scores[kept]
    distinct = suppress(overlaps, ranked, threshold)
    decay = 1 - overlaps[:, distinct].amax(dim=1) if len(kept) else ranked
    decay[distinct] = 1
    ranked = ranked * decay
    order = torch.argsort(ranked, descending=True, stable=True)
    return kept[order], ranked[order]


def soft_mask_boxes(
    soft_masks: torch.Tensor,
    stride: int,
    size: Tuple[int, int],
    threshold: float,
    tip_threshold: Optional[float] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Boxes of soft masks, finer than their grid: where the linearly interpolated masks cross the threshold.

    Args:
        soft_masks: (R, h, w) in 0-1, h and w at least 1.
        stride: pixels per grid cell.
        size: (H, W) of the image that the boxes are clipped to.
        threshold: where the masks are cut.
        tip_threshold: boxes also hold cells that reach only this, as those of an object's tips may, to where the mask
            has fallen to "threshold" times their value. Boxes of hard masks are the same with it.

    Returns:
        (R,) bool: whether there is a box, of a mask that reaches the threshold inside the image; and (R, 4) x0, y0, x1,
        y1 in pixels.
    """
    x0, x1 = _extent(soft_masks.amax(dim=1), threshold, tip_threshold)
    y0, y1 = _extent(soft_masks.amax(dim=2), threshold, tip_threshold)
    boxes = torch.stack([x0, y0, x1, y1], dim=1) * stride
    height, width = size
    boxes = boxes.clamp(max=boxes.new_tensor([width, height, width, height]))
    reached = (soft_masks >= threshold).flatten(1).any(dim=1)
    return reached & (boxes[:, 2:] > boxes[:, :2]).all(dim=1), boxes


def _extent(
    profiles: torch.Tensor, threshold: float, tip_threshold: Optional[float] = None
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Where each of (R, n) profiles rises above the threshold and where it finally falls below, in cells."""
    low = _rise(profiles, threshold, tip_threshold)
    return low, profiles.shape[1] - _rise(profiles.flip(1), threshold, tip_threshold)


def _rise(profiles: torch.Tensor, threshold: float, tip_threshold: Optional[float]) -> torch.Tensor:
    enclosed = profiles >= (threshold if tip_threshold is None else tip_threshold)
    first = enclosed.to(torch.uint8).argmax(dim=1, keepdim=True)
    above = profiles.gather(1, first)
    below = profiles.gather(1, (first - 1).clamp(min=0))
    crossed = threshold if tip_threshold is None else threshold * above
    between = ((above - crossed) / (above - below).clamp(min=1e-6)).clamp(0, 1)
    # Values stand at the cells' centres; outside of the grid the first one continues.
    return torch.where(first > 0, first + 0.5 - between, torch.zeros_like(between)).squeeze(1)


def soft_masks_to_proposals(
    soft_masks: torch.Tensor,
    scores: torch.Tensor,
    boxes: torch.Tensor,
    stride: int,
    size: tuple,
    out_size: tuple,
    threshold: float,
    mask_size: Optional[int],
) -> Instances:
    """Soft masks on a grid as proposals with objectness and box-relative masks.

    Args:
        soft_masks: (R, h, w) float32 in 0-1.
        scores: (R,) in 0-1.
        boxes: (R, 4) their boxes, as of :func:`soft_mask_boxes`, x0, y0, x1, y1 in pixels of the input image.
        stride: pixels per grid cell.
        size: (H, W) of the network's input image.
        out_size: (height, width) that the boxes are scaled to; the masks, relative to them, need no scaling.
        threshold: where the soft masks are cut, above 0 and at most 1.
        mask_size: M; None: no masks.

    Returns:
        Instances with ``proposal_boxes``, ``objectness_logits`` (logits of the scores) and, where they are wanted,
        ``proposal_masks`` (R, M, M) uint8 0-255, above a half where the soft masks are above the threshold, sorted by
        falling score.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    soft_masks, scores, boxes = soft_masks[order], scores[order], boxes[order]
    proposals = Instances(tuple(out_size))
    proposals.proposal_boxes = Boxes(boxes.clone())
    proposals.proposal_boxes.scale(out_size[1] / size[1], out_size[0] / size[0])
    proposals.objectness_logits = torch.logit(scores, eps=1e-6)
    if mask_size is not None:
        index = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)[:, None]
        masks = roi_align(
            soft_masks.unsqueeze(1),
            torch.cat([index, boxes], dim=1),
            mask_size,
            1 / stride,
            aligned=True,
        )
        masks = cut_at_half(masks.squeeze(1), threshold).squeeze(1)
        proposals.proposal_masks = (masks * 255).round().to(torch.uint8)
    return proposals


def windows_to_proposals(
    soft_masks: torch.Tensor,
    scores: torch.Tensor,
    windows: torch.Tensor,
    size: Tuple[int, int],
    threshold: float,
    nms_threshold: float,
    min_box_size: float,
    topk: int,
    mask_size: Optional[int],
) -> Instances:
    """Boxes, objectness and box-relative masks of soft masks that each fill a window of their own.

    Args:
        soft_masks: (R, m, m) in 0-1, over windows whose middles lie in the image; what they say of its outside is not
            used. Masks without a box are left out.
        scores: (R,) logits.
        windows: (R, 4) x0, y0, x1, y1 in pixels; they may reach beyond the image.
        size: (H, W) of the network's input image.
        threshold: of the masks that the boxes enclose, above 0 and below 1.
        nms_threshold: IoU of boxes with a better proposal's above which one is dropped; 1: none is.
        min_box_size: proposals with a shorter side, pixels, are dropped.
        topk: the best proposals that remain.
        mask_size: M; None: no masks.

    Returns:
        Instances with ``proposal_boxes``, ``objectness_logits`` (the scores) and, where they are wanted,
        ``proposal_masks`` (R, M, M) uint8 0-255, above a half where the soft masks are above the threshold, sorted by
        falling score.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    soft_masks, scores, windows = soft_masks[order].float(), scores[order].float(), windows[order]
    soft_masks = _continued_outside(soft_masks, windows, size)
    x0, x1 = _extent(soft_masks.amax(dim=1), threshold)
    y0, y1 = _extent(soft_masks.amax(dim=2), threshold)
    cells = (windows[:, 2:] - windows[:, :2]) / soft_masks.shape[-1]  # (R, 2) pixels
    boxes = torch.stack([x0, y0, x1, y1], dim=1) * cells.repeat(1, 2)
    boxes = Boxes(boxes + windows[:, :2].repeat(1, 2))
    boxes.clip(size)
    sides = boxes.tensor[:, 2:] - boxes.tensor[:, :2]
    kept = (soft_masks >= threshold).flatten(1).any(dim=1) & (sides > 0).all(dim=1)
    kept = torch.nonzero(kept & (sides >= min_box_size).all(dim=1)).squeeze(1)
    if nms_threshold < 1:
        kept = kept[nms(boxes.tensor[kept], scores[kept], nms_threshold)]
    kept = kept[:topk]
    proposals = Instances(tuple(size))
    proposals.proposal_boxes = boxes[kept]
    proposals.objectness_logits = scores[kept]
    if mask_size is not None:
        inside = (boxes.tensor[kept] - windows[kept, :2].repeat(1, 2)) / cells[kept].repeat(1, 2)
        index = torch.arange(len(kept), device=inside.device, dtype=inside.dtype)[:, None]
        masks = roi_align(
            soft_masks[kept].unsqueeze(1),
            torch.cat([index, inside], dim=1),
            mask_size,
            aligned=True,
        )
        masks = cut_at_half(masks.squeeze(1), threshold).squeeze(1)
        proposals.proposal_masks = (masks * 255).round().to(torch.uint8)
    return proposals


def _continued_outside(
    soft_masks: torch.Tensor, windows: torch.Tensor, size: Tuple[int, int]
) -> torch.Tensor:
    """The masks, with the last cells inside of the image in place of those outside of it.

    So that the image's border cuts objects straight.
    """
    cells = soft_masks.shape[-1]
    place = torch.arange(cells, device=windows.device, dtype=windows.dtype)
    for axis, side in enumerate((size[1], size[0])):  # x, then y
        start = windows[:, axis, None]
        step = (windows[:, axis + 2, None] - start) / cells
        first = torch.ceil(-start / step - 0.5).clamp(0, cells - 1)
        last = torch.floor((side - start) / step - 0.5).clamp(0, cells - 1)
        index = place.clamp(first, last).long()  # (R, cells)
        index = index[:, None, :] if axis == 0 else index[:, :, None]
        soft_masks = soft_masks.gather(2 - axis, index.expand_as(soft_masks))
    return soft_masks


def masks_in_boxes(
    masks: torch.Tensor, frames: torch.Tensor, rows: torch.Tensor, boxes: torch.Tensor
) -> torch.Tensor:
    """Masks relative to one box as seen in another one; outside of its own box there is nothing of a mask.

    Args:
        masks: (V, m, m) in 0-1.
        frames: (D, 4) own box of each mask that is read.
        rows: (D,) which of the masks that is.
        boxes: (D, 4) boxes they are seen in.

    Returns:
        (D, m, m) in 0-1, linearly interpolated at the centres of the cells.
    """
    size = int(masks.shape[-1])  # also where a tracer has made a tensor of it
    # In the frame of the mask, in which its cells have side 1.
    sides = (frames[:, 2:] - frames[:, :2]).clamp(min=1e-6) / size
    relative = (boxes - frames[:, :2].repeat(1, 2)) / sides.repeat(1, 2)
    # A margin of nothing around each mask.
    padded = F.pad(masks, (1, 1, 1, 1))[:, None]
    regions = torch.cat([rows[:, None].to(relative), relative + 1], dim=1)
    return roi_align(padded, regions, size, 1.0, sampling_ratio=1, aligned=True)[:, 0]
