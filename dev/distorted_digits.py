"""Distorted digits, the data of the first table of Jaderberg et al. (NIPS 2015, section 4.1).

The ranges are those of the paper's appendix: rotation by up to 90 degrees either way (R); rotation
by up to 45 degrees, scaling by 0.7 to 1.2 and a random place on a canvas of 42 x 42 pixels (RTS);
scaling by 0.75 to 1 and corners that are moved by a normal distribution with a deviation of 5
pixels (P), or 16 control points of a thin plate spline that are, with a deviation of 1.5 pixels
(E). Pictures other than those of RTS have 28 x 28 pixels, so that P cuts some digits off. Every
batch is distorted anew, by one call of ``grid_sample``.
"""

import math
from pathlib import Path
from typing import Callable, Dict, NamedTuple

import torch

from rpe_d2.data.datasets.digits import digit_stamps
from rpe_d2.ops.spatial_transform import (
    affine_grid,
    control_grid,
    homographies,
    projective_grid,
    sample_grid,
    thin_plate_spline_grid,
)

SIZE = 28  # side of a digit in pixels
CANVAS = 42  # side of the pictures of RTS
_TEST_PERIOD = 10  # every tenth digit is for tests, the one after it for the search of the rates


class Digits(NamedTuple):
    """Digits (N, 1, 28, 28) float32 in 0-1, white on black, and their labels (N,) int64."""

    images: torch.Tensor
    labels: torch.Tensor


def load_digits(path: Path) -> Dict[str, Digits]:
    """Returns the digits of the parts "train", "search" and "test", which share none.

    Args:
        path: .npz file of MNIST digits. Where it is absent, the digits are scikit-learn's.
    """
    images, labels = digit_stamps(str(path) if path.is_file() else "sklearn")
    images = torch.from_numpy(images)[:, None] / 255.0
    labels = torch.from_numpy(labels)
    place = torch.arange(len(labels)) % _TEST_PERIOD
    parts = {"test": place == 0, "search": place == 1, "train": place > 1}
    return {name: Digits(images[chosen], labels[chosen]) for name, chosen in parts.items()}


def distort(images: torch.Tensor, distortion: str, generator: torch.Generator) -> torch.Tensor:
    """Distorts each image by a random transformation.

    Args:
        images: (N, 1, 28, 28).
        distortion: "R", "RTS", "P" or "E".
        generator: source of random numbers.

    Returns:
        (N, 1, 28, 28), or (N, 1, 42, 42) for RTS.
    """
    return sample_grid(images, GRIDS[distortion](len(images), generator))


def similarity_grid(
    angle: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, side: int
) -> torch.Tensor:
    """Returns grids that show digits turned, scaled, and moved from the center of a canvas.

    Args:
        angle: (N,) radians, clockwise.
        scale: (N,) size of the digit, relative to 28 pixels.
        shift: (N, 2) pixels to the right and down.
        side: side of the canvas in pixels.

    Returns:
        (N, side, side, 2).
    """
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    # From the canvas to the digit, by the opposite rotation.
    inverse = torch.stack([cosine, sine, -sine, cosine], dim=1).unflatten(1, (2, 2))
    offset = -inverse @ shift[:, :, None] * 2 / SIZE
    return affine_grid(torch.cat([inverse * side / SIZE, offset], dim=2), (side, side))


def _uniform(low: float, high: float, count: int, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _rotated(count: int, generator: torch.Generator) -> torch.Tensor:
    angle = math.radians(1) * _uniform(-90, 90, count, generator)
    return similarity_grid(angle, torch.ones(count), torch.zeros(count, 2), SIZE)


def _moved(count: int, generator: torch.Generator) -> torch.Tensor:
    angle = math.radians(1) * _uniform(-45, 45, count, generator)
    scale = _uniform(0.7, 1.2, count, generator)
    # The frame of the digit stays on the canvas.
    room = (CANVAS - SIZE * scale) / 2
    shift = room[:, None] * (2 * torch.rand(count, 2, generator=generator) - 1)
    return similarity_grid(angle, scale, shift, CANVAS)


def _projected(count: int, generator: torch.Generator) -> torch.Tensor:
    corners = control_grid(2).expand(count, 4, 2)
    scale = _uniform(0.75, 1.0, count, generator)[:, None, None]
    noise = 5 * torch.randn(count, 4, 2, generator=generator)  # pixels
    moved = corners * scale + noise / (SIZE / 2)
    return projective_grid(homographies(moved, corners), (SIZE, SIZE))


def _elastic(count: int, generator: torch.Generator) -> torch.Tensor:
    points = control_grid(4)
    scale = _uniform(0.75, 1.0, count, generator)[:, None, None]
    noise = 1.5 * torch.randn(count, len(points), 2, generator=generator)  # pixels
    return thin_plate_spline_grid((points + noise / (SIZE / 2)) / scale, points, (SIZE, SIZE))


GRIDS: Dict[str, Callable[[int, torch.Generator], torch.Tensor]] = {
    "R": _rotated,
    "RTS": _moved,
    "P": _projected,
    "E": _elastic,
}
