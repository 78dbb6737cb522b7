"""Masks of similar boxes vote for a common one (Dai et al., CVPR 2016, section 4)."""

import torch
from detectron2.structures import Boxes, pairwise_iou
from torchvision.ops import roi_align


def vote_masks(
    boxes: torch.Tensor,
    masks: torch.Tensor,
    scores: torch.Tensor,
    chosen: torch.Tensor,
    classes: torch.Tensor,
    iou: float,
) -> torch.Tensor:
    """Averages masks over the regions whose boxes overlap, weighted by their scores for the class.

    Args:
        boxes: (R, 4) of all regions.
        masks: (R, m, m) in 0-1, inside the boxes.
        scores: (R, K) of each class.
        chosen: (D,) rows of the regions that get a voted mask.
        classes: (D,) their classes.
        iou: boxes vote from this overlap on; a chosen one at least for itself.

    Returns:
        (D, m, m) in 0-1, inside the chosen boxes.
    """
    size = masks.shape[-1]
    votes = pairwise_iou(Boxes(boxes[chosen]), Boxes(boxes)) >= iou  # (D, R)
    votes[torch.arange(len(chosen), device=chosen.device), chosen] = True
    target, voter = votes.nonzero(as_tuple=True)
    weight = scores[voter, classes[target]]
    # The chosen box in the voter's frame, in which its mask has cells of side 1.
    corners, frame = boxes[chosen][target], boxes[voter]
    sides = (frame[:, 2:] - frame[:, :2]).clamp(min=1e-6) / size
    relative = (corners - frame[:, :2].repeat(1, 2)) / sides.repeat(1, 2)
    # A margin of nothing around each mask: there is none of it outside of its box.
    padded = torch.nn.functional.pad(masks, (1, 1, 1, 1))
    regions = torch.cat([voter[:, None].to(relative), relative + 1], dim=1)
    inside = roi_align(padded[:, None], regions, size, 1.0, sampling_ratio=1, aligned=True)[:, 0]
    total = masks.new_zeros(len(chosen), size, size)
    total.index_add_(0, target, inside * weight[:, None, None])
    weights = masks.new_zeros(len(chosen)).index_add_(0, target, weight)
    return total / weights.clamp(min=1e-12)[:, None, None]
