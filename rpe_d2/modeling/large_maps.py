"""Layers that need little memory on large maps at inference.

torch's convolutions may copy their input and their output to another memory format, and its
normalizations write to a new map. On an image of 12 megapixels each copy takes nearly 1 GB.
"""

import torch
from detectron2.layers import Conv2d
from torch import nn
from torch.nn import functional as F

# Larger maps are processed part by part if no gradient is needed (float32: 64 MB).
_LARGE = 1 << 24


class BandedConv2d(Conv2d):
    """Detectron2's Conv2d, which convolves large inputs in horizontal bands at inference.

    The result is that of the whole input, up to rounding.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or x.numel() <= _LARGE or self.padding_mode != "zeros":
            return super().forward(x)
        x = self._convolved(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)

    def _convolved(self, x: torch.Tensor) -> torch.Tensor:
        (stride, _), (dilation, _) = self.stride, self.dilation
        top, side = self.padding
        height = x.shape[2]
        extent = dilation * (self.kernel_size[0] - 1) + 1  # rows that one row of the result sees
        rows = (height + 2 * top - extent) // stride + 1
        at_once = max(1, rows * _LARGE // x.numel())
        result = None
        for start in range(0, rows, at_once):
            stop = min(start + at_once, rows)
            first, last = start * stride - top, (stop - 1) * stride - top + extent
            band = x[:, :, max(first, 0) : min(last, height)]
            band = F.pad(band, (0, 0, max(-first, 0), max(last - height, 0)))
            band = F.conv2d(
                band, self.weight, self.bias, self.stride, (0, side), self.dilation, self.groups
            )
            if result is None:
                result = band.new_empty(*band.shape[:2], rows, band.shape[3])
            result[:, :, start:stop] = band
        return result


class InPlaceGroupNorm(nn.GroupNorm):
    """Group normalization that overwrites large inputs at inference, one group at a time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or x.numel() <= _LARGE:
            return super().forward(x)
        width = self.num_channels // self.num_groups
        for start in range(0, self.num_channels, width):
            part = slice(start, start + width)
            x[:, part] = F.group_norm(x[:, part], 1, self.weight[part], self.bias[part], self.eps)
        return x
