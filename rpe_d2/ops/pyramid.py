"""Image pyramids and local contrast normalization."""

from typing import List, Sequence

import torch
from torch.nn import functional as F


def gaussian_pyramid(image: torch.Tensor, scales: Sequence[float]) -> List[torch.Tensor]:
    """Resamples an image at several scales with a low-pass filter.

    Downsampling uses antialiased bilinear interpolation. Halving weighs neighbors by 1, 3, 3, 1
    along each axis, without the weights beyond the border.

    Args:
        image: (B, C, H, W) floating point.
        scales: scale factors, > 0.

    Returns:
        One tensor (B, C, floor(H * scale), floor(W * scale)) per scale, whose pixels are exactly
        1 / scale pixels of the image apart. At scale 1, the image itself.
    """
    return [image if scale == 1 else _rescale(image, scale) for scale in scales]


def laplacian_pyramid(image: torch.Tensor, scales: Sequence[float]) -> List[torch.Tensor]:
    """Computes the Laplacian pyramid of Burt & Adelson, "The Laplacian Pyramid", 1983.

    Each level is the difference between the image at one scale and the enlarged image at the next
    scale. The last level is the image at the smallest scale. Each image is resampled from the
    previous one, so that enlarging (bilinearly) and adding the levels restores the image.

    Args:
        image: (B, C, H, W) floating point.
        scales: scale factors in descending order.

    Returns:
        One tensor (B, C, round(H * scale), round(W * scale)) per scale, at least one pixel a side.

    Raises:
        ValueError: The scales are not in descending order.
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
    """Normalizes the local mean to 0 and the local standard deviation to 1.

    Both are computed over all channels around every pixel (Farabet et al., PAMI 2013, section 3.1).

    Args:
        maps: (B, C, H, W) floating point.
        size: side of the neighborhood in pixels, odd. Pixels beyond the border are left out.
        floor: lower bound of the standard deviation, so that noise in flat regions is not
            amplified.

    Returns:
        A tensor like ``maps``.
    """
    mean = _local_mean(maps, size)
    centered = maps - mean
    deviation = _local_mean(centered.square(), size).sqrt()
    return centered / deviation.clamp(min=floor)


def _local_mean(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Averages over channels and neighborhood to (B, 1, H, W)."""
    mean = maps.mean(dim=1, keepdim=True)
    return F.avg_pool2d(mean, size, 1, size // 2, count_include_pad=False)


def _scaled_size(image: torch.Tensor, scale: float) -> List[int]:
    return [max(1, round(side * scale)) for side in image.shape[-2:]]


def _rescale(image: torch.Tensor, scale: float) -> torch.Tensor:
    # Use the given scale, not the ratio of the rounded sizes.
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
    # Antialiasing has no effect on enlargement.
    return F.interpolate(
        image, size=list(size), mode="bilinear", align_corners=False, antialias=True
    )
