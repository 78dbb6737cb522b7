"""Losses of the boundary head: pair loss of two groups, balanced cross-entropy of the logistic stage."""

from typing import Dict, List, NamedTuple, Tuple

import torch
from detectron2.config import configurable
from torch import nn
from torch.nn import functional as F

from rpe_d2.ops.pair_loss import spherical_pair_loss

from .boundary_head import BOUNDARY, NO_BOUNDARY, BoundaryMaps, GroupCenters

CONSENSUS = ("weighted", "any", "minimum")


class BoundaryTarget(NamedTuple):
    """What annotators say of each pixel.

    Attributes:
        boundary: (H, W) float32, 0-1: weight of the pixel as a boundary.
        no_boundary: (H, W) float32, 0-1: weight of the pixel as none. Where both are 0 it is ignored.
    """

    boundary: torch.Tensor
    no_boundary: torch.Tensor

    def padded(self, size: Tuple[int, int]) -> "BoundaryTarget":
        """Of (H, W) at least the picture's; what lies outside the picture is ignored."""
        rows, columns = (side - own for side, own in zip(size, self.boundary.shape))
        return BoundaryTarget(*(F.pad(part, (0, columns, 0, rows)) for part in self))


def boundary_target(
    annotations: torch.Tensor, consensus: str, min_annotators: int
) -> BoundaryTarget:
    """Weighs annotators against each other.

    Args:
        annotations: (A, H, W) bool, what each of A annotators drew, at least one.
        consensus: "weighted": a pixel that a share t of them drew is boundary with the weight t and none with 1 - t, as
            if the annotator were drawn by lot; "any": boundary where anybody drew it, none elsewhere; "minimum":
            boundary where at least ``min_annotators`` drew it, none where nobody did, ignored where fewer did.
        min_annotators: of an image with fewer annotators, all of them.
    """
    count = annotations.float().sum(dim=0)
    if consensus == "weighted":
        boundary = count / len(annotations)
        return BoundaryTarget(boundary, 1 - boundary)
    needed = 1 if consensus == "any" else min(min_annotators, len(annotations))
    return BoundaryTarget((count >= needed).float(), (count == 0).float())


class BoundaryLoss(nn.Module):
    """Trains the head's levels alike; every loss is the mean over levels and images.

    The pair loss sees two groups, boundary and no boundary. In a picture one pixel of sixteen or fewer is boundary:
    so half of the sampled pixels are drawn from each group, and in the loss itself each group weighs the same, whatever
    the number of its pixels. The cross-entropy is balanced by weighing both kinds of a picture's pixels the same. Maps
    are read at pixels, between their cells: labels are exact at any stride.
    """

    @configurable
    def __init__(
        self,
        *,
        consensus: str,
        min_annotators: int,
        num_points: int,
        pair_loss_weight: float,
        logistic_loss_weight: float,
        margin: float,
        positive_weight: float,
        negative_weight: float,
    ):
        """
        Args:
            consensus, min_annotators: see :func:`boundary_target`.
            num_points: pixels per image in the pair loss.
            pair_loss_weight, logistic_loss_weight: factors of the losses; 0: none.
            margin, positive_weight, negative_weight: of the pair loss, see
                :func:`rpe_d2.ops.pair_loss.spherical_pair_loss`.
        """
        super().__init__()
        self.consensus = consensus
        self.min_annotators = min_annotators
        self.num_points = num_points
        self.pair_loss_weight = pair_loss_weight
        self.logistic_loss_weight = logistic_loss_weight
        self.pair_options = {
            "margin": margin,
            "positive_weight": positive_weight,
            "negative_weight": negative_weight,
        }

    @classmethod
    def from_config(cls, cfg):
        boundary = cfg.MODEL.BOUNDARY
        if boundary.CONSENSUS not in CONSENSUS:
            raise ValueError(
                f"MODEL.BOUNDARY.CONSENSUS is {boundary.CONSENSUS!r}; allowed: {', '.join(CONSENSUS)}"
            )
        if not boundary.PAIR_LOSS_WEIGHT and not boundary.LOGISTIC_LOSS_WEIGHT:
            raise ValueError(
                "MODEL.BOUNDARY.PAIR_LOSS_WEIGHT and MODEL.BOUNDARY.LOGISTIC_LOSS_WEIGHT are 0; "
                "allowed: at least one above 0"
            )
        return {
            "consensus": boundary.CONSENSUS,
            "min_annotators": boundary.MIN_ANNOTATORS,
            "num_points": boundary.TRAIN_POINTS,
            "pair_loss_weight": boundary.PAIR_LOSS_WEIGHT,
            "logistic_loss_weight": boundary.LOGISTIC_LOSS_WEIGHT,
            "margin": boundary.MARGIN,
            "positive_weight": boundary.POSITIVE_WEIGHT,
            "negative_weight": boundary.NEGATIVE_WEIGHT,
        }

    def target(self, annotations: torch.Tensor) -> BoundaryTarget:
        return boundary_target(annotations, self.consensus, self.min_annotators)

    def forward(
        self, maps: BoundaryMaps, targets: List[BoundaryTarget], centers: GroupCenters
    ) -> Dict[str, torch.Tensor]:
        """
        Args:
            maps: of a padded batch, at any stride.
            targets: one per image, of the image's own size.
            centers: follow the groups, where gradients are computed.

        Returns:
            Weighted scalars "loss_pair" and "loss_logistic", without those of weight 0.
        """
        size = tuple(side * maps.stride for side in maps.logits.shape[-2:])
        targets = [target.padded(size) for target in targets]
        losses = {}
        if self.pair_loss_weight:
            pairs = [
                self._pair_loss(maps, index, target, centers)
                for index, target in enumerate(targets)
            ]
            losses["loss_pair"] = self.pair_loss_weight * sum(pairs) / len(pairs)
        if self.logistic_loss_weight:
            logits = F.interpolate(maps.logits, size=size, mode="bilinear", align_corners=False)
            errors = [balanced_cross_entropy(*item) for item in zip(logits, targets)]
            losses["loss_logistic"] = self.logistic_loss_weight * sum(errors) / len(errors)
        else:
            # The logistic stage takes part all the same, as distributed training demands.
            losses["loss_pair"] = losses["loss_pair"] + maps.logits.sum() * 0.0
        return losses

    def _pair_loss(
        self, maps: BoundaryMaps, index: int, target: BoundaryTarget, centers: GroupCenters
    ) -> torch.Tensor:
        points, labels = sample_groups(target, self.num_points)
        embeddings = _embeddings_at(maps, index, points, target.boundary.shape)  # (L, P, D)
        if self.training and torch.is_grad_enabled():
            centers.update(embeddings, labels)
        losses = [spherical_pair_loss(level, labels, **self.pair_options) for level in embeddings]
        return sum(losses) / len(losses)


