"""Image pyramids against slow implementations."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rpe_d2.ops.pyramid import gaussian_pyramid, laplacian_pyramid, normalize_contrast
from tests.reference import pyramid as slow

SCALES = [1.0, 0.5, 0.25]


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 16, 24, generator=generator, dtype=torch.float64)


def test_bands_are_the_slow_ones(image):
    result = laplacian_pyramid(image, SCALES)
    assert [tuple(band.shape[-2:]) for band in result] == [(16, 24), (8, 12), (4, 6)]
    for item in range(2):
        for channel in range(3):
            expected = slow.laplacian_pyramid(image[item, channel].numpy(), 3)
            for band, reference in zip(result, expected):
                np.testing.assert_allclose(band[item, channel].numpy(), reference, atol=1e-12)


def test_bands_add_up_to_the_picture(image):
    *bands, total = laplacian_pyramid(image, [1.0, 0.6, 0.25])
    for band in reversed(bands):
        size = band.shape[-2:]
        total = band + F.interpolate(total, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(total, image)


def test_flat_pictures_have_no_bands():
    flat = torch.full((1, 1, 16, 16), 7.0)
    *bands, residual = laplacian_pyramid(flat, SCALES)
    assert all(band.abs().max() < 1e-5 for band in bands)
    assert torch.allclose(residual, torch.tensor(7.0))
    assert normalize_contrast(flat).abs().max() == 0


def test_sizes_of_any_scale(image):
    sizes = [tuple(p.shape[-2:]) for p in gaussian_pyramid(image, [2.0, 1.0, 0.7])]
    assert sizes == [(32, 48), (16, 24), (11, 16)]
    assert gaussian_pyramid(image, [1.0])[0] is image


@pytest.mark.parametrize("scale", [0.3536, 0.7071, 1.4142])
def test_pixels_lie_exactly_their_distance_apart(scale):
    """The values of the image are its coordinates."""
    x = (torch.arange(128.0) + 0.5).expand(1, 1, 128, 128)
    scaled = gaussian_pyramid(x, [scale])[0][0, 0, 0]
    inside = torch.arange(8, int(128 * scale) - 8)
    assert ((inside + 0.5) / scale - scaled[inside]).abs().max() < 0.15


@pytest.mark.parametrize("size, floor", [(5, 0.1), (15, 3.0)])
def test_contrast_is_normalized_as_slowly(image, size, floor):
    result = normalize_contrast(image, size, floor)
    for item in range(2):
        expected = slow.normalize_contrast(image[item].numpy(), size, floor)
        np.testing.assert_allclose(result[item].numpy(), expected, atol=1e-12)


def test_scales_have_to_fall(image):
    with pytest.raises(ValueError, match=r"scales are \[0.5, 1.0\]; allowed"):
        laplacian_pyramid(image, [0.5, 1.0])
