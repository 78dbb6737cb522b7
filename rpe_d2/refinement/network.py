"""The network that refines label maps: gates and trust from an image and from given boundaries."""

from typing import Sequence, Tuple

import torch
from torch import nn
from torch.nn import functional as F

from rpe_d2.ops.propagation import normalize_gates, spatial_propagation

__all__ = [
    "ENCODER",
    "PIXEL_MEAN",
    "PIXEL_STD",
    "REGION_FEATURES",
    "RefinerNetwork",
    "RegionAcceptance",
    "build_refiner_network",
    "propagate_labels",
]

ENCODER = "tf_efficientnet_lite0"
# What the encoder's ImageNet weights were trained with, for gray values of 0 to 255, RGB.
PIXEL_MEAN, PIXEL_STD = 127.0, 128.0
# Strides 2, 4, 8 and 16. Deeper layers see more of a picture than a boundary needs.
_STAGES = (0, 1, 2, 3)
_STRIDE = 16
# Logits of closed gates and of full trust, with which an untrained network changes next to nothing.
_CLOSED_GATE, _TRUST = -3.0, 2.0
# Distances to the given boundary are divided by this many pixels, and do not exceed it.
_FARTHEST = 32.0
_SMALLEST_TRUST = 1e-4

# What is known of a connected region of changes before it is accepted; see
# :func:`rpe_d2.refinement.acceptance.region_features`.
REGION_FEATURES = (
    "gain",
    "probability",
    "mistrust",
    "log_area",
    "distance",
    "object_changed",
    "object_gain",
    "object_trust",
    "image_changed",
    "image_gain",
    "image_trust",
)
# Without training, regions are accepted whose gain is larger.
_LEAST_GAIN = 0.3


class RegionAcceptance(nn.Module):
    """Estimates whether a region of changes is better with its new labels.

    A linear function and a small network with one hidden layer are added. Before training, the
    result depends on the gain alone.
    """

    def __init__(self, hidden: int = 16):
        """
        Args:
            hidden: number of hidden units.
        """
        super().__init__()
        count = len(REGION_FEATURES)
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("std", torch.ones(count))
        self.linear = nn.Linear(count, 1)
        self.hidden = nn.Linear(count, hidden)
        self.last = nn.Linear(hidden, 1)
        for parameter in (*self.linear.parameters(), *self.last.parameters()):
            nn.init.zeros_(parameter)
        with torch.no_grad():
            self.linear.weight[0, REGION_FEATURES.index("gain")] = 10.0
            self.linear.bias.fill_(-10.0 * _LEAST_GAIN)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns logits (R,) for features (R, F) in the order of ``REGION_FEATURES``."""
        features = (features - self.mean) / self.std
        return (self.linear(features) + self.last(F.relu(self.hidden(features))))[:, 0]


class RefinerNetwork(nn.Module):
    """Predicts how labels spread over an image, and how far a given label can be trusted.

    The encoder sees the image. The decoder also sees where the boundaries of the given labels are,
    but not which labels they separate, so one network fits labels of any kind and number. From
    stride 2 on it has the image itself, as pixels in channels, and its output is at stride 1.
    """

    backbone_names = ("encoder",)  # their learning rate is multiplied; see engine/solver.py

    def __init__(self, encoder: nn.Module, channels: Sequence[int], dim: int = 64, last: int = 32):
        """
        Args:
            encoder: returns feature maps of strides 2, 4, 8 and 16 for a normalized image.
            channels: channels of these maps.
            dim: channels of the decoder at strides 4 to 16.
            last: channels of the decoder at stride 2.
        """
        super().__init__()
        self.encoder = encoder.eval()
        dims = [last, *(dim for _ in channels[1:])]
        self.lateral = nn.ModuleList(
            nn.Conv2d(count, width, 1) for count, width in zip(channels, dims)
        )
        self.geometry = nn.ModuleList(
            nn.Conv2d(2 if level else 4 * 5, width, 3, padding=1)
            for level, width in enumerate(dims)
        )
        self.reduce = nn.ModuleList(
            nn.Conv2d(above, width, 1) if above != width else nn.Identity()
            for width, above in zip(dims, dims[1:])
        )
        self.merge = nn.ModuleList(_convolution(width) for width in dims)
        self.acceptance = RegionAcceptance().requires_grad_(False)  # trained afterwards
        self.output = nn.Sequential(_convolution(last), nn.Conv2d(last, 4 * 13, 1))
        nn.init.normal_(self.output[1].weight, std=0.01)
        with torch.no_grad():  # the channels of a pixel are consecutive in groups of four
            self.output[1].bias[: 4 * 12] = _CLOSED_GATE
            self.output[1].bias[4 * 12 :] = _TRUST

    def train(self, mode: bool = True) -> "RefinerNetwork":
        super().train(mode)
        self.encoder.eval()  # its batch normalization keeps ImageNet's statistics
        return self

    def forward(
        self, image: torch.Tensor, distance: torch.Tensor, certainty: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            image: (B, 3, H, W) RGB, 0 to 255.
            distance: (B, H, W) distance of each pixel to the nearest given boundary in pixels, see
                :func:`rpe_d2.refinement.label_geometry.boundary_distance`.
            certainty: (B, H, W) in 0-1, how certain the given labels are; 1 for label maps.

        Returns:
            Gates (B, 1, 12, H, W) for :func:`propagate_labels`, and logits (B, H, W) of the
            probability that the given label of a pixel is right.
        """
        height, width = image.shape[-2:]
        image = (image - PIXEL_MEAN) / PIXEL_STD
        near = torch.stack([(distance / _FARTHEST).clamp(max=1.0), certainty], dim=1)
        padding = (0, -width % _STRIDE, 0, -height % _STRIDE)
        image, near = (F.pad(maps, padding, mode="replicate") for maps in (image, near))
        # On a CPU, convolutions take a quarter less time in this order.
        image = image.contiguous(memory_format=torch.channels_last)
        features = self.encoder(image)
        merged = None
        for level in reversed(range(len(features))):
            if level == 0:
                pixels = torch.cat([image, near], dim=1)
                geometry = F.pixel_unshuffle(pixels, 2)
            else:
                # The smallest distance of a cell tells whether a boundary crosses it.
                side = 2 ** (level + 1)
                closest = -F.max_pool2d(-near[:, :1], side)
                geometry = torch.cat([closest, F.avg_pool2d(near[:, 1:], side)], dim=1)
            maps = self.lateral[level](features[level]) + self.geometry[level](geometry)
            if merged is not None:
                above = self.reduce[level](merged)
                maps = maps + F.interpolate(above, scale_factor=2.0, mode="nearest")
            merged = self.merge[level](maps)
        raw = F.pixel_shuffle(self.output(merged), 2)[..., :height, :width].float()
        return normalize_gates(raw[:, None, :12], "softmax"), raw[:, 12]


