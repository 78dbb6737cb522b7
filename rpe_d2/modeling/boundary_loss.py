"""Losses for contour detection: two-group pair loss and class-balanced cross-entropy."""

from typing import Dict, List, NamedTuple, Tuple

import torch
from detectron2.config import CfgNode, configurable
from torch import nn
from torch.nn import functional as F

from rpe_d2.ops.pair_loss import spherical_pair_loss

from .argument_checks import check_choice, check_range
from .boundary_head import BOUNDARY, NON_BOUNDARY, BoundaryMaps, GroupCenters
from .layers import zero_loss

CONSENSUS = ("weighted", "any", "minimum")


class BoundaryTarget(NamedTuple):
    """Training target of one image. Pixels for which both weights are 0 are ignored.

    Attributes:
        boundary: (H, W) float32 weight of each pixel as a boundary pixel, in 0-1.
        non_boundary: (H, W) float32 weight of each pixel as a non-boundary pixel, in 0-1.
    """

    boundary: torch.Tensor
    non_boundary: torch.Tensor

    def padded(self, size: Tuple[int, int]) -> "BoundaryTarget":
        """Pads the target on the right and at the bottom with ignored pixels."""
        rows, columns = (
            side - unpadded_side for side, unpadded_side in zip(size, self.boundary.shape)
        )
        return BoundaryTarget(*(F.pad(weight, (0, columns, 0, rows)) for weight in self))


def boundary_target(
    annotations: torch.Tensor, consensus: str, min_annotators: int
) -> BoundaryTarget:
    """Combines the contours of several annotators into one target.

    Args:
        annotations: (A, H, W) bool contours of A annotators, A >= 1.
        consensus: how annotators are combined. "weighted": a pixel that a share t of the annotators
            marked has the weight t as boundary and 1 - t as non-boundary. "any": a pixel is
            boundary if any annotator marked it. "minimum": a pixel is boundary if at least
            ``min_annotators`` marked it, and ignored if fewer did.
        min_annotators: for "minimum"; all annotators if there are fewer.
    """
    count = annotations.float().sum(dim=0)
    if consensus == "weighted":
        boundary = count / len(annotations)
        return BoundaryTarget(boundary, 1 - boundary)
    needed = 1 if consensus == "any" else min(min_annotators, len(annotations))
    return BoundaryTarget((count >= needed).float(), (count == 0).float())


