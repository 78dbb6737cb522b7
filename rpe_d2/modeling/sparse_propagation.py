"""Propagation of the values of a few pixels to all others."""

from typing import Any, Dict, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F

from .layers import resize_maps
from .spn import (
    GuidanceNetwork,
    PropagationUnits,
    check_softmax_gates,
    guidance_arguments,
    unit_arguments,
)

# Channels are propagated in chunks of this many values (float64, four directions: 256 MB).
_VALUES_PER_CHUNK = 1 << 23


class SparsePropagation(nn.Module):
    """Spreads values, such as labels or colors, that are known at a few pixels.

    The SPN's authors propagate sparse annotations (slide 38) but describe no network. In this one,
    gates are predicted from the image and are closed at known pixels, whose values therefore do not
    change. A mask of the known pixels is propagated with the values by the same gates, and the
    values are divided by it. Each result is therefore a weighted mean of known values, with weights
    that decrease along the path, faster where gates are small. Gates are normalized by a softmax,
    and the four directions are averaged.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        num_units: int = 2,
        connections: int = 3,
        stride: int = 2,
        conv_dim: int = 64,
        norm: str = "GN",
    ):
        """
        Args:
            input_shape: channels and stride of the feature maps that guide the propagation.
            num_units, connections: see :class:`PropagationUnits`.
            stride, conv_dim, norm: see :class:`GuidanceNetwork`.
        """
        super().__init__()
        if num_units < 1:
            raise ValueError(
                f"MODEL.SPN.NUM_UNITS is {num_units}; allowed to spread sparse values: 1 or more"
            )
        self.units = PropagationUnits(num_units, "softmax", connections)
        self.guidance = GuidanceNetwork(
            input_shape,
            out_channels=self.units.gates_per_channel,
            stride=stride,
            conv_dim=conv_dim,
            norm=norm,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> Dict[str, Any]:
        arguments = unit_arguments(cfg)
        check_softmax_gates(arguments.pop("gate_mode"), "where sparse values are spread")
        return {**arguments, **guidance_arguments(cfg, input_shape)}

    @property
    def stride(self) -> int:
        """Pixels per cell of the gates."""
        return self.guidance.stride

    def forward(
        self, values: torch.Tensor, known: torch.Tensor, features: Dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """
        Args:
            values: (B, C, H, W), 0 where ``known`` is 0. H and W are multiples of the stride.
            known: (B, H, W) weights of the values in 0-1, or bool.
            features: feature maps (B, C_i, H / stride_i, W / stride_i) of the images.

        Returns:
            (B, C, H, W) float32, weighted means of the known values. They are 0 for an image that
            has none.
        """
        # A product of many gates would underflow in single precision.
        weights = F.avg_pool2d(known.double()[:, None], self.stride)
        is_known = weights > 0
        cells = F.avg_pool2d(values.double(), self.stride) / weights.where(is_known, 1.0)
        gates = self.units.normalize(self.guidance(features).float()).double()
        maps = torch.cat([cells, is_known.double()], dim=1)
        maps = self._propagate(maps, gates * ~is_known[:, None])
        spread, reached = maps[:, :-1], maps[:, -1:]
        spread = spread / reached.where(reached > 0, 1.0)
        if bool((reached == 0).any()):
            spread = _with_nearest(spread, cells, is_known, reached > 0)
        return resize_maps(spread, values.shape[-2:]).float()

    def _propagate(self, maps: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        channels = max(1, _VALUES_PER_CHUNK // maps[:, 0].numel())
        chunks = maps.split(channels, dim=1)
        return torch.cat([self.units.propagate(chunk, gates, "mean") for chunk in chunks], dim=1)


def _with_nearest(
    spread: torch.Tensor, cells: torch.Tensor, is_known: torch.Tensor, reached: torch.Tensor
) -> torch.Tensor:
    """Gives cells (B, C, h, w) that no value reached the nearest value of their image."""
    images = []
    for index in range(len(spread)):
        image = spread[index]
        if bool(is_known[index].any()):
            row, column = nearest_cells(is_known[index, 0])
            image = torch.where(reached[index], image, cells[index][:, row, column])
        images.append(image)
    return torch.stack(images)


def nearest_cells(is_known: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Finds the nearest known cell of every cell.

    Args:
        is_known: (h, w) bool with at least one True.

    Returns:
        Its row and its column, each (h, w) int64.
    """
    from scipy.ndimage import distance_transform_edt  # slow to import, and rarely needed

    indices = distance_transform_edt(
        ~is_known.cpu().numpy(), return_distances=False, return_indices=True
    )
    row, column = torch.from_numpy(indices).long().to(is_known.device)
    return row, column
