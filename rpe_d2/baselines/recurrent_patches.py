"""The networks of Pinheiro & Collobert, applied to the patch around every pixel."""

import math
from typing import Dict, List, Sequence, Tuple

import torch
from torch import nn
from torch.nn import functional as F

from rpe_d2.modeling.argument_checks import check_choice
from rpe_d2.ops.shift_and_stitch import split_shifts, stitch_shifts

from .patch_network import PatchLayer, PatchNetwork

# The layers before the last one, and the kernel of the last one, which has a plane for each class.
NETWORKS: Dict[str, Tuple[Sequence[PatchLayer], int]] = {
    "CNN1": ([PatchLayer(6, 25, 8), PatchLayer(3, 50, 2)], 7),
    "CNN2": ([PatchLayer(8, 25, 2), PatchLayer(8, 50, 2)], 1),
    "CNN3": ([PatchLayer(8, 25, 2), PatchLayer(8, 50)], 1),
}


def scales_of(name: str, num_passes: int) -> List[float]:
    """Returns the image sizes of successive passes of a network: 1, 1 / stride, 1 / stride^2 …"""
    stride = math.prod(layer.pooling for layer in NETWORKS[name][0])
    return [float(stride) ** -number for number in range(num_passes)]


class RecurrentPatches(nn.Module):
    """A network that labels the center of a patch, composed with itself (ICML 2014, section 3.3).

    The first pass sees the patch of a pixel and no scores. It predicts the scores of the pixels of
    a grid, whose distance is the stride of the network. The next pass sees these scores together
    with the image at the scale of the grid, and so on. The last pass predicts the score of the
    pixel. Thus, the passes go from fine to coarse. All of them share the weights.

    With a network of n x n pixels and stride s, p passes see 1 + (n - 1)(1 + s + … + s^(p - 1))
    pixels: 133 for CNN1, 25 and 121 for CNN2, and 23, 67 and 155 for CNN3. Beyond the border, the
    image is zero; scores are predicted there.
    """

    def __init__(self, name: str, num_classes: int, num_passes: int = 1, image_channels: int = 3):
        """
        Args:
            name: "CNN1", "CNN2" or "CNN3".
            num_classes: K.
            num_passes: number of passes.
            image_channels: channels of the image.

        Raises:
            ValueError: There is no network of this name.
        """
        super().__init__()
        check_choice("name", name, list(NETWORKS))
        layers, kernel_size = NETWORKS[name]
        self.network = PatchNetwork(
            image_channels + num_classes, [*layers, PatchLayer(kernel_size, num_classes)]
        )
        self.num_passes = num_passes

    @property
    def stride(self) -> int:
        """Stride of the network in pixels of its input."""
        return self.network.stride

    def forward(
        self, image: torch.Tensor, grid: int = 1, shift: Tuple[int, int] = (0, 0)
    ) -> List[torch.Tensor]:
        """Computes the scores of every pass at the pixels of a grid.

        Args:
            image: (B, C, H, W), normalized.
            grid: distance of the pixels, 1 or the stride of the network.
            shift: row and column of the first pixel, both less than ``grid``.

        Returns:
            For each pass (B, K, h, w), the scores of ``image[..., shift[0]::grid,
            shift[1]::grid]``.
        """
        size = [-(-(side - first) // grid) for side, first in zip(image.shape[-2:], shift)]
        before = (self.network.patch_size - 1) // 2
        after = self.network.patch_size - 1 - before
        # Distances of the inputs of each pass, in pixels, and in cells of the grid.
        steps = [self.stride**number for number in range(self.num_passes)]
        cells = [step // grid for step in steps[1:]]
        # Cells around the image that the passes before the last one have to predict.
        low, high = before * sum(cells), after * sum(cells)
        reach = _Reach(size, grid, shift, image.shape[-2:])
        network = self.network if grid > 1 else self.network.dense
        scores = network(reach.pixels(image, before + low * grid, after + high * grid))
        results = [_inside(scores, low, size)]
        for step, distance in zip(steps[1:], cells):
            # The image at this scale: the mean of the block around each cell.
            first = (step - 1) // 2
            blocks = reach.pixels(image, first + low * grid, step - 1 - first + high * grid)
            x = torch.cat([F.avg_pool2d(blocks, step, grid), scores], dim=1)
            rows, columns = x.shape[-2:]
            x = F.pad(x, (0, -columns % distance, 0, -rows % distance))
            scores = stitch_shifts(self.network.dense(split_shifts(x, distance)), distance)
            low, high = low - before * distance, high - after * distance
            scores = scores[..., : size[0] + low + high, : size[1] + low + high]
            results.append(_inside(scores, low, size))
        return results


class _Reach:
    """The pixels around a grid, which are zero outside of the image."""

    def __init__(
        self, size: Sequence[int], grid: int, shift: Sequence[int], image_size: Sequence[int]
    ):
        self.sides = [
            # Pixels before the first cell, and behind the last one.
            (-first, first + grid * (count - 1) + 1 - side)
            for count, first, side in zip(size, shift, image_size)
        ]

    def pixels(self, image: torch.Tensor, before: int, after: int) -> torch.Tensor:
        """Returns the image from ``before`` pixels before the first cell to behind the last one."""
        (top, bottom), (left, right) = self.sides
        return F.pad(image, (before + left, after + right, before + top, after + bottom))


def _inside(scores: torch.Tensor, margin: int, size: Sequence[int]) -> torch.Tensor:
    """Crops scores to the cells of the image."""
    return scores[..., margin : margin + size[0], margin : margin + size[1]]
