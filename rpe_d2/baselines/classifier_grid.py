"""A grid of classifiers laid over a box, mixed by where in the box a pixel lies (Hariharan et al., CVPR 2015)."""

import torch
from torch.nn import functional as F


def grid_weights(grid: int, size: int) -> torch.Tensor:
    """How much each classifier of a grid has to say at each pixel.

    Classifiers stand at the centres of a box's K x K equal cells. A pixel is weighed bilinearly between the four around
    it; beyond the outermost centres the outermost classifiers continue.

    Args:
        grid: K.
        size: m, pixels of the box each way.

    Returns:
        (K K, m, m) float32, row by row; they sum to 1 at each pixel.
    """
    alone = torch.eye(grid**2).reshape(1, grid**2, grid, grid)
    return F.interpolate(alone, size=(size, size), mode="bilinear", align_corners=False)[0]


def mix_classifiers(scores: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mixes the classifiers' probabilities (section 3.1: p_i is the sum of alpha_ik p_ik over k).

    Args:
        scores: (R, K K, m, m) logits of every classifier at every pixel.
        weights: (K K, m, m) alpha, as :func:`grid_weights` gives them.

    Returns:
        (R, m, m) logits of the mixed probabilities, exact where these are close to 0 or 1.
    """
    share = weights.to(scores).log()  # -inf: takes no part
    inside = torch.logsumexp(F.logsigmoid(scores) + share, dim=1)
    outside = torch.logsumexp(F.logsigmoid(-scores) + share, dim=1)
    return inside - outside
