"""What the semantic heads share: full-size scores, cross-entropy, and the pair loss as an auxiliary."""

from abc import ABC, abstractmethod
from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn import functional as F

from ..embedding.pixel_losses import SemanticPairLoss, build_semantic_pair_loss, mean_cross_entropy


class SemSegMaps(NamedTuple):
    """What a head predicts for a batch, on a grid of ``stride`` pixels.

    Attributes:
        scores: (B, K, h, w) logits of the classes.
        embeddings: (B, D, h, w), of any length; None where the head makes none.
        stride: pixels per grid cell.
    """

    scores: torch.Tensor
    embeddings: Optional[torch.Tensor]
    stride: int


class SemSegHead(nn.Module, ABC):
    """A semantic head for Detectron2's ``SemanticSegmentor`` and ``PanopticFPN``.

    Subclasses predict scores and, from the same features, embeddings for the pair loss
    (``MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT``), which shape these features and cost nothing at inference. ``layers``,
    ``losses`` and ``common_stride`` are those of ``SemSegFPNHead``: ``SPNSemSegHead`` takes any of them, and trains them
    by ``scores_and_losses``.
    """

    has_pair_loss = True
    usual_pair_weight = 0.0  # where MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT leaves it to the head

    def __init__(
        self,
        *,
        common_stride: int,
        ignore_value: int,
        loss_weight: float,
        pair_loss: Optional[SemanticPairLoss],
    ):
        """
        Args:
            common_stride: pixels per cell of the scores.
            ignore_value: label without loss.
            loss_weight: factor of the cross-entropy.
            pair_loss: None: without.
        """
        super().__init__()
        self.common_stride = common_stride
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.pair_loss = pair_loss

    @classmethod
    def shared_options(cls, cfg: CfgNode) -> Dict[str, Any]:
        """Arguments that all heads read from ``MODEL.SEM_SEG_HEAD``."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "num_classes": head.NUM_CLASSES,
            "ignore_value": head.IGNORE_VALUE,
            "loss_weight": head.LOSS_WEIGHT,
            "pair_loss": build_semantic_pair_loss(cfg, cls.usual_pair_weight),
        }

    @abstractmethod
    def predict(self, features: Dict[str, torch.Tensor]) -> SemSegMaps:
        """Scores and, in training with the pair loss, embeddings, from the backbone's maps."""

    def forward(
        self, features: Dict[str, torch.Tensor], targets: Optional[torch.Tensor] = None
    ) -> Tuple[Optional[torch.Tensor], Dict[str, torch.Tensor]]:
        """
        Args:
            features: the backbone's maps.
            targets: in training (B, H, W) int64 classes.

        Returns:
            In training None and the losses, "loss_sem_seg" and, with the pair loss, "loss_sem_seg_pair"; else scores
            (B, K, H', W') and {}, H' and W' the padded picture's or, where that is no multiple of the stride, more.
        """
        if not self.training:
            maps = self.predict(features)
            return _full_size(maps.scores, maps.stride), {}
        return None, self.scores_and_losses(features, targets)[1]

    def scores_and_losses(
        self, features: Dict[str, torch.Tensor], targets: torch.Tensor
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Scores (B, K, h, w) and all losses in training, for classes (B, H, W)."""
        maps = self.predict(features)
        return maps.scores, self.map_losses(maps, targets)

    def layers(self, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        """Scores (B, K, h, w)."""
        return self.predict(features).scores

    def losses(self, scores: torch.Tensor, targets: torch.Tensor) -> Dict[str, torch.Tensor]:
        """The weighted cross-entropy "loss_sem_seg" of what ``layers`` returns for classes (B, H, W)."""
        return self.map_losses(SemSegMaps(scores, None, self.common_stride), targets)

    def map_losses(self, maps: SemSegMaps, targets: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Weighted scalars "loss_sem_seg" and, with the pair loss, "loss_sem_seg_pair"."""
        height, width = targets.shape[-2:]
        scores = _full_size(maps.scores.float(), maps.stride)[..., :height, :width]
        cross_entropy = mean_cross_entropy(scores, targets, self.ignore_value)
        losses = {"loss_sem_seg": self.loss_weight * cross_entropy}
        if maps.embeddings is None:
            return losses
        if self.pair_loss is not None:
            return {**losses, **self.pair_loss(maps.embeddings, maps.stride, targets)}
        # Parameters take part all the same, as distributed training demands.
        losses["loss_sem_seg"] = losses["loss_sem_seg"] + maps.embeddings.sum() * 0.0
        return losses


def pixel_predictor(in_channels: int, out_channels: int) -> nn.Conv2d:
    """1x1 convolution whose results start about as large as its input: smaller ones take long to grow."""
    conv = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    nn.init.zeros_(conv.bias)
    return conv


def _full_size(scores: torch.Tensor, stride: int) -> torch.Tensor:
    """Scores (B, K, h, w) for each pixel, (B, K, h * stride, w * stride)."""
    if stride == 1:
        return scores
    return F.interpolate(scores, scale_factor=stride, mode="bilinear", align_corners=False)
