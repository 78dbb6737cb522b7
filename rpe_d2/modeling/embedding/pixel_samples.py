"""Pixels that are sampled from the labels of a batch for a loss."""

from typing import Callable, List, NamedTuple

import torch

from .labels import pad_points, sample_pixels, sample_pixels_by_contact, sample_pixels_uniformly

SAMPLERS = {
    "instances": sample_pixels,
    "contact": sample_pixels_by_contact,
    "uniform": sample_pixels_uniformly,
}


class PixelSample(NamedTuple):
    """Pixels of a batch that enter a loss, padded to the largest number of an image.

    Attributes:
        points: for each image (P_i,) int64 indices into its flattened labels.
        groups: (B, P) int64 group of each pixel.
        pixels: (B, P, 2) x, y in continuous pixel coordinates.
        mask: (B, P) bool, False in padding.
    """

    points: List[torch.Tensor]
    groups: torch.Tensor
    pixels: torch.Tensor
    mask: torch.Tensor


def sample_groups(
    groups: List[torch.Tensor],
    sampler: Callable[[torch.Tensor, int], torch.Tensor],
    num_points: int,
) -> PixelSample:
    """Samples pixels of every image of a batch.

    Args:
        groups: (H, W) int64 group of each pixel, for each image. Pixels with negative groups are
            never sampled.
        sampler: one of ``SAMPLERS``.
        num_points: largest number of pixels of an image.
    """
    points = [sampler(group, num_points) for group in groups]
    index, width = pad_points(points), groups[0].shape[1]
    return PixelSample(
        points=points,
        groups=pad_points([group.flatten()[p] for group, p in zip(groups, points)]),
        pixels=torch.stack([index % width, index // width], dim=-1) + 0.5,
        mask=pad_points([torch.ones_like(p, dtype=torch.bool) for p in points]),
    )
