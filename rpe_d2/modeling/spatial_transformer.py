"""A layer that transforms its input by a geometric transformation that it predicts from it."""

from typing import Optional, Tuple

import torch
from torch import nn

from rpe_d2.ops.spatial_transform import (
    affine_grid,
    control_grid,
    projective_grid,
    sample_grid,
    thin_plate_spline_grid,
)

from .argument_checks import check_choice, check_range
from .layers import at_least_float32

TRANSFORMS = ("affine", "projective", "tps")
_CONTROL_SIDE = 4  # 16 control points, as in the paper


class SpatialTransformer(nn.Module):
    """Samples feature maps at a grid that a localization network predicts from them.

    The layer of Jaderberg et al., "Spatial Transformer Networks", NIPS 2015, section 3. It is
    trained by the gradients of whatever follows, and starts as the identity.
    """

    def __init__(
        self,
        localization: nn.Module,
        localization_dim: int,
        transform: str = "affine",
        output_size: Optional[Tuple[int, int]] = None,
    ):
        """
        Args:
            localization: maps (N, C, H, W) to (N, localization_dim) features, from which the last,
                linear layer regresses the parameters of the transformation.
            localization_dim: number of these features.
            transform: "affine" has 6 parameters, "projective" has 8, and "tps", a thin plate spline
                with 4 x 4 control points, has 32.
            output_size: (h, w) of the output. None stands for the size of the input.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__()
        check_choice("transform", transform, TRANSFORMS)
        check_range("localization_dim", localization_dim, 1)
        self.transform = transform
        self.output_size = output_size
        self.localization = localization
        num_parameters = {"affine": 6, "projective": 8, "tps": 2 * _CONTROL_SIDE**2}[transform]
        # Predicts the difference from the identity.
        self.regression = nn.Linear(localization_dim, num_parameters)
        nn.init.zeros_(self.regression.weight)
        nn.init.zeros_(self.regression.bias)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """
        Args:
            maps: (N, C, H, W).

        Returns:
            (N, C, h, w), the transformed maps. Beyond the border of the input they are 0.
        """
        return self.sample(maps, self.parameters_of(maps))

    def parameters_of(self, maps: torch.Tensor) -> torch.Tensor:
        """Predicts the parameters of the transformations of maps (N, C, H, W).

        Returns:
            (N, P) float32, or float64 for maps in float64: the differences from the identity. The
            points of a thin plate spline are row by row, x before y.
        """
        features = at_least_float32(self.localization(maps))
        # Half precision resolves half a pixel of 1,000.
        with torch.autocast(device_type=maps.device.type, enabled=False):
            return self.regression(features)

    def sample(self, maps: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Transforms maps (N, C, H, W) by given parameters (N, P)."""
        return sample_grid(maps, self.grids(parameters, self.output_size or maps.shape[-2:]))

    def grids(self, parameters: torch.Tensor, size: Tuple[int, int]) -> torch.Tensor:
        """Returns the sampling grids of transformations.

        Args:
            parameters: (N, P) floating point, differences from the identity.
            size: (h, w) of the output.

        Returns:
            (N, h, w, 2), see :mod:`rpe_d2.ops.spatial_transform`.
        """
        if self.transform == "tps":
            control_points = control_grid(_CONTROL_SIDE).to(parameters)
            targets = control_points + parameters.unflatten(1, (-1, 2))
            return thin_plate_spline_grid(targets, control_points, size)
        matrices = self.matrices(parameters)
        if self.transform == "affine":
            return affine_grid(matrices[:, :2], size)
        return projective_grid(matrices, size)

    def matrices(self, parameters: torch.Tensor) -> torch.Tensor:
        """Returns the matrices (N, 3, 3) of affine or projective transformations.

        Args:
            parameters: (N, P) floating point, differences from the identity.

        Raises:
            ValueError: The transformations are thin plate splines, which have no matrix.
        """
        check_choice("transform", self.transform, ("affine", "projective"))
        missing = 9 - parameters.shape[1]
        differences = nn.functional.pad(parameters, (0, missing)).unflatten(1, (3, 3))
        return torch.eye(3, dtype=parameters.dtype, device=parameters.device) + differences


class ConvLocalization(nn.Sequential):
    """Two 5 x 5 convolutions with max pooling and a fully connected layer, on a resized input.

    The maps are averaged on a grid of a fixed size, so that inputs of any size are accepted.
    """

    def __init__(self, in_channels: int, input_size: int = 28, channels: int = 20, dim: int = 32):
        """
        Args:
            in_channels: channels of the input.
            input_size: side of the grid, 16 or more.
            channels: channels of the convolutions.
            dim: number of features of the result.

        Raises:
            ValueError: An argument is out of range.
        """
        check_range("input_size", input_size, 16)
        side = ((input_size - 4) // 2 - 4) // 2
        super().__init__(
            nn.AdaptiveAvgPool2d(input_size),
            nn.Conv2d(in_channels, channels, 5),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 5),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(channels * side**2, dim),
            nn.ReLU(inplace=True),
        )


class FullyConnectedLocalization(nn.Sequential):
    """Three fully connected layers on a resized input."""

    def __init__(self, in_channels: int, input_size: int = 28, dim: int = 32):
        """
        Args:
            in_channels: channels of the input.
            input_size: side of the grid on which the maps are averaged.
            dim: number of units of each layer.
        """
        super().__init__(
            nn.AdaptiveAvgPool2d(input_size),
            nn.Flatten(),
            nn.Linear(in_channels * input_size**2, dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, dim),
            nn.ReLU(inplace=True),
        )
