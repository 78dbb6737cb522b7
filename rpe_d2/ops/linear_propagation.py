"""A layer of spatial propagation with learned gates, for any network."""

from typing import Optional

import torch
from torch import nn

from .propagation import GATE_MODES, MERGES, normalize_gates, spatial_propagation

__all__ = ["LinearPropagation"]


class LinearPropagation(nn.Module):
    """Propagates features over an image in four directions, by gates predicted from a guide.

    The gates of a pixel are a 1 x 1 convolution of the guide (Liu et al., NIPS 2017, section 3),
    see :func:`rpe_d2.ops.propagation.spatial_propagation`. Input and output have the same shape, so
    that the layer fits between any two layers. Gates start near 0 and results near the input. The
    mode "abs_sum" is different: it makes the gates of every direction sum to 1.
    """

    def __init__(
        self,
        channels: int,
        guide_channels: Optional[int] = None,
        *,
        shared: bool = True,
        connections: int = 3,
        mode: str = "softmax",
        merge: str = "mean",
        backend: str = "auto",
    ):
        """
        Args:
            channels: C, channels of the features.
            guide_channels: channels of the guide. None: the features are the guide.
            shared: whether all channels have the same gates. Otherwise each has its own.
            connections: 3 connects a pixel with three of the previous column, and 1 with one.
            mode: normalization of the gates, see :func:`rpe_d2.ops.propagation.normalize_gates`.
            merge: "max" or "mean" of the four directions.
            backend: see :func:`rpe_d2.ops.propagation.spatial_propagation`.

        Raises:
            ValueError: An argument is not allowed.
        """
        super().__init__()
        for name, value, allowed in (
            ("connections", connections, (1, 3)),
            ("mode", mode, GATE_MODES),
            ("merge", merge, MERGES[:2]),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(str, allowed))}")
        for name, value in (("channels", channels), ("guide_channels", guide_channels)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; allowed: 1 or more")
        self.connections, self.mode, self.merge, self.backend = connections, mode, merge, backend
        self.groups = 1 if shared else channels
        self.gates = nn.Conv2d(guide_channels or channels, 4 * self.groups * connections, 1)
        nn.init.normal_(self.gates.weight, std=1e-3)
        # With "softmax", a logit of -3 is a weight of 0.04 beside that of the input.
        # "abs_sum" divides by the sum of the gates, which must not be 0 where the guide is.
        nn.init.constant_(self.gates.bias, {"softmax": -3.0, "abs_sum": 1.0}.get(mode, 0.0))

    def forward(self, x: torch.Tensor, guide: Optional[torch.Tensor] = None) -> torch.Tensor:
        """
        Args:
            x: (B, C, H, W) features.
            guide: (B, G, H, W). None: the features.

        Returns:
            (B, C, H, W) like x.
        """
        raw = self.gates(x if guide is None else guide)
        raw = raw.unflatten(1, (self.groups, 4 * self.connections))  # (B, C or 1, 4 K, H, W)
        gates = normalize_gates(raw, self.mode, self.connections)
        return spatial_propagation(x, gates, self.merge, self.backend)

    def extra_repr(self) -> str:
        return f"mode={self.mode}, merge={self.merge}, connections={self.connections}"
