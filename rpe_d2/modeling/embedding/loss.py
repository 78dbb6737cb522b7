"""Losses of the embedding head: pair loss and votes at every loop, cross-entropy on the classes."""

from typing import Dict, List, Tuple

import torch
from detectron2.config import configurable
from torch import nn
from torch.nn import functional as F

from rpe_d2.ops.pair_loss import spherical_pair_loss

from .head import EmbeddingMaps, cell_centers
from .labels import BACKGROUND, IGNORED, PixelLabels, pad_points, sample_pixels
from .mean_shift_layer import MeanShiftLayer
from .pixel_losses import mean_cross_entropy, pair_loss_options, read_maps


class EmbeddingLoss(nn.Module):
    """Trains embeddings through the mean-shift loops (Kong & Fowlkes, CVPR 2018, sections 3-4).

    Pixels are sampled from the full-resolution labels, as evenly over the instances as possible; maps are read there
    by bilinear interpolation, so labels are exact at any output stride. Every loss is the mean of its images' losses:
    gradients do not depend on how a batch is spread over processes or accumulation steps.
    """

    @configurable
    def __init__(
        self,
        *,
        margin: float,
        form: str,
        normalization: str,
        positive_weight: float,
        negative_weight: float,
        negative_radius: float,
        num_points: int,
        background_is_group: bool,
        use_votes: bool,
        sem_seg_stride: int,
        loss_weights: Dict[str, float],
    ):
        """
        Args:
            margin, form, normalization, positive_weight, negative_weight: of the pair loss, see
                :func:`rpe_d2.ops.pair_loss.spherical_pair_loss`.
            negative_radius: in pixels; 0: all instances repel each other.
            num_points: pixels sampled per image.
            background_is_group: background is one more group of the pair loss; else it takes no part.
            use_votes: the maps hold votes to be trained.
            sem_seg_stride: class scores are upsampled to this stride before the cross-entropy.
            loss_weights: factors of "loss_pair", "loss_vote", "loss_size", "loss_sem_seg".
        """
        super().__init__()
        self.pair_options = {
            "margin": margin,
            "form": form,
            "normalization": normalization,
            "positive_weight": positive_weight,
            "negative_weight": negative_weight,
            "negative_radius": negative_radius or None,
        }
        self.num_points = num_points
        self.background_is_group = background_is_group
        self.use_votes = use_votes
        self.sem_seg_stride = sem_seg_stride
        self.loss_weights = loss_weights

    @classmethod
    def from_config(cls, cfg):
        rpe = cfg.MODEL.RPE
        if rpe.BACKGROUND not in ("exclude", "group"):
            raise ValueError(f"MODEL.RPE.BACKGROUND is {rpe.BACKGROUND!r}; allowed: exclude, group")
        divisors = [d for d in range(1, rpe.STRIDE + 1) if rpe.STRIDE % d == 0]
        if rpe.SEM_SEG_LOSS_STRIDE not in divisors:
            raise ValueError(
                f"MODEL.RPE.SEM_SEG_LOSS_STRIDE is {rpe.SEM_SEG_LOSS_STRIDE}; allowed with "
                f"MODEL.RPE.STRIDE {rpe.STRIDE}: {', '.join(map(str, divisors))}"
            )
        return {
            **pair_loss_options(cfg),
            "negative_radius": rpe.NEGATIVE_RADIUS,
            "num_points": rpe.TRAIN_POINTS,
            "background_is_group": rpe.BACKGROUND == "group",
            "use_votes": rpe.VOTES,
            "sem_seg_stride": rpe.SEM_SEG_LOSS_STRIDE,
            "loss_weights": {
                "loss_pair": rpe.PAIR_LOSS_WEIGHT,
                "loss_vote": rpe.VOTE_LOSS_WEIGHT,
                "loss_size": rpe.VOTE_LOSS_WEIGHT,
                "loss_sem_seg": rpe.SEM_SEG_LOSS_WEIGHT,
            },
        }

    def forward(
        self, maps: EmbeddingMaps, labels: List[PixelLabels], shift: MeanShiftLayer
    ) -> Dict[str, torch.Tensor]:
        """
        Args:
            maps: of a padded batch.
            labels: one per image, of the padded size.
            shift: the layer whose loops are trained.

        Returns:
            Weighted scalars "loss_sem_seg", "loss_pair" and, with votes, "loss_vote" and, with sizes, "loss_size".
        """
        losses = {"loss_sem_seg": self._sem_seg_loss(maps, labels)}
        if not (self.loss_weights["loss_pair"] or self.loss_weights["loss_vote"]):
            # Nothing to shift; parameters take part all the same, as distributed training demands.
            unused = maps.embeddings.sum() + maps.votes.sum() + maps.sizes.sum()
            losses["loss_pair"] = (unused + sum(p.sum() for p in shift.parameters())) * 0.0
            return self._weighted(losses)
        points = [sample_pixels(self._groups(label), self.num_points) for label in labels]
        groups = pad_points([self._groups(lab).flatten()[p] for lab, p in zip(labels, points)])
        mask = pad_points([torch.ones_like(p, dtype=torch.bool) for p in points])
        width = labels[0].instances.shape[1]
        index = pad_points(points)
        pixels = torch.stack([index % width, index // width], dim=-1) + 0.5  # (B, P, 2) x, y
        x, votes, sizes = sample_maps(maps, pixels)

        steps = shift.trajectory(x, votes, sizes, mask)
        losses["loss_pair"] = _mean(
            [self._pair_loss(step_x, groups, pixels, mask) for step_x, _ in steps]
        )
        if self.use_votes:
            centers = pad_points(
                [_of_instances(lab.centers, lab, p) for lab, p in zip(labels, points)]
            )
            voting = mask & (
                groups < pad_points([lab.classes.new_tensor([len(lab.classes)]) for lab in labels])
            )
            true_sizes = pad_points(
                [_of_instances(lab.sizes, lab, p) for lab, p in zip(labels, points)]
            ).clamp(min=1)
            unit = torch.as_tensor(shift.sigma(true_sizes), device=votes.device)
            unit = unit.expand_as(true_sizes).unsqueeze(-1)  # (B, P, 1)
            losses["loss_vote"] = _mean(
                [_mean_over_instances(v / unit, centers / unit, groups, voting) for _, v in steps]
            )
            if shift.relative_bandwidth:
                logarithms = sizes.log().unsqueeze(-1), true_sizes.log().unsqueeze(-1)
                losses["loss_size"] = _mean_over_instances(*logarithms, groups, voting)
        return self._weighted(losses)

    def _weighted(self, losses: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        return {name: loss * self.loss_weights[name] for name, loss in losses.items()}

    def _groups(self, labels: PixelLabels) -> torch.Tensor:
        """(H, W) group of each pixel, negative where it takes no part."""
        if not self.background_is_group:
            return labels.instances
        return labels.instances.masked_fill(labels.instances == BACKGROUND, len(labels.classes))

    def _sem_seg_loss(self, maps: EmbeddingMaps, labels: List[PixelLabels]) -> torch.Tensor:
        stride = self.sem_seg_stride
        background = maps.logits.shape[1] - 1
        target = torch.stack([label.class_map(background, IGNORED) for label in labels])
        target = target[:, stride // 2 :: stride, stride // 2 :: stride]
        size = [side * maps.stride // stride for side in maps.logits.shape[-2:]]
        logits = F.interpolate(maps.logits, size=size, mode="bilinear", align_corners=False)
        target = F.pad(
            target, (0, size[1] - target.shape[2], 0, size[0] - target.shape[1]), value=IGNORED
        )
        return mean_cross_entropy(logits, target, IGNORED)

    def _pair_loss(self, x, groups, pixels, mask) -> torch.Tensor:
        return _mean(
            [
                spherical_pair_loss(
                    x[i][mask[i]],
                    groups[i][mask[i]],
                    positions=pixels[i][mask[i]],
                    **self.pair_options,
                )
                for i in range(len(x))
            ]
        )


def _of_instances(values: torch.Tensor, labels: PixelLabels, points: torch.Tensor) -> torch.Tensor:
    """(P, …) value of each point's instance, from (n, …) values; background points get any."""
    if len(values) == 0:
        return values.new_zeros(len(points), *values.shape[1:])
    return values[labels.instances.flatten()[points].clamp(min=0)]


def _mean_over_instances(
    predicted: torch.Tensor, target: torch.Tensor, groups: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """Smooth L1 distance of (B, P, C) values; every image weighs the same, and in it every instance.

    Args:
        groups: (B, P) instance of each point in its image.
        counts: (B, P) bool, which points take part.
    """
    if not counts.any():
        return predicted.sum() * 0.0
    error = F.smooth_l1_loss(predicted, target, reduction="none").sum(dim=-1)
    # One number per instance of the batch, ascending with the image.
    image = torch.arange(len(groups), device=groups.device)[:, None].expand_as(groups)
    instance = (groups + image * (groups.max() + 1))[counts]
    _, index, points = torch.unique(instance, return_inverse=True, return_counts=True)
    image = image[counts]
    instances = error.new_zeros(len(groups)).index_add_(0, image, (1.0 / points[index]).to(error))
    return (error[counts] / (points[index] * instances[image])).sum() / len(groups)


def sample_maps(
    maps: EmbeddingMaps, pixels: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, votes and sizes at given positions, by bilinear interpolation.

    Args:
        maps: of a batch.
        pixels: (B, P, 2) x, y in continuous pixel coordinates.

    Returns:
        unit vectors (B, P, D), votes (B, P, 2) and sizes (B, P) in pixels.
    """
    # Offsets interpolate where positions would be clamped at the border.
    offsets = maps.votes - cell_centers(maps.votes.shape[-2:], maps.stride, maps.votes.device)
    stacked = torch.cat([maps.embeddings, offsets, maps.sizes], dim=1)
    sampled = read_maps(stacked, maps.stride, pixels)  # (B, P, D + 3)
    x, offsets, sizes = sampled.split([maps.embeddings.shape[1], 2, 1], dim=-1)
    return F.normalize(x, dim=-1), pixels + offsets, sizes.squeeze(-1)


def _mean(losses: List[torch.Tensor]) -> torch.Tensor:
    return sum(losses) / len(losses)