def _convolution(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def propagate_labels(
    labels: torch.Tensor, gates: torch.Tensor, trust: torch.Tensor, num_units: int = 2
) -> torch.Tensor:
    """Spreads labels from pixels that can be trusted, so that labels compete for every pixel.

    With softmax gates and the mean of the directions, propagation P is linear, preserves constants,
    and keeps values nonnegative. Each label's map x becomes P(t x) / P(t), where t is the trust.
    The sum over the labels remains 1, so the last map follows from the others.

    Args:
        labels: (B, K, H, W) in 0-1, indicators or probabilities of labels, which sum to 1.
        gates: (B, 1, 12, H, W) softmax gates.
        trust: (B, H, W) logits.
        num_units: propagations in sequence, with the same gates.

    Returns:
        (B, K, H, W) in 0-1, which sum to 1.
    """
    weight = trust.sigmoid().clamp(min=_SMALLEST_TRUST)[:, None]
    maps = torch.cat([labels[:, :-1] * weight, weight], dim=1)
    for _ in range(num_units):
        maps = spatial_propagation(maps, gates, merge="mean")
    maps = maps[:, :-1] / maps[:, -1:]
    last = 1 - maps.sum(dim=1, keepdim=True)
    return torch.cat([maps, last.clamp(min=0)], dim=1)  # rounding may make it negative


def build_refiner_network() -> RefinerNetwork:
    """Builds the network with random weights. It needs timm."""
    import timm

    encoder = timm.create_model(ENCODER, features_only=True, out_indices=_STAGES)
    # timm keeps the blocks after the last one that is asked for.
    encoder.blocks = encoder.blocks[: max(encoder._stage_out_idx)]
    return RefinerNetwork(encoder, encoder.feature_info.channels())
