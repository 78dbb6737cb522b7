"""Networks on the patch around a pixel, by their definition."""

import torch
from torch.nn import functional as F


def atrous(network, image):
    """Applies a PatchNetwork to all patches: poolings without stride, then dilated layers."""
    x, dilation = image, 1
    for conv, pooling in zip(network.convs, network.poolings):
        x = F.conv2d(x, conv.weight, conv.bias, dilation=dilation)
        if pooling > 1:
            x = F.max_pool2d(x, pooling, stride=1, dilation=dilation).tanh()
            dilation *= pooling
    return x


class RecurrentScores:
    """Scores of single pixels by RecurrentPatches, one patch at a time.

    Args:
        patches: the network and the number of its passes.
        image: (C, H, W).
        num_classes: K.
    """

    def __init__(self, patches, image, num_classes):
        self.patches, self.image, self.num_classes = patches, image, num_classes
        self.known = {}

    def pixel(self, row, column):
        """The image at a pixel, which is zero outside."""
        _, height, width = self.image.shape
        if 0 <= row < height and 0 <= column < width:
            return self.image[:, row, column]
        return self.image.new_zeros(len(self.image))

    def block(self, row, column, size):
        """The mean of the block of size x size pixels around a pixel."""
        first = (size - 1) // 2
        pixels = [
            self.pixel(row - first + y, column - first + x)
            for y in range(size)
            for x in range(size)
        ]
        return torch.stack(pixels).mean(dim=0)

    def score(self, number, row, column):
        """The scores (K,) of pass ``number``, from 1 on, at a pixel."""
        key = number, row, column
        if key not in self.known:
            network = self.patches.network
            side, step = network.patch_size, self.patches.stride ** (number - 1)
            cells = []
            for y in range(side):
                for x in range(side):
                    place = [
                        p + (i - (side - 1) // 2) * step for p, i in zip((row, column), (y, x))
                    ]
                    scores = self.image.new_zeros(self.num_classes)
                    if number > 1:
                        scores = self.score(number - 1, *place)
                    cells.append(torch.cat([self.block(*place, step), scores]))
            patch = torch.stack(cells, dim=1).view(1, -1, side, side)
            self.known[key] = network(patch).flatten()
        return self.known[key]
