"""Losses on pixels, and their parts, that instance and semantic heads share."""

from typing import Any, Dict, Optional

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn import functional as F

from rpe_d2.config import check_config
from rpe_d2.ops.pair_loss import FORMS, NORMALIZATIONS, spherical_pair_loss

from .labels import pad_points, sample_pixels


def mean_cross_entropy(logits: torch.Tensor, target: torch.Tensor, ignored: int) -> torch.Tensor:
    """Averages the cross-entropy of pixels over each image and then over the images.

    Args:
        logits: (B, K, H, W) class logits.
        target: (B, H, W) int64 classes.
        ignored: label of pixels that are left out.

    Returns:
        A scalar. Images without labelled pixels contribute 0, and gradients still flow.
    """
    error = F.cross_entropy(logits, target, ignore_index=ignored, reduction="none")
    counts = (target != ignored).sum(dim=(1, 2)).clamp(min=1)
    return (error.sum(dim=(1, 2)) / counts).mean()


def read_maps(maps: torch.Tensor, stride: int, pixels: torch.Tensor) -> torch.Tensor:
    """Reads maps at given positions by bilinear interpolation.

    Args:
        maps: (B, C, h, w) maps.
        stride: pixels per cell.
        pixels: (B, P, 2) x, y in continuous pixel coordinates.

    Returns:
        (B, P, C) values.
    """
    height, width = (side * stride for side in maps.shape[-2:])
    grid = 2 * pixels / pixels.new_tensor([width, height]) - 1
    sampled = F.grid_sample(
        maps, grid.unsqueeze(2).to(maps), padding_mode="border", align_corners=False
    )
    return sampled.squeeze(3).transpose(1, 2)


def pair_loss_options(cfg: CfgNode) -> Dict[str, Any]:
    """Reads arguments of :func:`rpe_d2.ops.pair_loss.spherical_pair_loss` from ``MODEL.RPE``."""
    rpe = cfg.MODEL.RPE
    for key, allowed in (("PAIR_LOSS_FORM", FORMS), ("PAIR_LOSS_NORMALIZATION", NORMALIZATIONS)):
        if rpe[key] not in allowed:
            raise ValueError(f"MODEL.RPE.{key} is {rpe[key]!r}; allowed: {', '.join(allowed)}")
    return {
        "margin": rpe.MARGIN,
        "form": rpe.PAIR_LOSS_FORM,
        "normalization": rpe.PAIR_LOSS_NORMALIZATION,
        "positive_weight": rpe.POSITIVE_WEIGHT,
        "negative_weight": rpe.NEGATIVE_WEIGHT,
    }


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
    """Builds the loss of ``MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT``. It is None for a weight of 0.

    Args:
        default_weight: the head's own weight, which is used if the key is negative.
    """
    check_config(cfg, "MODEL.RPE", "MODEL.SEM_SEG_HEAD")
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
