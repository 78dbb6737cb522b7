"""The losses of windows, and the targets of their masks."""

from typing import Tuple

import torch
from detectron2.structures import Instances
from torch.nn import functional as F
from torchvision.ops import roi_align

from rpe_d2.modeling.embedding.labels import instance_masks


def window_losses(
    scores: torch.Tensor, masks: torch.Tensor, positive: torch.Tensor, targets: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Computes the two terms of DeepMask's loss (Pinheiro et al., NIPS 2015, section 3.2).

    With labels y_k = +-1 and targets m_ij = +-1, the loss of the paper is the sum over windows of
    (1 + y_k) / (2 h w) sum_ij log(1 + exp(-m_ij f_ij)) + lambda log(1 + exp(-y_k f_s)). Here both
    terms are means over all N windows, positive and negative, and lambda is left out.

    Args:
        scores: (N,) logits f_s.
        masks: (P, h, w) logits f_ij of the positive windows whose masks are learned.
        positive: (N,) bool, True for P or more windows.
        targets: (P, h, w) bool, or float in [0, 1], where 1 is inside the object (m = 1).

    Returns:
        The mask loss and the score loss; 0 if there are no windows.
    """
    count = max(len(scores), 1)
    # A sum over no windows is 0 and has a gradient; a mean would be NaN.
    mask_loss = F.binary_cross_entropy_with_logits(masks, targets.to(masks), reduction="sum")
    mask_loss = mask_loss / (count * masks.shape[1] * masks.shape[2])
    score_loss = F.binary_cross_entropy_with_logits(scores, positive.to(scores), reduction="sum")
    return mask_loss, score_loss / count


def crop_object_masks(
    targets: Instances, index: torch.Tensor, boxes: torch.Tensor, size: int
) -> torch.Tensor:
    """Computes the fraction of each cell that an object covers.

    Args:
        targets: ground truth of an image.
        index: (P,) int64 indices of objects.
        boxes: (P, 4) a box for each of them.
        size: cells of a box in each direction.

    Returns:
        (P, size, size) float32 in [0, 1].
    """
    if len(index) == 0:
        return boxes.new_zeros(0, size, size)
    masks = instance_masks(targets)[:, None].to(boxes)
    rois = torch.cat([index[:, None].to(boxes), boxes], dim=1)
    return roi_align(masks, rois, size, aligned=True)[:, 0]
