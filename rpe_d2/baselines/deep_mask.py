"""DeepMask (Pinheiro et al., NIPS 2015): every window is scored and segmented from one code."""

from typing import Dict, List

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn
from torch.nn import functional as F

from .window_loss import window_losses
from .window_proposals import WindowProposalGenerator, Windows, by_level
from .windows import crop_windows


class DeepMaskHead(nn.Module):
    """From the cells of a window to its code, score and mask, as in the authors' release.

    The mask's layer has low rank: it is the product of the two linear layers before and after the code.
    """

    def __init__(
        self,
        channels: int,
        *,
        window: int,
        conv_dim: int,
        code_dim: int,
        score_dim: int,
        dropout: float,
        mask_size: int,
    ):
        """
        Args:
            channels: of the features.
            window: cells of a window, each way.
            conv_dim: channels of the 1x1 convolution before the code.
            code_dim: D.
            score_dim: hidden units of the score.
            dropout: share of the code and of the hidden units that the score loses in training.
            mask_size: m.
        """
        super().__init__()
        self.window = window
        self.mask_size = mask_size
        self.dropout = dropout
        self.conv = nn.Conv2d(channels, conv_dim, 1)
        self.code = nn.Conv2d(conv_dim, code_dim, window)
        self.mask = nn.Linear(code_dim, mask_size**2)
        self.hidden = nn.Linear(code_dim, score_dim)
        self.score = nn.Linear(score_dim, 1)
        c2_msra_fill(self.conv)

    def padded_maps(self, features: torch.Tensor) -> torch.Tensor:
        """(B, conv_dim, H + 2 p, W + 2 p), p = window // 2: windows reach beyond the picture."""
        return F.pad(F.relu(self.conv(features)), [self.window // 2] * 4)

    def scores(self, codes: torch.Tensor, training: bool) -> torch.Tensor:
        """(N,) logits from codes (N, D)."""
        hidden = F.relu(self.hidden(F.dropout(codes, self.dropout, training)))
        return self.score(F.dropout(hidden, self.dropout, training)).squeeze(1)

    def masks(self, codes: torch.Tensor) -> torch.Tensor:
        """(N, m, m) logits from codes (N, D)."""
        return self.mask(codes).unflatten(1, (self.mask_size, self.mask_size))


@PROPOSAL_GENERATOR_REGISTRY.register()
class DeepMask(WindowProposalGenerator):
    """Windows on maps of any backbone, at all scales of a pyramid (``MODEL.GUIDED_BACKBONE.SCALES``) or levels of an FPN.

    The authors' windows have 14 cells of stride 16 (224 pixels; in the release 10 cells of a patch of 160), with canonical
    objects of 128 pixels, at scales half an octave apart. How training on whole pictures corresponds to their patches is
    told by :class:`WindowProposalGenerator`.
    """

    @configurable
    def __init__(self, *, head: DeepMaskHead, score_loss_weight: float, **kwargs):
        """
        Args:
            head: from windows to codes, scores and masks.
            score_loss_weight: lambda, factor of the scores' loss.
            kwargs: of WindowProposalGenerator.
        """
        super().__init__(**kwargs)
        self.head = head
        self.score_loss_weight = score_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        arguments = cls.window_arguments(cfg, "DEEPMASK", input_shape)
        node = cfg.MODEL.DEEPMASK
        arguments["head"] = DeepMaskHead(
            input_shape[arguments["in_features"][0]].channels,
            window=node.WINDOW,
            conv_dim=node.CONV_DIM,
            code_dim=node.CODE_DIM,
            score_dim=node.SCORE_DIM,
            dropout=node.DROPOUT,
            mask_size=node.MASK_SIZE,
        )
        arguments["score_loss_weight"] = node.SCORE_LOSS_WEIGHT
        return arguments

    def pyramid(self, features: Dict[str, torch.Tensor]) -> List[torch.Tensor]:
        return [self.head.padded_maps(features[name]) for name in self.in_features]

    def window_codes(self, level: torch.Tensor) -> torch.Tensor:
        return self.head.code(level)

    def sampled_codes(self, pyramid: List[torch.Tensor], windows: Windows) -> torch.Tensor:
        def crop(level, *place):
            return crop_windows(level, *place, self.window)

        return self.head.code(by_level(crop, pyramid, windows)).flatten(1)

    def scores(self, codes: torch.Tensor) -> torch.Tensor:
        # Proposals, which have no gradient, are ranked without dropout also in training.
        return self.head.scores(codes, self.training and torch.is_grad_enabled())

    def masks(self, pyramid: List, codes: torch.Tensor, windows: Windows) -> torch.Tensor:
        return self.head.masks(codes)

    def losses(
        self,
        scores: torch.Tensor,
        masks: torch.Tensor,
        positive: torch.Tensor,
        targets: torch.Tensor,
    ) -> Dict[str, torch.Tensor]:
        mask_loss, score_loss = window_losses(scores, masks, positive, targets >= 0.5)
        return {
            "loss_deepmask_mask": mask_loss,
            "loss_deepmask_score": self.score_loss_weight * score_loss,
        }
