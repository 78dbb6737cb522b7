"""Soft masks on grids and in boxes, their suppression, and proposals with masks."""

from typing import Optional, Sequence, Tuple

import torch
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F
from torchvision.ops import nms, roi_align

from .layers import resize_maps

# Full-resolution masks are computed this many pixels at a time (float32: 64 MB).
_UPSAMPLE_ELEMENTS = 1 << 24
# Elements of masks that are compared at a time (float32: 64 MB).
_OVERLAP_ELEMENTS = 1 << 24


def masks_on_grid(masks: torch.Tensor, size: Sequence[int], stride: int) -> torch.Tensor:
    """Averages masks over the cells of a grid.

    Args:
        masks: (R, h, w) bool or in 0-1, of any resolution.
        size: (H, W) of the network's input image, to which the masks are resized.
        stride: pixels per cell. The last cells may extend beyond the image.

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
    """Interpolates soft masks on a grid and thresholds them afterwards.

    Args:
        soft_masks: (R, h, w) in 0-1 on cells of ``stride`` pixels.
        stride: pixels per cell.
        size: (H, W) of the network's input image.
        out_size: (height, width) of the result.
        threshold: value in 0-1 at or above which a pixel belongs to the mask.

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


def rescale_to_half(masks: torch.Tensor, threshold: float) -> torch.Tensor:
    """Rescales masks so that the threshold becomes 0.5, the threshold that Detectron2 uses.

    Args:
        masks: (R, m, m) in 0-1.
        threshold: above 0 and below 1.

    Returns:
        (R, 1, m, m) in 0-1.
    """
    low = masks * (0.5 / threshold)
    high = 1 - (1 - masks) * (0.5 / (1 - threshold))
    return torch.where(masks < threshold, low, high).unsqueeze(1)


def mask_overlaps(
    soft_masks: torch.Tensor, relative_to: str, mask_threshold: float
) -> torch.Tensor:
    """Computes the intersections of all pairs of masks, relative to an area.

    Args:
        soft_masks: (R, h, w) bool or in 0-1.
        relative_to: "union" for the IoU, or "smaller" for the area of the smaller mask.
        mask_threshold: value at or above which a cell belongs to a mask.

    Returns:
        (R, R) in 0-1, 0 for empty masks.
    """
    return _relative(_intersections(soft_masks, mask_threshold), relative_to)


