"""Image pyramids, and the normalisation of their bands."""

from typing import List, Sequence

import torch
from torch.nn import functional as F


def gaussian_pyramid(image: torch.Tensor, scales: Sequence[float]) -> List[torch.Tensor]:
    """An image at several sizes, low-pass filtered where it is reduced.

    Halving weighs neighbours 1, 3, 3, 1 along each axis (a triangle as wide as two cells), weights beyond the border
    left out.

    Args:
        image: (B, C, H, W), floating point.
        scales: factors of the size, above 0.

    Returns:
        For each scale (B, C, floor(H * scale), floor(W * scale)), pixels exactly 1 / scale of the image's apart; at
        scale 1 the image itself.
    """
    return [image if scale == 1 else _rescale(image, scale) for scale in scales]


def laplacian_pyramid(image: torch.Tensor, scales: Sequence[float]) -> List[torch.Tensor]:
    """What each size of an image shows beyond the next smaller one; last, the smallest (Burt & Adelson, 1983).

    Each size is made from the one before. Enlarging each (bilinearly) and adding it to the one before gives the image
    back.

    Args:
        image: (B, C, H, W), floating point.
        scales: factors of the size, falling.

    Returns:
        For each scale (B, C, round(H * scale), round(W * scale)), at least one pixel a side.

    Raises:
        ValueError: the scales do not fall.
    """
    if any(one <= other for one, other in zip(scales, scales[1:])):
        raise ValueError(f"scales are {list(scales)}; allowed: each smaller than the one before")
    bands = []
    picture = _resize(image, _scaled_size(image, scales[0]))
    for scale in scales[1:]:
        smaller = _resize(picture, _scaled_size(image, scale))
        bands.append(picture - _resize(smaller, picture.shape[-2:]))
        picture = smaller
    return [*bands, picture]


def normalize_contrast(maps: torch.Tensor, size: int = 15, floor: float = 0.1) -> torch.Tensor:
    """Mean 0 and standard deviation 1 around every pixel, over all channels (Farabet et al., PAMI 2013, section 3.1).

    Args:
        maps: (B, C, H, W), floating point.
        size: side of the neighbourhood, odd; what lies beyond the border is left out.
        floor: smaller standard deviations count as this one, so that flat regions stay flat.
    """
    mean = _local_mean(maps, size)
    centered = maps - mean
    deviation = _local_mean(centered.square(), size).sqrt()
    return centered / deviation.clamp(min=floor)


def _local_mean(maps: torch.Tensor, size: int) -> torch.Tensor:
    """(B, 1, H, W)."""
    mean = maps.mean(dim=1, keepdim=True)
    return F.avg_pool2d(mean, size, 1, size // 2, count_include_pad=False)


def _scaled_size(image: torch.Tensor, scale: float) -> List[int]:
    return [max(1, round(side * scale)) for side in image.shape[-2:]]


def _rescale(image: torch.Tensor, scale: float) -> torch.Tensor:
    # Not the ratio of the rounded sizes.
    return F.interpolate(
        image,
        scale_factor=scale,
        mode="bilinear",
        align_corners=False,
        antialias=True,
        recompute_scale_factor=False,
    )


def _resize(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if list(size) == list(image.shape[-2:]):
        return image
    # Antialiasing does nothing where an image is enlarged.
    return F.interpolate(
        image, size=list(size), mode="bilinear", align_corners=False, antialias=True
    )
