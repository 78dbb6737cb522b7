"""Base class of the semantic heads: full-resolution logits, cross-entropy and pair loss."""

from abc import ABC, abstractmethod
from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn import functional as F

from ..argument_checks import check_range
from ..embedding.loss import mean_cross_entropy
from ..embedding.semantic_pair_loss import SemanticPairLoss, build_semantic_pair_loss
from ..layers import zero_loss
from .class_balance import balanced_class_weights

# Detectron2's default of MODEL.SEM_SEG_HEAD.IGNORE_VALUE.
IGNORE_VALUE = 255


class SemSegMaps(NamedTuple):
    """Predictions of a head for a batch, on a grid of ``stride`` pixels per cell.

    Attributes:
        scores: (B, K, h, w) class logits.
        embeddings: (B, D, h, w) embeddings, not normalized; None if the head predicts none.
        stride: pixels per grid cell.
    """

    scores: torch.Tensor
    embeddings: Optional[torch.Tensor]
    stride: int


class SemSegHead(nn.Module, ABC):
    """Base class of semantic heads for ``SemanticSegmentor`` and ``PanopticFPN``.

    Subclasses predict class logits and, from the same features, embeddings for an auxiliary pair
    loss (``MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT``). The embeddings are not computed at inference.
    ``layers``, ``losses`` and ``common_stride`` have the same meaning as in ``SemSegFPNHead``, so
    ``SPNSemSegHead`` can refine every subclass; it trains them with ``scores_and_losses``.
    """

    has_pair_loss = True
    has_class_balance = True
    # Weight of the pair loss if MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT is negative.
    default_pair_loss_weight = 0.0

    def __init__(
        self,
        *,
        common_stride: int,
        ignore_value: int = IGNORE_VALUE,
        loss_weight: float = 1.0,
        pair_loss: Optional[SemanticPairLoss] = None,
        class_balance: float = 0.0,
    ):
        """
        Args:
            common_stride: stride of the logits in pixels.
            ignore_value: label of the pixels that enter no loss.
            loss_weight: weight of the cross-entropy.
            pair_loss: the auxiliary pair loss; None for none.
            class_balance: weigh the classes by their inverse frequency to this power, 0 to 1. Above
                0, :meth:`balance_classes` must be called before training.
        """
        super().__init__()
        check_range("loss_weight", loss_weight, 0)
        check_range("class_balance", class_balance, 0, 1)
        self.common_stride = common_stride
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.pair_loss = pair_loss
        self.class_balance = class_balance
        self.class_weights: Optional[torch.Tensor] = None  # (K,)

    @classmethod
    def shared_options(cls, cfg: CfgNode) -> Dict[str, Any]:
        """Reads the arguments that all heads have in common from ``MODEL.SEM_SEG_HEAD``."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "num_classes": head.NUM_CLASSES,
            "ignore_value": head.IGNORE_VALUE,
            "loss_weight": head.LOSS_WEIGHT,
            "pair_loss": build_semantic_pair_loss(cfg, cls.default_pair_loss_weight),
            "class_balance": head.CLASS_BALANCE,
        }

    def balance_classes(self, pixel_counts: torch.Tensor) -> None:
        """Sets the weights of the classes in the cross-entropy, if ``class_balance`` is above 0.

        ``rpe-d2 train`` calls this with the label maps of ``DATASETS.TRAIN``.

        Args:
            pixel_counts: (K,) number of pixels of each class in the training data.
        """
        if self.class_balance:
            self.class_weights = balanced_class_weights(pixel_counts, self.class_balance)

    @abstractmethod
    def predict(self, features: Dict[str, torch.Tensor]) -> SemSegMaps:
        """Predicts logits and, in training with the pair loss, embeddings from feature maps."""

    def forward(
        self, features: Dict[str, torch.Tensor], targets: Optional[torch.Tensor] = None
    ) -> Tuple[Optional[torch.Tensor], Dict[str, torch.Tensor]]:
        """
        Args:
            features: feature maps of the backbone.
            targets: (B, H, W) int64 class labels, in training.

        Returns:
            In training None and a dict of losses, "loss_sem_seg" and, with the pair loss,
            "loss_sem_seg_pair". Otherwise logits (B, K, H', W') and an empty dict; H' x W' is the
            size of the padded image, rounded up to a multiple of the stride.
        """
        if not self.training:
            maps = self.predict(features)
            return _full_size(maps.scores, maps.stride), {}
        return None, self.scores_and_losses(features, targets)[1]

    def scores_and_losses(
        self, features: Dict[str, torch.Tensor], targets: torch.Tensor
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Computes logits (B, K, h, w) and all training losses for class labels (B, H, W)."""
        maps = self.predict(features)
        return maps.scores, self.map_losses(maps, targets)

    def layers(self, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        """Computes logits (B, K, h, w)."""
        return self.predict(features).scores

    def losses(self, scores: torch.Tensor, targets: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Computes the loss "loss_sem_seg" of the logits that :meth:`layers` returns."""
        return self.map_losses(SemSegMaps(scores, None, self.common_stride), targets)

    def map_losses(self, maps: SemSegMaps, targets: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Computes the weighted losses "loss_sem_seg" and, with the pair loss, "loss_sem_seg_pair".

        Args:
            maps: predictions for a batch.
            targets: (B, H, W) int64 class labels.

        Raises:
            ValueError: The classes are to be balanced, and their frequencies are unknown.
        """
        if self.class_balance and self.class_weights is None:
            raise ValueError(
                f"class_balance is {self.class_balance:g} (MODEL.SEM_SEG_HEAD.CLASS_BALANCE), and "
                "the frequencies of the classes are unknown; call balance_classes with "
                "rpe_d2.data.count_class_pixels before training"
            )
        height, width = targets.shape[-2:]
        scores = _full_size(maps.scores.float(), maps.stride)[..., :height, :width]
        cross_entropy = mean_cross_entropy(scores, targets, self.ignore_value, self.class_weights)
        losses = {"loss_sem_seg": self.loss_weight * cross_entropy}
        if maps.embeddings is None:
            return losses
        if self.pair_loss is not None:
            return {**losses, **self.pair_loss(maps.embeddings, maps.stride, targets)}
        losses["loss_sem_seg"] = losses["loss_sem_seg"] + zero_loss(maps.embeddings)
        return losses


def pixel_predictor(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Builds a 1x1 convolution whose initial outputs have about the variance of its inputs.

    With smaller initial outputs training is slow at first.
    """
    conv = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    nn.init.zeros_(conv.bias)
    return conv


def _full_size(scores: torch.Tensor, stride: int) -> torch.Tensor:
    """Enlarges logits (B, K, h, w) to (B, K, h * stride, w * stride)."""
    if stride == 1:
        return scores
    return F.interpolate(scores, scale_factor=stride, mode="bilinear", align_corners=False)
