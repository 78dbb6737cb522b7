"""Proposals with soft masks relative to their boxes, the format that generators and ROI heads share."""

import torch
from detectron2.structures import Boxes, Instances
from torchvision.ops import masks_to_boxes, roi_align


def suppress_overlaps(
    soft_masks: torch.Tensor, scores: torch.Tensor, threshold: float
) -> torch.Tensor:
    """Greedy non-maximum suppression of masks that mostly lie inside a better one, or the other way round.

    Of a group and the two halves that a narrower bandwidth finds in it, either the whole or the halves stay; IoU
    would let a whole and its smaller part pass.

    Args:
        soft_masks: (R, h, w) in 0-1, cut at 0.5.
        scores: (R,).
        threshold: of the common area over the smaller mask's area, 0-1; at 1 everything stays.

    Returns:
        (K,) indices of what stays, by falling score.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    masks = (soft_masks[order] > 0.5).flatten(1).float()
    areas = masks.sum(dim=1)
    common = masks @ masks.T  # (R, R)
    smaller = torch.minimum(areas[:, None], areas).clamp(min=1)
    # Row i suppresses column j only where i is the better one.
    suppresses = (common > threshold * smaller).triu(diagonal=1)
    stays = torch.ones_like(areas, dtype=torch.bool)
    while (
        True
    ):  # each round settles at least one more mask; the longest chain of overlaps bounds the rounds
        settled = ~(suppresses & stays[:, None]).any(dim=0)
        if torch.equal(settled, stays):
            return order[stays]
        stays = settled


def soft_masks_to_proposals(
    soft_masks: torch.Tensor,
    scores: torch.Tensor,
    stride: int,
    size: tuple,
    out_size: tuple,
    threshold: float,
    mask_size: int,
) -> Instances:
    """Boxes, objectness and box-relative masks of soft masks on a grid.

    Args:
        soft_masks: (R, h, w) float32 in 0-1; masks that nowhere reach the threshold are left out.
        scores: (R,) in 0-1.
        stride: pixels per grid cell.
        size: (H, W) of the network's input image.
        out_size: (height, width) that the boxes are scaled to; the masks, relative to them, need no scaling.
        threshold: of the masks that the boxes enclose, in 0-1.
        mask_size: M.

    Returns:
        Instances with ``proposal_boxes``, ``objectness_logits`` (logits of the scores) and ``proposal_masks``
        (R, M, M) uint8 0-255, sorted by falling score.
    """
    height, width = size
    present = (soft_masks >= threshold).flatten(1).any(dim=1)
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[present[order]]
    soft_masks, scores = soft_masks[order], scores[order]
    if len(order) == 0:
        boxes = soft_masks.new_zeros(0, 4)
        masks = soft_masks.new_zeros(0, mask_size, mask_size)
    else:
        boxes = masks_to_boxes(soft_masks >= threshold)
        boxes[:, 2:] += 1  # the last cell is inside
        boxes = (boxes * stride).clamp(max=boxes.new_tensor([width, height, width, height]))
        index = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)[:, None]
        masks = roi_align(
            soft_masks.unsqueeze(1),
            torch.cat([index, boxes], 1),
            mask_size,
            1 / stride,
            aligned=True,
        ).squeeze(1)
    proposals = Instances(tuple(out_size))
    proposals.proposal_boxes = Boxes(boxes)
    proposals.proposal_boxes.scale(out_size[1] / width, out_size[0] / height)
    proposals.objectness_logits = torch.logit(scores, eps=1e-6)
    proposals.proposal_masks = (masks * 255).round().to(torch.uint8)
    return proposals
