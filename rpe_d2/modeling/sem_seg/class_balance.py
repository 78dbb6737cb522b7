"""Weights of classes that are rare among the pixels of the training data."""

import torch

from ..argument_checks import check_range


def balanced_class_weights(pixel_counts: torch.Tensor, power: float) -> torch.Tensor:
    """Computes weights in proportion to 1 / frequency ** power, whose mean over pixels is 1.

    With a power of 1, every class has the same weight in total. In expectation, this equals the
    balanced sampling of Farabet et al. (PAMI 2013), who draw as many pixels of each class.

    Args:
        pixel_counts: (K,) number of pixels of each class in the training data.
        power: 0 to 1.

    Returns:
        (K,) float64. Classes without pixels have the weight of the rarest other class.

    Raises:
        ValueError: The power is out of range, or there are no pixels.
    """
    check_range("power", power, 0, 1)
    frequencies = pixel_counts.double()
    if not frequencies.sum() > 0:
        raise ValueError("pixel_counts has no pixels; allowed: at least one")
    frequencies = frequencies / frequencies.sum()
    rarest = frequencies[frequencies > 0].min()
    weights = frequencies.clamp(min=rarest) ** -power
    return weights / (weights * frequencies).sum()
