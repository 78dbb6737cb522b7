"""DeepMask: every window is scored and segmented from the same code."""

from typing import Any, Dict, List, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn
from torch.nn import functional as F

from rpe_d2.modeling.argument_checks import check_range

from .window_proposals import WindowProposalGenerator
from .windows import Windows, by_level, crop_windows


class DeepMaskHead(nn.Module):
    """Computes a code for each window, and a score and a mask from the code.

    As in the authors' release, the mask layer has low rank: it is the product of the two linear
    layers before and after the code. The full layer, DeepMaskFull in the paper, predicts masks from
    the features of the window directly.
    """

    def __init__(
        self,
        channels: int,
        *,
        window: int = 14,
        conv_dim: int = 128,
        code_dim: int = 512,
        score_dim: int = 1024,
        dropout: float = 0.5,
        mask_size: int = 56,
        low_rank: bool = True,
    ):
        """
        Args:
            channels: channels of the feature maps.
            window: side of a window in cells.
            conv_dim: channels of the 1x1 convolution before the code.
            code_dim: D, the length of the code.
            score_dim: hidden units of the score branch.
            dropout: dropout probability of the code and the hidden units in the score branch.
            mask_size: m, the side length of the masks.
            low_rank: whether masks are predicted from the codes, or else from all features of a
                window, with (conv_dim window^2 / code_dim) times as many weights.
        """
        super().__init__()
        for name, value in (
            ("conv_dim", conv_dim),
            ("code_dim", code_dim),
            ("score_dim", score_dim),
            ("mask_size", mask_size),
        ):
            check_range(name, value, 1)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; allowed: 0 to below 1")
        self.window = window
        self.mask_size = mask_size
        self.dropout = dropout
        self.conv = nn.Conv2d(channels, conv_dim, 1)
        self.code = nn.Conv2d(conv_dim, code_dim, window)
        self.low_rank = low_rank
        self.mask = nn.Linear(code_dim if low_rank else conv_dim * window**2, mask_size**2)
        self.hidden = nn.Linear(code_dim, score_dim)
        self.score = nn.Linear(score_dim, 1)
        c2_msra_fill(self.conv)

    def padded_maps(self, features: torch.Tensor) -> torch.Tensor:
        """Computes maps (B, conv_dim, H + 2 p, W + 2 p), padded with p = window // 2 cells."""
        return F.pad(F.relu(self.conv(features)), [self.window // 2] * 4)

    def scores(self, codes: torch.Tensor, training: bool) -> torch.Tensor:
        """Computes logits (N,) from codes (N, D), with dropout in training."""
        hidden = F.relu(self.hidden(F.dropout(codes, self.dropout, training)))
        return self.score(F.dropout(hidden, self.dropout, training)).squeeze(1)

    def masks(self, inputs: torch.Tensor) -> torch.Tensor:
        """Computes mask logits (N, m, m).

        Args:
            inputs: codes (N, D), or without low rank the features of windows, (N, conv_dim, window,
                window).
        """
        return self.mask(inputs.flatten(1)).unflatten(1, (self.mask_size, self.mask_size))


@PROPOSAL_GENERATOR_REGISTRY.register()
class DeepMask(WindowProposalGenerator):
    """Proposes object masks from windows on an image pyramid (Pinheiro et al., NIPS 2015).

    The pyramid consists of the scales of ``MODEL.GUIDED_BACKBONE.SCALES`` or of the levels of an
    FPN. The windows of the paper have 14 cells of stride 16 (224 pixels), with canonical objects of
    128 pixels, at scales half an octave apart. The authors' release has 10 cells for a patch of 160
    pixels. :class:`~rpe_d2.baselines.window_proposals.WindowProposalGenerator` compares the
    training on whole images to the training on patches.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        in_features: Sequence[str] = ("res4",),
        window: int = 14,
        conv_dim: int = 128,
        code_dim: int = 512,
        score_dim: int = 1024,
        dropout: float = 0.5,
        mask_size: int = 56,
        low_rank: bool = True,
        score_loss_weight: float = 1 / 32,
        **kwargs: Any,
    ):
        """
        Args:
            input_shape: channels and stride of the backbone's feature maps.
            in_features: maps of the image pyramid, all with the same number of channels.
            window, conv_dim, code_dim, score_dim, dropout, mask_size, low_rank: see
                :class:`DeepMaskHead`.
            score_loss_weight: lambda, the weight of the score loss.
            kwargs: see :class:`~rpe_d2.baselines.window_proposals.WindowProposalGenerator`.
        """
        super().__init__(input_shape, in_features=in_features, window=window, **kwargs)
        check_range("score_loss_weight", score_loss_weight, 0)
        self.head = DeepMaskHead(
            self.in_channels,
            window=window,
            conv_dim=conv_dim,
            code_dim=code_dim,
            score_dim=score_dim,
            dropout=dropout,
            mask_size=mask_size,
            low_rank=low_rank,
        )
        self.score_loss_weight = score_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        node = cfg.MODEL.DEEPMASK
        return {
            **cls.window_arguments(cfg, "DEEPMASK", input_shape),
            "conv_dim": node.CONV_DIM,
            "code_dim": node.CODE_DIM,
            "score_dim": node.SCORE_DIM,
            "mask_size": node.MASK_SIZE,
            "low_rank": node.LOW_RANK,
            "alternate": node.ALTERNATE,
            "mask_classes": node.MASK_CLASSES,
            "score_classes": node.SCORE_CLASSES,
            "mask_threshold": node.MASK_THRESHOLD,
        }

    def pyramid(self, features: Dict[str, torch.Tensor]) -> List[torch.Tensor]:
        return [self.head.padded_maps(features[name]) for name in self.in_features]

    def window_codes(self, level: torch.Tensor) -> torch.Tensor:
        return self.head.code(level)

    def sampled_codes(self, pyramid: List[torch.Tensor], windows: Windows) -> torch.Tensor:
        return self.head.code(by_level(crop_windows, pyramid, windows, self.window)).flatten(1)

    def scores(self, codes: torch.Tensor) -> torch.Tensor:
        # Proposals have no gradient; they are ranked without dropout in training too.
        return self.head.scores(codes, self.training and torch.is_grad_enabled())

    def masks(self, pyramid: List, codes: torch.Tensor, windows: Windows) -> torch.Tensor:
        if self.head.low_rank:
            return self.head.masks(codes)
        return self.head.masks(by_level(crop_windows, pyramid, windows, self.window))

    def weighted_losses(
        self, mask_loss: torch.Tensor, score_loss: torch.Tensor
    ) -> Dict[str, torch.Tensor]:
        return {
            "loss_deepmask_mask": mask_loss,
            "loss_deepmask_score": self.score_loss_weight * score_loss,
        }
