"""Losses of windows that are scored and segmented (DeepMask, Pinheiro et al., NIPS 2015, section 3.2)."""

from typing import Tuple

import torch
from torch.nn import functional as F


def window_losses(
    scores: torch.Tensor, masks: torch.Tensor, positive: torch.Tensor, targets: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The two terms of the joint logistic loss, means over the windows.

    With labels y_k = +-1 and targets m_ij = +-1 the paper's loss is the sum over windows of
    (1 + y_k) / (2 h w) sum_ij log(1 + exp(-m_ij f_ij)) + lambda log(1 + exp(-y_k f_s)). This is its mean over all N windows,
    in two parts and without lambda: windows without an object count in the first one's denominator alone.

    Args:
        scores: (N,) logits f_s.
        masks: (P, h, w) logits f_ij of the positive windows, in their order.
        positive: (N,) bool, P of them True.
        targets: (P, h, w) in 0-1: 1 inside of the object, for m = 1; values between are mixtures of both.

    Returns:
        The masks' and the scores' loss; 0 where there are no windows.
    """
    count = max(len(scores), 1)
    # Sums over no windows keep their gradient, of zero.
    mask_loss = F.binary_cross_entropy_with_logits(masks, targets.to(masks), reduction="sum")
    mask_loss = mask_loss / (count * masks.shape[1] * masks.shape[2])
    score_loss = F.binary_cross_entropy_with_logits(scores, positive.to(scores), reduction="sum")
    return mask_loss, score_loss / count