def _intersections(soft_masks: torch.Tensor, mask_threshold: float) -> torch.Tensor:
    """Returns the numbers (R, R) of cells that masks have in common."""
    common = torch.zeros(len(soft_masks), len(soft_masks), device=soft_masks.device)
    at_once = max(1, _OVERLAP_ELEMENTS // max(1, len(soft_masks)))
    for cells in soft_masks.flatten(1).split(at_once, dim=1):
        masks = (cells >= mask_threshold).float()
        common += masks @ masks.T
    return common


def _relative(common: torch.Tensor, relative_to: str) -> torch.Tensor:
    areas = common.diagonal()
    if relative_to == "union":
        area = areas[:, None] + areas - common
    else:
        area = torch.minimum(areas[:, None], areas)
    return common / area.clamp(min=1)


def greedy_nms(overlaps: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression on given overlaps.

    An item is suppressed if it overlaps a kept item with a higher score by more than the threshold.

    Args:
        overlaps: (R, R) symmetric overlaps in 0-1.
        scores: (R,) scores.
        threshold: overlap in 0-1. At 1 everything is kept.

    Returns:
        (K,) indices of the kept items in descending order of their scores.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    # Row i can suppress column j only if i has the higher score.
    suppresses = (overlaps[order][:, order] > threshold).triu(diagonal=1)
    kept = torch.ones_like(scores, dtype=torch.bool)
    # Each round decides at least one more item. The longest chain of overlaps bounds the rounds.
    while True:
        decided = ~(suppresses & kept[:, None]).any(dim=0)
        if torch.equal(decided, kept):
            return order[kept]
        kept = decided


def contained_mask_soft_nms(
    soft_masks: torch.Tensor,
    scores: torch.Tensor,
    threshold: float,
    mask_threshold: float,
    decay: float,
    duplicate_threshold: float,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Soft non-maximum suppression with the intersection over the smaller mask.

    If a narrow bandwidth splits a group into two halves, either the group or the halves are right.
    The others remain with lower scores, for measures that count objects at every score. The IoU
    would not tell: that of the group and its smaller half is below 0.5.

    Args:
        soft_masks: (R, h, w) bool or in 0-1.
        scores: (R,) scores.
        threshold: overlap in 0-1 with a better mask above which a score is multiplied by ``decay``.
        mask_threshold: value at or above which a cell belongs to a mask.
        decay: factor in 0-1.
        duplicate_threshold: IoU with a better mask above which a mask is dropped.

    Returns:
        (K,) indices of the kept masks and (K,) factors of their scores, in descending order of the
        given scores.
    """
    common = _intersections(soft_masks, mask_threshold)
    kept = greedy_nms(_relative(common, "union"), scores, duplicate_threshold)
    overlaps = _relative(common[kept][:, kept], "smaller")
    factors = torch.full_like(scores[kept], decay)
    factors[greedy_nms(overlaps, scores[kept], threshold)] = 1
    return kept, factors


def soft_nms(
    overlaps: torch.Tensor, scores: torch.Tensor, threshold: float, duplicate_threshold: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Linear Soft-NMS (Bodla et al., ICCV 2017) that drops near-duplicates.

    An item that overlaps a better one is kept with a lower score. It may fit the object better, and
    heads that refine boxes learn from both.

    Args:
        overlaps: (R, R) symmetric IoUs in 0-1.
        scores: (R,) scores in 0-1.
        threshold: IoU with a better item above which a score is multiplied by 1 - IoU.
        duplicate_threshold: IoU with a better item above which an item is dropped. If it equals
            ``threshold``, this is :func:`greedy_nms`.

    Returns:
        (K,) indices and (K,) scores of the kept items in descending order of their scores.
    """
    kept = greedy_nms(overlaps, scores, max(threshold, duplicate_threshold))
    overlaps, ranked = overlaps[kept][:, kept], scores[kept]
    distinct = greedy_nms(overlaps, ranked, threshold)
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
    """Computes the boxes of soft masks with sub-cell precision.

    The sides of a box lie where the linearly interpolated mask crosses the threshold.

    Args:
        soft_masks: (R, h, w) in 0-1. h and w are at least 1.
        stride: pixels per grid cell.
        size: (H, W) of the image to which boxes are clipped.
        threshold: value at or above which a cell belongs to a mask.
        tip_threshold: lower value at or above which a cell extends the box, because masks are least
            certain at the tips of an object. The box then ends where the mask falls to
            ``threshold`` times the value of this cell. It does not change boxes of binary masks.

    Returns:
        (R,) bool, whether the mask reaches the threshold inside the image, and boxes (R, 4) x0, y0,
        x1, y1 in pixels.
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
    """Returns the cells where profiles (R, n) first rise above and last fall below a threshold."""
    low = _rise(profiles, threshold, tip_threshold)
    return low, profiles.shape[1] - _rise(profiles.flip(1), threshold, tip_threshold)


def _rise(profiles: torch.Tensor, threshold: float, tip_threshold: Optional[float]) -> torch.Tensor:
    enclosed = profiles >= (threshold if tip_threshold is None else tip_threshold)
    first = enclosed.to(torch.uint8).argmax(dim=1, keepdim=True)
    above = profiles.gather(1, first)
    below = profiles.gather(1, (first - 1).clamp(min=0))
    crossed = threshold if tip_threshold is None else threshold * above
    between = ((above - crossed) / (above - below).clamp(min=1e-6)).clamp(0, 1)
    # Values belong to the centers of the cells. Outside the grid the first value is repeated.
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
    """Converts soft masks on a grid to proposals.

    Args:
        soft_masks: (R, h, w) float32 in 0-1.
        scores: (R,) scores in 0-1.
        boxes: (R, 4) boxes of the masks, see :func:`soft_mask_boxes`, x0, y0, x1, y1 in pixels of
            the input image.
        stride: pixels per grid cell.
        size: (H, W) of the network's input image.
        out_size: (height, width) to which boxes are scaled. Masks are relative to their boxes and
            need no scaling.
        threshold: value at or above which a cell belongs to a mask, above 0 and below 1.
        mask_size: M, the side of the proposal masks, or None for proposals without masks.

    Returns:
        Instances in descending order of their scores, with ``proposal_boxes``,
        ``objectness_logits`` (logits of the scores) and, with ``mask_size``, ``proposal_masks`` (R,
        M, M) uint8 in 0-255. A proposal mask is above one half where the soft mask is above the
        threshold.
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
        masks = rescale_to_half(masks.squeeze(1), threshold).squeeze(1)
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
    """Converts soft masks of windows to proposals.

    Args:
        soft_masks: (R, m, m) in 0-1, each relative to its window, whose center lies in the image.
            Values outside the image are not used. Masks without a box are dropped.
        scores: (R,) logits.
        windows: (R, 4) x0, y0, x1, y1 in pixels. Windows may extend beyond the image.
        size: (H, W) of the network's input image.
        threshold: value at or above which a cell belongs to a mask, above 0 and below 1.
        nms_threshold: IoU of boxes above which the worse of two proposals is dropped. At 1 all are
            kept.
        min_box_size: proposals with a side below this many pixels are dropped.
        topk: number of the best proposals that are kept.
        mask_size: M, the side of the proposal masks, or None for proposals without masks.

    Returns:
        Instances in descending order of their scores, with ``proposal_boxes``,
        ``objectness_logits`` (the scores) and, with ``mask_size``, ``proposal_masks`` (R, M, M)
        uint8 in 0-255. A proposal mask is above one half where the soft mask is above the
        threshold.
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
        masks = rescale_to_half(masks.squeeze(1), threshold).squeeze(1)
        proposals.proposal_masks = (masks * 255).round().to(torch.uint8)
    return proposals


def _continued_outside(
    soft_masks: torch.Tensor, windows: torch.Tensor, size: Tuple[int, int]
) -> torch.Tensor:
    """Replaces cells outside the image by the last cells inside it.

    Objects are then cut straight at the border of the image.
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
    """Resamples masks that are relative to one box in another box.

    A mask is 0 outside its own box.

    Args:
        masks: (V, m, m) in 0-1.
        frames: (D, 4) boxes that the masks are relative to.
        rows: (D,) indices into the masks.
        boxes: (D, 4) boxes in which the masks are resampled.

    Returns:
        (D, m, m) in 0-1, linearly interpolated at the centers of the cells.
    """
    size = int(masks.shape[-1])  # a tracer may turn it into a tensor
    # Relative to the mask's own box, in units of its cells.
    sides = (frames[:, 2:] - frames[:, :2]).clamp(min=1e-6) / size
    relative = (boxes - frames[:, :2].repeat(1, 2)) / sides.repeat(1, 2)
    # Each mask gets a border of zeros.
    padded = F.pad(masks, (1, 1, 1, 1))[:, None]
    regions = torch.cat([rows[:, None].to(relative), relative + 1], dim=1)
    return roi_align(padded, regions, size, 1.0, sampling_ratio=1, aligned=True)[:, 0]