def balanced_cross_entropy(logits: torch.Tensor, target: BoundaryTarget) -> torch.Tensor:
    """Cross-entropy in which boundary and no boundary weigh a half each (Xie & Tu, ICCV 2015, equation 2).

    Args:
        logits: (L, H, W).
        target: of (H, W).

    Returns:
        Scalar, the mean over the L levels. A kind that is not there is left out.
    """
    terms = [
        (F.softplus(sign * logits) * weight).sum(dim=(1, 2)).mean() / weight.sum()
        for sign, weight in ((-1, target.boundary), (1, target.no_boundary))
        if bool(weight.any())
    ]
    return sum(terms) / len(terms) if terms else logits.sum() * 0.0


def sample_groups(target: BoundaryTarget, num_points: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """Draws pixels by their weights, without replacement, as many of each group as there are, up to half of all.

    Returns:
        (P,) int64 indices into the flattened map and (P,) int64 BOUNDARY or NO_BOUNDARY, P <= ``num_points``. A pixel
        that has both weights may be drawn twice, once in each group.
    """
    boundary = _draw(target.boundary.flatten(), num_points // 2)
    others = _draw(target.no_boundary.flatten(), num_points - len(boundary))
    labels = torch.full((len(boundary) + len(others),), NO_BOUNDARY, device=others.device)
    labels[: len(boundary)] = BOUNDARY
    return torch.cat([boundary, others]), labels


def _draw(weights: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of at most ``count`` of the positive weights; torch.multinomial ends at 2^24 of them."""
    candidates = torch.nonzero(weights).squeeze(1)
    if len(candidates) <= count:
        return candidates
    # The first of exponential clocks with these rates (Efraimidis & Spirakis, 2006).
    times = torch.empty_like(weights[candidates]).exponential_() / weights[candidates]
    return candidates[times.topk(count, largest=False).indices]


def _embeddings_at(maps: BoundaryMaps, index: int, points: torch.Tensor, size) -> torch.Tensor:
    """(L, P, D) unit vectors of one image at pixels, by bilinear interpolation."""
    height, width = size
    pixels = torch.stack([points % width, points // width], dim=-1) + 0.5  # (P, 2) x, y
    grid = 2 * pixels / pixels.new_tensor([width, height]) - 1
    levels = maps.embeddings[index]  # (L, D, h, w)
    sampled = F.grid_sample(
        levels.flatten(0, 1)[None],
        grid[None, None].to(levels),
        padding_mode="border",
        align_corners=False,
    )
    sampled = sampled[0, :, 0].unflatten(0, levels.shape[:2])  # (L, D, P)
    return F.normalize(sampled.transpose(1, 2), dim=-1)
