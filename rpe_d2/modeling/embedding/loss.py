"""Losses on embeddings, votes, sizes and classes of instances."""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from torch import nn
from torch.nn import functional as F

from rpe_d2.ops.pair_loss import FORMS, NORMALIZATIONS, spherical_pair_loss

from ..argument_checks import check_choice, check_positive, check_range
from ..layers import zero_loss
from .head import EmbeddingMaps, cell_centers
from .labels import BACKGROUND, IGNORED, PixelLabels, pad_points
from .mean_shift_layer import MeanShiftLayer
from .pixel_samples import SAMPLERS, PixelSample, sample_groups

DEFAULT_WEIGHTS = {"loss_pair": 1.0, "loss_vote": 0.1, "loss_size": 0.1, "loss_sem_seg": 1.0}


class _Step(NamedTuple):
    """Sampled embeddings (B, P, D), votes (B, P, 2) and sizes (B, P) after some loops."""

    x: torch.Tensor
    votes: torch.Tensor
    sizes: torch.Tensor
    sample: PixelSample


class EmbeddingLoss(nn.Module):
    """Losses on sampled pixels before and after the mean-shift loops.

    See Kong & Fowlkes (CVPR 2018), sections 3 and 4. Pixels are sampled from the full-resolution
    labels. Maps are read at these pixels by bilinear interpolation, so that labels are exact at any
    output stride. The sampled pixels are shifted among themselves, or with
    ``MeanShiftLayer.train_keys`` the whole map is shifted and then sampled anew for every loss.
    Every loss is the mean of its images' losses. Gradients therefore do not depend on how a batch
    is divided into processes or accumulated steps.
    """

    @configurable
    def __init__(
        self,
        *,
        margin: float = 0.5,
        form: str = "linear",
        normalization: str = "per_term",
        positive_weight: float = 1.0,
        negative_weight: float = 1.0,
        negative_radius: float = 0.0,
        num_points: int = 1024,
        sampling: str = "instances",
        loop_weights: Sequence[float] = (),
        background_is_group: bool = False,
        use_votes: bool = True,
        sem_seg_stride: int = 1,
        loss_weights: Optional[Dict[str, float]] = None,
    ):
        """
        Args:
            margin, form, normalization, positive_weight, negative_weight: arguments of
                :func:`rpe_d2.ops.pair_loss.spherical_pair_loss`.
            negative_radius: distance in pixels up to which pixels of different instances repel each
                other. 0 means any distance.
            num_points: number of pixels that are sampled per image.
            sampling: "instances" samples the same number of pixels from each instance, "contact"
                takes half of them near other instances, and "uniform" samples all pixels with the
                same probability.
            loop_weights: weights of the losses before the first loop and after each, scaled to a
                sum of 1. Empty means equal weights.
            background_is_group: whether background is one more group of the pair loss. Otherwise it
                is ignored.
            use_votes: whether votes are trained.
            sem_seg_stride: stride to which class logits are upsampled before the cross-entropy.
            loss_weights: weights of "loss_pair", "loss_vote", "loss_size" and "loss_sem_seg", which
                override those of ``DEFAULT_WEIGHTS``.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__()
        check_range("margin", margin, 0, 1)
        check_choice("form", form, FORMS)
        check_choice("normalization", normalization, NORMALIZATIONS)
        check_range("positive_weight", positive_weight, 0)
        check_range("negative_weight", negative_weight, 0)
        check_range("negative_radius", negative_radius, 0)
        check_range("num_points", num_points, 1)
        check_choice("sampling", sampling, list(SAMPLERS))
        for weight in loop_weights:
            check_range("loop_weights", weight, 0)
        if loop_weights and not sum(loop_weights):
            raise ValueError(f"loop_weights is {loop_weights}; allowed: at least one above 0")
        check_positive("sem_seg_stride", sem_seg_stride)
        for name, weight in (loss_weights or {}).items():
            check_choice("loss_weights", name, list(DEFAULT_WEIGHTS))
            check_range(f"loss_weights[{name!r}]", weight, 0)
        self.pair_options = {
            "margin": margin,
            "form": form,
            "normalization": normalization,
            "positive_weight": positive_weight,
            "negative_weight": negative_weight,
            "negative_radius": negative_radius or None,
        }
        self.num_points = num_points
        self.sampler = SAMPLERS[sampling]
        self.loop_weights = tuple(loop_weights)
        self.background_is_group = background_is_group
        self.use_votes = use_votes
        self.sem_seg_stride = sem_seg_stride
        self.loss_weights = {**DEFAULT_WEIGHTS, **(loss_weights or {})}

    @classmethod
    def from_config(cls, cfg, *, stride: Optional[int] = None):
        """
        Args:
            stride: stride of the maps, which replaces ``MODEL.RPE.STRIDE``.
        """
        rpe = cfg.MODEL.RPE
        stride = stride or rpe.STRIDE
        check_choice("MODEL.RPE.BACKGROUND", rpe.BACKGROUND, ("exclude", "group"))
        loops = cfg.MODEL.MEAN_SHIFT.TRAIN_LOOPS
        if rpe.LOOP_WEIGHTS and len(rpe.LOOP_WEIGHTS) != loops + 1:
            raise ValueError(
                f"MODEL.RPE.LOOP_WEIGHTS is {list(rpe.LOOP_WEIGHTS)}; allowed with "
                f"MODEL.MEAN_SHIFT.TRAIN_LOOPS {loops}: no or {loops + 1} numbers"
            )
        check_sem_seg_stride(
            "MODEL.RPE.SEM_SEG_LOSS_STRIDE", rpe.SEM_SEG_LOSS_STRIDE, "MODEL.RPE.STRIDE", stride
        )
        return {
            **pair_loss_options(cfg),
            "negative_radius": rpe.NEGATIVE_RADIUS,
            "num_points": rpe.TRAIN_POINTS,
            "sampling": rpe.SAMPLING,
            "loop_weights": rpe.LOOP_WEIGHTS,
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
        """Computes the losses of a batch.

        Args:
            maps: predictions for a padded batch.
            labels: labels of each image in the padded size.
            shift: layer whose loops are trained.

        Returns:
            Weighted scalars "loss_sem_seg" and "loss_pair", also "loss_vote" with votes and
            "loss_size" with sizes.
        """
        losses = {"loss_sem_seg": class_map_loss(maps, labels, self.sem_seg_stride)}
        if not (self.loss_weights["loss_pair"] or self.loss_weights["loss_vote"]):
            losses["loss_pair"] = zero_loss(maps.embeddings, maps.votes, maps.sizes, shift)
            return self._weighted(losses)
        steps = (
            self._shifted_maps(maps, labels, shift)
            if shift.train_keys
            else self._shifted_samples(maps, labels, shift)
        )
        losses["loss_pair"] = self._over_loops([self._pair_loss(step) for step in steps])
        if self.use_votes:
            votes, sizes = zip(*(self._vote_losses(step, labels, shift) for step in steps))
            losses["loss_vote"] = self._over_loops(votes)
            if shift.relative_bandwidth:
                losses["loss_size"] = sizes[0]
        return self._weighted(losses)

    def _sample(self, labels: List[PixelLabels]) -> PixelSample:
        groups = [self._groups(label) for label in labels]
        return sample_groups(groups, self.sampler, self.num_points)

    def _shifted_samples(
        self, maps: EmbeddingMaps, labels: List[PixelLabels], shift: MeanShiftLayer
    ) -> List[_Step]:
        """Shifts sampled pixels among themselves."""
        sample = self._sample(labels)
        x, votes, sizes = sample_maps(maps, sample.pixels)
        steps = shift.trajectory(x, votes, sizes, sample.mask)
        return [_Step(step_x, step_votes, sizes, sample) for step_x, step_votes in steps]

    def _shifted_maps(
        self, maps: EmbeddingMaps, labels: List[PixelLabels], shift: MeanShiftLayer
    ) -> List[_Step]:
        """Shifts all labeled cells of the maps, and samples the maps after every loop."""
        images = []
        for index, label in enumerate(labels):
            groups = self._groups(label)[
                maps.stride // 2 :: maps.stride, maps.stride // 2 :: maps.stride
            ]
            cells = torch.nonzero(groups.flatten() >= 0).squeeze(1)
            parts = maps.embeddings[index], maps.votes[index]
            x, votes = (part.flatten(1)[:, cells].T for part in parts)
            steps = shift.cell_trajectory(x, votes, maps.sizes[index].flatten()[cells])
            images.append(
                [
                    tuple(
                        part.flatten(1).index_copy(1, cells, moved.T).view_as(part)
                        for part, moved in zip(parts, step)
                    )
                    for step in steps
                ]
            )
        shifted = []
        for step in zip(*images):
            embeddings, votes = (torch.stack(part) for part in zip(*step))
            sample = self._sample(labels)
            moved = sample_maps(maps._replace(embeddings=embeddings, votes=votes), sample.pixels)
            shifted.append(_Step(*moved, sample))
        return shifted

    def _over_loops(self, losses: Sequence[torch.Tensor]) -> torch.Tensor:
        weights = self.loop_weights or (1.0,) * len(losses)
        return sum(w * loss for w, loss in zip(weights, losses)) / sum(weights)

    def _vote_losses(
        self, step: _Step, labels: List[PixelLabels], shift: MeanShiftLayer
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        """Returns the losses of the votes and, where sizes are predicted, of the sizes."""
        points, groups, _, mask = step.sample
        centers = pad_points([_of_instances(lab.centers, lab, p) for lab, p in zip(labels, points)])
        counts = pad_points([lab.classes.new_tensor([len(lab.classes)]) for lab in labels])
        voting = mask & (groups < counts)
        target_sizes = pad_points(
            [_of_instances(lab.sizes, lab, p) for lab, p in zip(labels, points)]
        ).clamp(min=1)
        unit = torch.as_tensor(shift.sigma(target_sizes), device=step.votes.device)
        unit = unit.expand_as(target_sizes).unsqueeze(-1)  # (B, P, 1)
        votes = _mean_over_instances(step.votes / unit, centers / unit, groups, voting)
        if not shift.relative_bandwidth:
            return votes, None
        logarithms = step.sizes.log().unsqueeze(-1), target_sizes.log().unsqueeze(-1)
        return votes, _mean_over_instances(*logarithms, groups, voting)

    def _weighted(self, losses: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        return {name: loss * self.loss_weights[name] for name, loss in losses.items()}

    def _groups(self, labels: PixelLabels) -> torch.Tensor:
        """Returns (H, W) the group of each pixel, which is negative for ignored pixels."""
        if not self.background_is_group:
            return labels.instances
        return labels.instances.masked_fill(labels.instances == BACKGROUND, len(labels.classes))

    def _pair_loss(self, step: _Step) -> torch.Tensor:
        _, groups, pixels, mask = step.sample
        return _mean(
            [
                spherical_pair_loss(
                    step.x[i][mask[i]],
                    groups[i][mask[i]],
                    positions=pixels[i][mask[i]],
                    **self.pair_options,
                )
                for i in range(len(mask))
            ]
        )


def class_map_loss(maps: EmbeddingMaps, labels: List[PixelLabels], stride: int) -> torch.Tensor:
    """Computes the cross-entropy of the class logits, upsampled to a stride.

    Args:
        maps: predictions for a padded batch.
        labels: labels of each image in the padded size.
        stride: stride to which logits are upsampled, which divides that of the maps.
    """
    background = maps.logits.shape[1] - 1
    target = torch.stack([label.class_map(background, IGNORED) for label in labels])
    target = target[:, stride // 2 :: stride, stride // 2 :: stride]
    size = [side * maps.stride // stride for side in maps.logits.shape[-2:]]
    logits = F.interpolate(maps.logits, size=size, mode="bilinear", align_corners=False)
    target = F.pad(
        target, (0, size[1] - target.shape[2], 0, size[0] - target.shape[1]), value=IGNORED
    )
    return mean_cross_entropy(logits, target, IGNORED)


def check_sem_seg_stride(name: str, value: int, stride_name: str, stride: int) -> None:
    """Raises a ValueError that names the argument or key if the value does not divide a stride."""
    divisors = [d for d in range(1, stride + 1) if stride % d == 0]
    if value not in divisors:
        raise ValueError(
            f"{name} is {value}; allowed with {stride_name} {stride}: "
            f"{', '.join(map(str, divisors))}"
        )


def _of_instances(values: torch.Tensor, labels: PixelLabels, points: torch.Tensor) -> torch.Tensor:
    """Returns (P, …) the value of each point's instance, arbitrary for background points."""
    if len(values) == 0:
        return values.new_zeros(len(points), *values.shape[1:])
    return values[labels.instances.flatten()[points].clamp(min=0)]


