"""Losses on labels per pixel, and their parts, that several components share."""

from typing import Any, Dict, Optional

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn import functional as F

from rpe_d2.config import check_config
from rpe_d2.ops.pair_loss import FORMS, NORMALIZATIONS, spherical_pair_loss

from .labels import pad_points, sample_pixels


def mean_cross_entropy(logits: torch.Tensor, target: torch.Tensor, ignored: int) -> torch.Tensor:
    """Cross-entropy of pixels, averaged in every image, then over the images.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) int64 classes.
        ignored: label of pixels that do not count.

    Returns:
        Scalar; a zero that backpropagates for images in which no pixel counts.
    """
    error = F.cross_entropy(logits, target, ignore_index=ignored, reduction="none")
    counts = (target != ignored).sum(dim=(1, 2)).clamp(min=1)
    return (error.sum(dim=(1, 2)) / counts).mean()


def read_maps(maps: torch.Tensor, stride: int, pixels: torch.Tensor) -> torch.Tensor:
    """Values at given positions, by bilinear interpolation.

    Args:
        maps: (B, C, h, w).
        stride: pixels per cell.
        pixels: (B, P, 2) x, y in continuous pixel coordinates.

    Returns:
        (B, P, C).
    """
    height, width = (side * stride for side in maps.shape[-2:])
    grid = 2 * pixels / pixels.new_tensor([width, height]) - 1
    sampled = F.grid_sample(
        maps, grid.unsqueeze(2).to(maps), padding_mode="border", align_corners=False
    )
    return sampled.squeeze(3).transpose(1, 2)


def pair_loss_options(cfg: CfgNode) -> Dict[str, Any]:
    """Arguments of :func:`rpe_d2.ops.pair_loss.spherical_pair_loss` from ``MODEL.RPE``, all but the radius."""
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
    """The pair loss in which the pixels of an image with the same semantic label are a group (Kong & Fowlkes, sec. 6).

    Pixels are sampled from the full-resolution labels, as evenly over the classes as their areas allow, and
    embeddings are read there by bilinear interpolation. Without parameters: the head has the branch that embeds.
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
            embedding_dim: D.
            num_points: pixels sampled per image.
            ignore_value: label of pixels that take no part.
            loss_weight: factor.
            pair_options: of :func:`rpe_d2.ops.pair_loss.spherical_pair_loss`.
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
        """
        Args:
            embeddings: (B, D, h, w), of any length.
            stride: pixels per cell.
            targets: (B, H, W) int64 classes, H and W at most h * stride and w * stride.

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


def build_semantic_pair_loss(cfg: CfgNode, usual_weight: float) -> Optional[SemanticPairLoss]:
    """What ``MODEL.SEM_SEG_HEAD.PAIR_LOSS_WEIGHT`` asks for; None where that is 0.

    Args:
        usual_weight: of the head, where the key leaves it to that.
    """
    check_config(cfg, "MODEL.RPE", "MODEL.SEM_SEG_HEAD")
    rpe, head = cfg.MODEL.RPE, cfg.MODEL.SEM_SEG_HEAD
    weight = usual_weight if head.PAIR_LOSS_WEIGHT < 0 else head.PAIR_LOSS_WEIGHT
    if weight == 0:
        return None
    return SemanticPairLoss(
        embedding_dim=rpe.EMBEDDING_DIM,
        num_points=rpe.TRAIN_POINTS,
        ignore_value=head.IGNORE_VALUE,
        loss_weight=weight,
        **pair_loss_options(cfg),
    )
