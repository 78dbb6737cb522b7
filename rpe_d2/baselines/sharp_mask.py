"""SharpMask: the codes of DeepMask are refined with finer and finer feature maps."""

from typing import Any, Dict, List, NamedTuple, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from torch import nn
from torch.nn import functional as F

from .deep_mask import DeepMask
from .windows import Windows, by_level, crop_windows


class MaskRefinement(nn.Module):
    """Refines a code to a mask: each module adds a finer skip map to a coarse map (section 3).

    The horizontal convolutions process the skip maps of whole images, the vertical ones windows.
    """

    def __init__(
        self, skip_channels: Sequence[int], *, window: int = 14, code_dim: int = 512, dim: int = 32
    ):
        """
        Args:
            skip_channels: channels of the skip maps. The first one has the stride of the windows,
                each other one half the stride of the one before.
            window: side of a window in cells of the first skip map.
            code_dim: D, the length of a code.
            dim: channels of the coarsest map, a multiple of 2 to the power of the number of skip
                maps; each module halves them.
        """
        super().__init__()
        factor = 2 ** len(skip_channels)
        if dim < 1 or dim % factor:
            raise ValueError(
                f"refinement dim is {dim}; allowed with {len(skip_channels)} skip maps: "
                f"multiples of {factor}"
            )
        self.window = window
        self.dim = dim
        self.expand = nn.Linear(code_dim, dim * window**2)
        self.horizontal = nn.ModuleList()
        self.vertical = nn.ModuleList()
        for channels in skip_channels:
            hidden = max(min(64, channels // 2), dim)
            self.horizontal.append(_convs(channels, hidden, dim, dim // 2))
            self.vertical.append(_convs(dim, dim, dim // 2))
            dim //= 2
        self.predictor = nn.Conv2d(dim, 1, 3, padding=1)

    def padded_skips(self, features: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        """Computes skip maps with the same padding, in pixels, as the maps of the windows.

        Args:
            features: a feature map for each of the strides.

        Returns:
            Maps (B, dim / 2, ...), (B, dim / 4, ...), and so on.
        """
        before = self.window // 2
        rows, columns = (side + 2 * before for side in features[0].shape[-2:])
        skips = []
        for number, (convs, maps) in enumerate(zip(self.horizontal, features)):
            cells, maps = 2**number, convs(maps)
            below = rows * cells - before * cells - maps.shape[-2]
            right = columns * cells - before * cells - maps.shape[-1]
            skips.append(F.pad(maps, (before * cells, right, before * cells, below)))
        return skips

    def forward(self, codes: torch.Tensor, skips: Sequence[torch.Tensor]) -> torch.Tensor:
        """
        Args:
            codes: (N, D).
            skips: skip maps in the windows, (N, dim / 2, window, window),
                (N, dim / 4, 2 window, 2 window), and so on.

        Returns:
            (N, m, m) mask logits; m is the window times 2 to the power of the number of skip maps.
        """
        maps = self.expand(codes).unflatten(1, (self.dim, self.window, self.window))
        for convs, skip in zip(self.vertical, skips):
            maps = F.relu(convs(maps) + skip)
            maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
        return self.predictor(maps).squeeze(1)


def _convs(*channels: int) -> nn.Sequential:
    layers = []
    for in_channels, out_channels in zip(channels, channels[1:]):
        layers += [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class SharpLevel(NamedTuple):
    """The feature maps from which the windows of a pyramid level are read.

    Attributes:
        maps: the padded maps of DeepMask.
        skips: padded skip maps, from coarse to fine.
    """

    maps: torch.Tensor
    skips: List[torch.Tensor]


@PROPOSAL_GENERATOR_REGISTRY.register()
class SharpMask(DeepMask):
    """Refines the masks of a trained DeepMask (Pinheiro et al., ECCV 2016).

    ``MODEL.WEIGHTS`` names the checkpoint of the DeepMask. Only the refinement is trained; the head
    of DeepMask, which also scores the windows, is fixed. With ``MODEL.GUIDED_BACKBONE.FREEZE`` the
    backbone and its batch statistics are fixed too. Without that key, other heads can train the
    backbone, but this generator passes no gradient to it.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        skip_features: Sequence[str] = ("res4", "res3", "res2", "stem"),
        refinement_dim: int = 32,
        **kwargs: Any,
    ):
        """
        Args:
            input_shape: channels and stride of the backbone's feature maps.
            skip_features: feature maps for the refinement. The first one is the map of the windows,
                each other one has half the stride of the one before. For the windows on "res4@0.5",
                they are "res4@0.5", "res3@0.5" and so on.
            refinement_dim: channels of the coarsest map; see :class:`MaskRefinement`.
            kwargs: see :class:`DeepMask`.
        """
        super().__init__(input_shape, **kwargs)
        self.head.requires_grad_(False)
        self.skip_features = [
            _skip_features("skip_features", skip_features, name, input_shape)
            for name in self.in_features
        ]
        self.refinement = MaskRefinement(
            [input_shape[name].channels for name in self.skip_features[0]],
            window=self.window,
            code_dim=self.head.code.out_channels,
            dim=refinement_dim,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        arguments = super().from_config(cfg, input_shape)
        key, skips = "MODEL.DEEPMASK.SHARPMASK_FEATURES", cfg.MODEL.DEEPMASK.SHARPMASK_FEATURES
        for name in arguments["in_features"]:
            _skip_features(key, skips, name, input_shape)
        # Only masks are learned, in every step.
        return {**arguments, "skip_features": skips, "alternate": False}

    @classmethod
    def check_run(cls, cfg: CfgNode, has_weights: bool) -> None:
        """Raises a ValueError if there is no trained DeepMask to refine."""
        if not has_weights:
            raise ValueError(
                "MODEL.WEIGHTS is empty; SharpMask refines a trained DeepMask, name its checkpoint"
            )

    def pyramid(self, features: Dict[str, torch.Tensor]) -> List[SharpLevel]:
        features = {name: maps.detach() for name, maps in features.items()}
        return [
            SharpLevel(maps, self.refinement.padded_skips([features[name] for name in names]))
            for maps, names in zip(super().pyramid(features), self.skip_features)
        ]

    def window_codes(self, level: SharpLevel) -> torch.Tensor:
        return super().window_codes(level.maps)

    def sampled_codes(self, pyramid: List[SharpLevel], windows: Windows) -> torch.Tensor:
        return super().sampled_codes([level.maps for level in pyramid], windows)

    def masks(
        self, pyramid: List[SharpLevel], codes: torch.Tensor, windows: Windows
    ) -> torch.Tensor:
        skips = []
        for number in range(len(self.skip_features[0])):
            cells = 2**number  # of this skip map, per cell of the first
            finer = windows._replace(row=windows.row * cells, column=windows.column * cells)
            maps = [level.skips[number] for level in pyramid]
            skips.append(by_level(crop_windows, maps, finer, self.window * cells))
        return self.refinement(codes, skips)

    def weighted_losses(
        self, mask_loss: torch.Tensor, score_loss: torch.Tensor
    ) -> Dict[str, torch.Tensor]:
        return {"loss_sharpmask": mask_loss}


def _skip_features(
    option: str, skips: Sequence[str], window_map: str, input_shape: Dict[str, ShapeSpec]
) -> List[str]:
    """Returns the names of the skip maps for windows on a map of the image pyramid.

    Args:
        option: name of the argument or configuration key, for the error messages.
        skips: its value, names without a scale.
        window_map: name of the map of the windows, such as "res4" or "res4@0.5".
        input_shape: channels and stride of the backbone's feature maps.

    Raises:
        ValueError: The backbone lacks one of the maps, or its stride is wrong.
    """
    base, at, scale = window_map.partition("@")
    if list(skips)[:1] != [base]:
        raise ValueError(
            f"{option} is {', '.join(skips)}; allowed for windows on {window_map}: {base} first, "
            "then finer maps"
        )
    names = [f"{skip}{at}{scale}" for skip in skips]
    for number, name in enumerate(names):
        if name not in input_shape:
            raise ValueError(f"{option} needs {name}; the backbone has {', '.join(input_shape)}")
        stride = input_shape[name].stride
        expected = input_shape[names[0]].stride / 2**number
        if abs(stride - expected) > 1e-3 * expected:
            raise ValueError(
                f"{option}: {name} has stride {stride:g}; allowed: {expected:g}, half of the one "
                "before"
            )
    return names
