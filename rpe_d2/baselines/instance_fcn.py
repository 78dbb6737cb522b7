"""InstanceFCN (Dai et al., ECCV 2016): windows put together from instance-sensitive score maps."""

from typing import Dict, List, NamedTuple, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn
from torch.nn import functional as F

from .window_loss import window_losses
from .window_proposals import WindowProposalGenerator, Windows, by_level
from .windows import assemble_windows


class InstanceMaps(NamedTuple):
    """Of one level.

    Attributes:
        masks: (B, k k, H + 2 p, W + 2 p) logits, p = window // 2.
        codes: (B, D, H, W) hidden units of the windows' scores.
    """

    masks: torch.Tensor
    codes: torch.Tensor


class InstanceFCNHead(nn.Module):
    """The two fully convolutional branches (section 3.2)."""

    def __init__(self, channels: int, *, conv_dim: int, parts: int):
        """
        Args:
            channels: of the features.
            conv_dim: D, hidden channels of both branches.
            parts: k.
        """
        super().__init__()
        self.mask_conv = nn.Conv2d(channels, conv_dim, 1)
        self.masks = nn.Conv2d(conv_dim, parts**2, 3, padding=1)
        self.score_conv = nn.Conv2d(channels, conv_dim, 3, padding=1)
        self.score = nn.Linear(conv_dim, 1)
        for conv in (self.mask_conv, self.score_conv):
            c2_msra_fill(conv)
        for layer in (self.masks, self.score):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Score maps (B, k k, H, W) and the scores' hidden units (B, D, H, W)."""
        masks = self.masks(F.relu(self.mask_conv(features)))
        return masks, F.relu(self.score_conv(features))


@PROPOSAL_GENERATOR_REGISTRY.register()
class InstanceFCN(WindowProposalGenerator):
    """Score maps on one map of any backbone, at all scales of a pyramid (``MODEL.GUIDED_BACKBONE.SCALES``) or FPN levels.

    Each of k x k maps says which pixels are a certain part of an object, its upper left one for instance; a window's mask
    is copied from them, and what neighbouring windows have in common they share. The authors' windows have 21 cells of
    stride 8 (168 pixels), at scales a factor of 1.5 apart. How training on whole pictures corresponds to their windows is
    told by :class:`WindowProposalGenerator`.
    """

    @configurable
    def __init__(self, *, head: InstanceFCNHead, mask_loss_weight: float, **kwargs):
        """
        Args:
            head: from features to maps and scores.
            mask_loss_weight: factor of the masks' loss, which is a sum over a window's cells.
            kwargs: of WindowProposalGenerator; windows have an odd number of cells, each way.
        """
        super().__init__(**kwargs)
        self.head = head
        self.mask_loss_weight = mask_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        arguments = cls.window_arguments(cfg, "INSTANCE_FCN", input_shape)
        node = cfg.MODEL.INSTANCE_FCN
        if node.WINDOW % 2 == 0 or node.WINDOW < node.PARTS:
            raise ValueError(
                f"MODEL.INSTANCE_FCN.WINDOW is {node.WINDOW}; allowed: odd numbers from PARTS, {node.PARTS}, on"
            )
        arguments["head"] = InstanceFCNHead(
            input_shape[arguments["in_features"][0]].channels,
            conv_dim=node.CONV_DIM,
            parts=node.PARTS,
        )
        arguments["mask_loss_weight"] = node.MASK_LOSS_WEIGHT
        return arguments

    def pyramid(self, features: Dict[str, torch.Tensor]) -> List[InstanceMaps]:
        levels = []
        for name in self.in_features:
            masks, codes = self.head(features[name])
            levels.append(InstanceMaps(F.pad(masks, [self.window // 2] * 4), codes))
        return levels

    def window_codes(self, level: InstanceMaps) -> torch.Tensor:
        return level.codes

    def scores(self, codes: torch.Tensor) -> torch.Tensor:
        return self.head.score(codes).squeeze(1)

    def masks(
        self, pyramid: List[InstanceMaps], codes: torch.Tensor, windows: Windows
    ) -> torch.Tensor:
        def assemble(maps, *place):
            return assemble_windows(maps, *place, self.window)

        return by_level(assemble, [level.masks for level in pyramid], windows)

    def losses(
        self,
        scores: torch.Tensor,
        masks: torch.Tensor,
        positive: torch.Tensor,
        targets: torch.Tensor,
    ) -> Dict[str, torch.Tensor]:
        mask_loss, score_loss = window_losses(scores, masks, positive, targets)
        return {
            "loss_instance_fcn_mask": self.mask_loss_weight * self.window**2 * mask_loss,
            "loss_instance_fcn_score": score_loss,
        }
