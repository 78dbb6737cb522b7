"""A convolutional network that classifies the center of a patch, and its use on whole images."""

import math
from typing import NamedTuple, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from rpe_d2.modeling.argument_checks import check_range
from rpe_d2.ops.shift_and_stitch import pool_shifts, stitch_shifts


class PatchLayer(NamedTuple):
    """A convolution without padding, and the max pooling and tanh that follow.

    Attributes:
        kernel_size: side of the kernel.
        channels: number of output channels.
        pooling: side of the pooled blocks. With 1 there is neither pooling nor tanh.
    """

    kernel_size: int
    channels: int
    pooling: int = 1


class PatchNetwork(nn.Module):
    """Convolutions, max poolings and tanh that turn a patch into one vector.

    On a larger image, the network computes the vectors of many patches at once: either of those
    that are ``stride`` pixels apart, or of all. The latter is done by shift-and-stitch (Pinheiro &
    Collobert, ICML 2014, section 3.4): every pooling is applied once for each shift of its blocks,
    and the results are interleaved at the end.
    """

    def __init__(self, in_channels: int, layers: Sequence[PatchLayer]):
        """
        Args:
            in_channels: channels of the patch.
            layers: the layers, from the input to the output.

        Raises:
            ValueError: A layer is out of range, or there is none.
        """
        super().__init__()
        check_range("in_channels", in_channels, 1)
        check_range("the number of layers", len(layers), 1)
        for layer in layers:
            check_range("kernel_size", layer.kernel_size, 1)
            check_range("channels", layer.channels, 1)
            check_range("pooling", layer.pooling, 1)
        self.poolings = [layer.pooling for layer in layers]
        self.stride = math.prod(self.poolings)
        self.patch_size = 1
        for layer in reversed(layers):
            self.patch_size = self.patch_size * layer.pooling + layer.kernel_size - 1
        self.convs = nn.ModuleList()
        for layer in layers:
            conv = nn.Conv2d(in_channels, layer.channels, layer.kernel_size)
            # The variance of the inputs is kept, so that tanh is not saturated.
            nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
            nn.init.zeros_(conv.bias)
            self.convs.append(conv)
            in_channels = layer.channels
        self.out_channels = in_channels

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Computes the vectors of the patches at every ``stride``-th pixel.

        Args:
            image: (B, C, H, W), at least as large as a patch. If it has fewer channels than the
                network, the last ones are taken to be zero.

        Returns:
            (B, D, h, w), h = (H - patch_size) // stride + 1.
        """
        x = image
        for conv, pooling in zip(self.convs, self.poolings):
            x = _convolve(conv, x)
            if pooling > 1:
                x = F.max_pool2d(x, pooling).tanh()
        return x

    def dense(self, image: torch.Tensor) -> torch.Tensor:
        """Computes the vectors of all patches.

        Args:
            image: as for :meth:`forward`.

        Returns:
            (B, D, H - patch_size + 1, W - patch_size + 1).
        """
        rows, columns = (side - self.patch_size + 1 for side in image.shape[-2:])
        # All shifts have maps of the same size if the number of patches is a multiple of them.
        x = F.pad(image, (0, -columns % self.stride, 0, -rows % self.stride))
        for conv, pooling in zip(self.convs, self.poolings):
            x = _convolve(conv, x)
            if pooling > 1:
                x = pool_shifts(x, pooling).tanh()
        for pooling in reversed(self.poolings):
            x = stitch_shifts(x, pooling)
        return x[..., :rows, :columns]


def _convolve(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Convolves maps; channels that they lack are zero."""
    return F.conv2d(x, conv.weight[:, : x.shape[1]], conv.bias)