class BoundaryLoss(nn.Module):
    """The losses of a :class:`BoundaryHead`, averaged over levels and images.

    The pair loss separates two groups, boundary and non-boundary pixels. Typically no more than one
    pixel in sixteen is a boundary pixel, so half of the sampled pixels are drawn from each group,
    and both groups have the same total weight in the loss. The cross-entropy of the logistic stage
    also gives both groups the same weight. Maps are interpolated at the pixels, so the labels are
    exact at any stride.
    """

    @configurable
    def __init__(
        self,
        *,
        consensus: str = "weighted",
        min_annotators: int = 3,
        num_points: int = 1024,
        pair_loss_weight: float = 1.0,
        logistic_loss_weight: float = 1.0,
        margin: float = 0.5,
        positive_weight: float = 1.0,
        negative_weight: float = 1.0,
    ):
        """
        Args:
            consensus, min_annotators: see :func:`boundary_target`.
            num_points: pixels per image in the pair loss.
            pair_loss_weight, logistic_loss_weight: weights of the two losses; 0 disables a loss.
            margin, positive_weight, negative_weight: see
                :func:`rpe_d2.ops.pair_loss.spherical_pair_loss`.
        """
        super().__init__()
        check_choice("consensus", consensus, CONSENSUS)
        check_range("min_annotators", min_annotators, 1)
        check_range("num_points", num_points, 2)
        check_range("pair_loss_weight", pair_loss_weight, 0)
        check_range("logistic_loss_weight", logistic_loss_weight, 0)
        check_range("margin", margin, 0, 1)
        check_range("positive_weight", positive_weight, 0)
        check_range("negative_weight", negative_weight, 0)
        if not pair_loss_weight and not logistic_loss_weight:
            raise ValueError(
                "pair_loss_weight and logistic_loss_weight are 0; allowed: at least one above 0"
            )
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
    def from_config(cls, cfg: CfgNode):
        boundary = cfg.MODEL.BOUNDARY
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
        """Makes the target of one image from contours (A, H, W) bool of A annotators."""
        return boundary_target(annotations, self.consensus, self.min_annotators)

    def forward(
        self, maps: BoundaryMaps, targets: List[BoundaryTarget], centers: GroupCenters
    ) -> Dict[str, torch.Tensor]:
        """
        Args:
            maps: predictions for a padded batch, at any stride.
            targets: one per image, of the unpadded size of the image.
            centers: running means, updated in training where gradients are enabled.

        Returns:
            Weighted scalars "loss_pair" and "loss_logistic", except those of weight 0.
        """
        size = tuple(side * maps.stride for side in maps.logits.shape[-2:])
        targets = [target.padded(size) for target in targets]
        losses = {}
        if self.pair_loss_weight:
            pair_losses = [
                self._pair_loss(maps, index, target, centers)
                for index, target in enumerate(targets)
            ]
            losses["loss_pair"] = self.pair_loss_weight * sum(pair_losses) / len(pair_losses)
        if self.logistic_loss_weight:
            logits = F.interpolate(maps.logits, size=size, mode="bilinear", align_corners=False)
            errors = [balanced_cross_entropy(*item) for item in zip(logits, targets)]
            losses["loss_logistic"] = self.logistic_loss_weight * sum(errors) / len(errors)
        else:
            losses["loss_pair"] = losses["loss_pair"] + zero_loss(maps.logits)
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
    """Computes the class-balanced cross-entropy (Xie & Tu, ICCV 2015, equation 2).

    Boundary and non-boundary pixels have a total weight of one half each. A group without pixels is
    left out.

    Args:
        logits: (L, H, W) boundary logits.
        target: weights of (H, W).

    Returns:
        Scalar, the mean over the L levels.
    """
    terms = [
        (F.softplus(sign * logits) * weight).sum(dim=(1, 2)).mean() / weight.sum()
        for sign, weight in ((-1, target.boundary), (1, target.non_boundary))
        if bool(weight.any())
    ]
    return sum(terms) / len(terms) if terms else zero_loss(logits)


def sample_groups(target: BoundaryTarget, num_points: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """Samples pixels by their weights, without replacement within a group.

    At most half of the pixels are boundary pixels.

    Returns:
        (P,) int64 indices into the flattened map and (P,) int64 labels BOUNDARY or NON_BOUNDARY,
        P <= ``num_points``. A pixel for which both weights are positive can be drawn once in each
        group.
    """
    boundary = _sample(target.boundary.flatten(), num_points // 2)
    others = _sample(target.non_boundary.flatten(), num_points - len(boundary))
    labels = torch.full((len(boundary) + len(others),), NON_BOUNDARY, device=others.device)
    labels[: len(boundary)] = BOUNDARY
    return torch.cat([boundary, others]), labels


def _sample(weights: torch.Tensor, count: int) -> torch.Tensor:
    """Samples at most ``count`` indices of positive weights.

    ``torch.multinomial`` is limited to 2^24 weights.
    """
    candidates = torch.nonzero(weights).squeeze(1)
    if len(candidates) <= count:
        return candidates
    # The smallest of exponential variables with these rates (Efraimidis & Spirakis, 2006).
    times = torch.empty_like(weights[candidates]).exponential_() / weights[candidates]
    return candidates[times.topk(count, largest=False).indices]


def _embeddings_at(
    maps: BoundaryMaps, index: int, points: torch.Tensor, size: Tuple[int, int]
) -> torch.Tensor:
    """Interpolates the embeddings of one image at pixels.

    Args:
        maps: predictions for a batch.
        index: index of the image.
        points: (P,) int64 indices into the flattened image.
        size: (H, W) of the padded image.

    Returns:
        (L, P, D) unit vectors.
    """
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