def _mean_over_instances(
    pred: torch.Tensor, target: torch.Tensor, groups: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Computes the smooth L1 loss of values (B, P, C).

    All images have the same weight, and so have all instances of an image.

    Args:
        groups: (B, P) instance of each point in its image.
        valid: (B, P) bool, whether a point takes part.
    """
    if not valid.any():
        return zero_loss(pred)
    error = F.smooth_l1_loss(pred, target, reduction="none").sum(dim=-1)
    # Numbers the instances of the batch in ascending order of the images.
    image = torch.arange(len(groups), device=groups.device)[:, None].expand_as(groups)
    instance = (groups + image * (groups.max() + 1))[valid]
    _, index, points = torch.unique(instance, return_inverse=True, return_counts=True)
    image = image[valid]
    instances = error.new_zeros(len(groups)).index_add_(0, image, (1.0 / points[index]).to(error))
    return (error[valid] / (points[index] * instances[image])).sum() / len(groups)


def sample_maps(
    maps: EmbeddingMaps, pixels: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reads embeddings, votes and sizes at given positions by bilinear interpolation.

    Args:
        maps: predictions for a batch.
        pixels: (B, P, 2) x, y in continuous pixel coordinates.

    Returns:
        Unit vectors (B, P, D), votes (B, P, 2) and sizes (B, P) in pixels.
    """
    # Offsets are interpolated, because absolute positions would be clamped at the border.
    offsets = maps.votes - cell_centers(maps.votes.shape[-2:], maps.stride, maps.votes.device)
    stacked = torch.cat([maps.embeddings, offsets, maps.sizes], dim=1)
    sampled = read_maps(stacked, maps.stride, pixels)  # (B, P, D + 3)
    x, offsets, sizes = sampled.split([maps.embeddings.shape[1], 2, 1], dim=-1)
    return F.normalize(x, dim=-1), pixels + offsets, sizes.squeeze(-1)


def _mean(losses: List[torch.Tensor]) -> torch.Tensor:
    return sum(losses) / len(losses)


def mean_cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    ignored: int,
    class_weights: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Averages the cross-entropy of pixels over each image and then over the images.

    Args:
        logits: (B, K, H, W) class logits.
        target: (B, H, W) int64 classes.
        ignored: label of pixels that are left out.
        class_weights: (K,) factors of the pixels of each class; None for 1.

    Returns:
        A scalar. Images without labeled pixels contribute 0, and gradients still flow.
    """
    weights = None if class_weights is None else class_weights.to(logits)
    error = F.cross_entropy(logits, target, weights, ignore_index=ignored, reduction="none")
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
