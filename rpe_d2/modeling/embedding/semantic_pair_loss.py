"""The pair loss on semantic labels, for semantic heads."""

from typing import Any, Dict, Optional

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn import functional as F

from rpe_d2.config import check_config
from rpe_d2.ops.pair_loss import spherical_pair_loss

from ..argument_checks import check_range
from .labels import pad_points, sample_pixels
from .loss import pair_loss_options, read_maps
from .methods import check_spherical


class SemanticPairLoss(nn.Module):
    """Pair loss in which pixels of an image with the same class form a group.

    See Kong & Fowlkes (CVPR 2018), section 6. Pixels are sampled from the full-resolution labels,
    stratified by class. Embeddings are read at these pixels by bilinear interpolation. The loss has
    no parameters, because the head predicts the embeddings.
    """

    def __init__(
        self,
        *,
        embedding_dim: int,
        num_points: int,
        ignore_value: int,
        loss_weight: float,
        **pair_options: Any,
    ):
        """
        Args:
            embedding_dim: D, dimension of the embeddings.
            num_points: number of pixels that are sampled per image.
            ignore_value: label of pixels that are left out.
            loss_weight: weight of the loss.
            pair_options: arguments of :func:`rpe_d2.ops.pair_loss.spherical_pair_loss`.
        """
        super().__init__()
        check_range("embedding_dim", embedding_dim, 1)
        check_range("num_points", num_points, 1)
        check_range("loss_weight", loss_weight, 0)
        self.embedding_dim = embedding_dim
        self.num_points = num_points
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.pair_options = pair_options

    def forward(
        self, embeddings: torch.Tensor, stride: int, targets: torch.Tensor
    ) -> Dict[str, torch.Tensor]:
        """Computes the loss of a batch.

        Args:
            embeddings: (B, D, h, w) vectors of any length.
            stride: pixels per cell.
            targets: (B, H, W) int64 classes. H is at most h * stride and W at most w * stride.

        Returns:
            The weighted scalar "loss_sem_seg_pair", the mean of the images' losses.
        """
        groups = targets.masked_fill(targets == self.ignore_value, -1)
        points = [sample_pixels(group, self.num_points) for group in groups]
        index = pad_points(points)  # (B, P)
        width = targets.shape[2]
        pixels = torch.stack([index % width, index // width], dim=-1) + 0.5  # x, y
        vectors = read_maps(F.normalize(embeddings.float(), dim=1), stride, pixels)  # (B, P, D)
        losses = [
            spherical_pair_loss(x[: len(p)], group.flatten()[p], **self.pair_options)
            for x, group, p in zip(vectors, groups, points)
        ]
        return {"loss_sem_seg_pair": self.loss_weight * sum(losses) / len(losses)}


def build_semantic_pair_loss(cfg: CfgNode, default_weight: float) -> Optional[SemanticPairLoss]:
    """Builds the loss of ``MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT``, or returns None if that is 0.

    Args:
        default_weight: the head's own weight, which is used if the key is negative.
    """
    check_config(cfg, "MODEL.RPE", "MODEL.SEM_SEG_HEAD")
    check_spherical(cfg, f"MODEL.SEM_SEG_HEAD.NAME {cfg.MODEL.SEM_SEG_HEAD.NAME}")
    rpe, head = cfg.MODEL.RPE, cfg.MODEL.SEM_SEG_HEAD
    weight = default_weight if head.PAIR_LOSS_WEIGHT < 0 else head.PAIR_LOSS_WEIGHT
    if weight == 0:
        return None
    return SemanticPairLoss(
        embedding_dim=rpe.EMBEDDING_DIM,
        num_points=rpe.TRAIN_POINTS,
        ignore_value=head.IGNORE_VALUE,
        loss_weight=weight,
        **pair_loss_options(cfg),
    )
