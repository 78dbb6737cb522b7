"""A grid of classifiers over a box, interpolated by the position of a pixel in the box."""

import torch
from torch.nn import functional as F


def grid_weights(grid: int, size: int) -> torch.Tensor:
    """Computes the weight of each classifier of a grid at each pixel of a box.

    The classifiers are placed at the centers of the K x K equal cells of the box. A pixel is
    interpolated bilinearly between the four classifiers around it. Beyond the outermost centers,
    the outermost classifiers are used (Hariharan et al., CVPR 2015, section 3.1).

    Args:
        grid: K.
        size: m, the side length of the box in pixels.

    Returns:
        (K K, m, m) float32, row by row; the weights sum to 1 at each pixel.
    """
    one_hot = torch.eye(grid**2).reshape(1, grid**2, grid, grid)
    return F.interpolate(one_hot, size=(size, size), mode="bilinear", align_corners=False)[0]


def mix_classifiers(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mixes the probabilities of the classifiers (section 3.1: p_i = sum over k of a_ik p_ik).

    Args:
        logits: (R, K K, m, m) logits of every classifier at every pixel.
        weights: (K K, m, m) a, the result of :func:`grid_weights`.

    Returns:
        (R, m, m) logits of the mixed probabilities, accurate also near 0 and 1.
    """
    log_weights = weights.to(logits).log()  # -inf for classifiers without weight
    foreground = torch.logsumexp(F.logsigmoid(logits) + log_weights, dim=1)
    background = torch.logsumexp(F.logsigmoid(-logits) + log_weights, dim=1)
    return foreground - background
