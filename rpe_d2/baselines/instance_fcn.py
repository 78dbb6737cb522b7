"""InstanceFCN: the masks of windows are assembled from instance-sensitive score maps."""

from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn
from torch.nn import functional as F

from rpe_d2.modeling.argument_checks import check_range

from .window_proposals import WindowProposalGenerator
from .windows import Windows, WindowTolerances, assemble_windows, by_level


class InstanceMaps(NamedTuple):
    """Maps of one level of the pyramid.

    Attributes:
        masks: (B, k k, H + 2 p, W + 2 p) logits, padded with p = window // 2 cells.
        codes: (B, D, H, W) hidden units of the score branch.
    """

    masks: torch.Tensor
    codes: torch.Tensor


class InstanceFCNHead(nn.Module):
    """The two fully convolutional branches for masks and scores (section 3.2)."""

    def __init__(self, channels: int, *, conv_dim: int = 512, parts: int = 5):
        """
        Args:
            channels: channels of the feature maps.
            conv_dim: D, the hidden channels of both branches.
            parts: k; a window has k x k parts.
        """
        super().__init__()
        check_range("conv_dim", conv_dim, 1)
        check_range("parts", parts, 1)
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
        """Computes score maps (B, k k, H, W) and hidden units of the scores (B, D, H, W)."""
        masks = self.masks(F.relu(self.mask_conv(features)))
        return masks, F.relu(self.score_conv(features))


@PROPOSAL_GENERATOR_REGISTRY.register()
class InstanceFCN(WindowProposalGenerator):
    """Proposes object masks from instance-sensitive score maps (Dai et al., ECCV 2016).

    Each of the k x k score maps predicts which pixels belong to a certain part of an object, such
    as its upper left. The mask of a window is copied from these maps, so neighboring windows share
    values. The windows of the paper have 21 cells of stride 8 (168 pixels), at scales a factor of
    1.5 apart. The scales are those of ``MODEL.GUIDED_BACKBONE.SCALES`` or the levels of an FPN.
    :class:`~rpe_d2.baselines.window_proposals.WindowProposalGenerator` compares the training on
    whole images to the training on windows.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        in_features: Sequence[str] = ("p3",),
        window: int = 21,
        parts: int = 5,
        conv_dim: int = 512,
        mask_loss_weight: float = 1.0,
        tolerances: WindowTolerances = WindowTolerances(positive_scale=0.3),
        batch_size_per_image: int = 256,
        pre_nms_topk: int = 2000,
        post_nms_topk_train: int = 1000,
        post_nms_topk_test: int = 1000,
        nms_threshold: float = 0.8,
        mask_threshold: float = 0.5,
        **kwargs: Any,
    ):
        """
        Args:
            input_shape: channels and stride of the backbone's feature maps.
            window: side of a window in cells, an odd number.
            parts: k; a window has k x k parts, each with its own score map.
            conv_dim: hidden channels of the mask branch and the score branch.
            mask_loss_weight: weight of the mask loss, a sum over the cells of a window.
            other arguments: see
                :class:`~rpe_d2.baselines.window_proposals.WindowProposalGenerator`.
        """
        _check_window(window, parts, "window", "parts")
        check_range("mask_loss_weight", mask_loss_weight, 0)
        super().__init__(
            input_shape,
            in_features=in_features,
            window=window,
            tolerances=tolerances,
            batch_size_per_image=batch_size_per_image,
            pre_nms_topk=pre_nms_topk,
            post_nms_topk_train=post_nms_topk_train,
            post_nms_topk_test=post_nms_topk_test,
            nms_threshold=nms_threshold,
            mask_threshold=mask_threshold,
            **kwargs,
        )
        self.head = InstanceFCNHead(self.in_channels, conv_dim=conv_dim, parts=parts)
        self.mask_loss_weight = mask_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        arguments = cls.window_arguments(cfg, "INSTANCE_FCN", input_shape)
        node = cfg.MODEL.INSTANCE_FCN
        _check_window(
            node.WINDOW, node.PARTS, "MODEL.INSTANCE_FCN.WINDOW", "MODEL.INSTANCE_FCN.PARTS"
        )
        return {**arguments, "parts": node.PARTS, "conv_dim": node.CONV_DIM}

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
        maps = [level.masks for level in pyramid]
        return by_level(assemble_windows, maps, windows, self.window)

    def mask_targets(self, coverage: torch.Tensor) -> torch.Tensor:
        return coverage

    def weighted_losses(
        self, mask_loss: torch.Tensor, score_loss: torch.Tensor
    ) -> Dict[str, torch.Tensor]:
        return {
            "loss_instance_fcn_mask": self.mask_loss_weight * self.window**2 * mask_loss,
            "loss_instance_fcn_score": score_loss,
        }


def _check_window(window: int, parts: int, window_name: str, parts_name: str) -> None:
    if window % 2 == 0 or window < parts:
        raise ValueError(
            f"{window_name} is {window}; allowed: odd numbers, at least {parts_name}, {parts}"
        )
