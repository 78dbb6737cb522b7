"""SharpMask (Pinheiro et al., ECCV 2016): DeepMask's codes refined with finer and finer maps."""

from typing import Dict, List, NamedTuple, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from torch import nn
from torch.nn import functional as F

from .deep_mask import DeepMask
from .window_loss import window_losses
from .window_proposals import Windows, by_level
from .windows import crop_windows


class MaskRefinement(nn.Module):
    """The way up: a code becomes a coarse map, to which each module adds a finer skip map (section 3).

    Horizontal convolutions, of the skip maps, run on whole pictures; vertical ones on windows.
    """

    def __init__(self, skip_channels: Sequence[int], *, window: int, code_dim: int, dim: int):
        """
        Args:
            skip_channels: of the skip maps, from the windows' own stride on, each of half the stride of the one before.
            window: cells of a window, each way, on the first of them.
            code_dim: D.
            dim: channels of the first map, a multiple of 2 to the number of skip maps; each module halves them.
        """
        super().__init__()
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
        """Skip maps (B, dim / 2, ...), (B, dim / 4, ...), ... that windows of the padded first map have cells on.

        Args:
            features: one of each stride.
        """
        before = self.window // 2
        rows, columns = (side + 2 * before for side in features[0].shape[-2:])
        found = []
        for number, (convs, maps) in enumerate(zip(self.horizontal, features)):
            cells, maps = 2**number, convs(maps)
            below = rows * cells - before * cells - maps.shape[-2]
            right = columns * cells - before * cells - maps.shape[-1]
            found.append(F.pad(maps, (before * cells, right, before * cells, below)))
        return found

    def forward(self, codes: torch.Tensor, skips: Sequence[torch.Tensor]) -> torch.Tensor:
        """
        Args:
            codes: (N, D).
            skips: in the windows, (N, dim / 2, window, window), (N, dim / 4, 2 window, 2 window), ...

        Returns:
            (N, m, m) logits, m = window times 2 to the number of skip maps.
        """
        maps = self.expand(codes).unflatten(1, (self.dim, self.window, self.window))
        for convs, skip in zip(self.vertical, skips):
            maps = F.relu(convs(maps) + skip)
            maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
        return self.predictor(maps).squeeze(1)


def _convs(*channels: int) -> nn.Sequential:
    layers = []
    for before, after in zip(channels, channels[1:]):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class SharpLevel(NamedTuple):
    """What windows of a level are read from.

    Attributes:
        maps: DeepMask's, padded.
        skips: padded, from coarse to fine.
    """

    maps: torch.Tensor
    skips: List[torch.Tensor]


@PROPOSAL_GENERATOR_REGISTRY.register()
class SharpMask(DeepMask):
    """Refines the masks of a trained DeepMask (``MODEL.WEIGHTS``), which stays as it is; scores are DeepMask's.

    Only the refinement is trained. DeepMask's head and, with ``MODEL.GUIDED_BACKBONE.FREEZE``, the backbone with its
    statistics do not change; without that key nothing comes from here to the backbone either, other heads may train it.
    """

    @configurable
    def __init__(
        self, *, refinement: MaskRefinement, skip_features: Sequence[Sequence[str]], **kwargs
    ):
        """
        Args:
            refinement: from codes and skip maps to masks.
            skip_features: of each level, from its own map to finer ones.
            kwargs: of DeepMask.
        """
        super().__init__(**kwargs)
        self.head.requires_grad_(False)
        self.refinement = refinement
        self.skip_features = [list(names) for names in skip_features]

    @classmethod
    def check_run(cls, cfg: CfgNode, has_weights: bool) -> None:
        if not has_weights:
            raise ValueError(
                "MODEL.WEIGHTS is empty; SharpMask refines a trained DeepMask, name its checkpoint"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        arguments = super().from_config(cfg, input_shape)
        node = cfg.MODEL.DEEPMASK
        skips = [
            _skip_features(name, node.SHARPMASK_FEATURES, input_shape)
            for name in arguments["in_features"]
        ]
        if node.SHARPMASK_DIM % 2 ** len(skips[0]):
            raise ValueError(
                f"MODEL.DEEPMASK.SHARPMASK_DIM is {node.SHARPMASK_DIM}; allowed with {len(skips[0])} features: "
                f"multiples of {2 ** len(skips[0])}"
            )
        arguments["skip_features"] = skips
        arguments["refinement"] = MaskRefinement(
            [input_shape[name].channels for name in skips[0]],
            window=node.WINDOW,
            code_dim=node.CODE_DIM,
            dim=node.SHARPMASK_DIM,
        )
        return arguments

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
            cells = 2**number

            def crop(maps, image, row, column):
                return crop_windows(maps, image, row * cells, column * cells, self.window * cells)

            skips.append(by_level(crop, [level.skips[number] for level in pyramid], windows))
        return self.refinement(codes, skips)

    def losses(
        self,
        scores: torch.Tensor,
        masks: torch.Tensor,
        positive: torch.Tensor,
        targets: torch.Tensor,
    ) -> Dict[str, torch.Tensor]:
        mask_loss, _ = window_losses(scores, masks, positive, targets >= 0.5)
        return {"loss_sharpmask": mask_loss}


def _skip_features(name: str, skips: Sequence[str], input_shape: Dict[str, ShapeSpec]) -> List[str]:
    """Skip maps of a level, which may be of a pyramid: of "res4@0.5" these are "res4@0.5", "res3@0.5" and so on."""
    base, at, scale = name.partition("@")
    if list(skips)[:1] != [base]:
        raise ValueError(
            f"MODEL.DEEPMASK.SHARPMASK_FEATURES is {', '.join(skips)}; allowed for windows on {name}: "
            f"{base} first, then finer maps"
        )
    names = [f"{skip}{at}{scale}" for skip in skips]
    strides = [input_shape[skip].stride if skip in input_shape else None for skip in names]
    for number, (skip, stride) in enumerate(zip(names, strides)):
        wanted = strides[0] / 2**number
        if stride is None:
            raise ValueError(
                f"MODEL.DEEPMASK.SHARPMASK_FEATURES needs {skip}; the backbone has {', '.join(input_shape)}"
            )
        if abs(stride - wanted) > 1e-3 * wanted:
            raise ValueError(
                f"MODEL.DEEPMASK.SHARPMASK_FEATURES: {skip} has stride {stride:g}; allowed: {wanted:g}, half of the one "
                "before"
            )
    return names
