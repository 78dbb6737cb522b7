"""From the maps of one image to groups of pixels with soft masks."""

import math
from typing import NamedTuple, Optional, Sequence, Union

import torch
from detectron2.config import configurable
from scipy.cluster.vq import kmeans2
from torch import nn
from torch.nn import functional as F

from rpe_d2.ops.clustering import cluster_embeddings, split_components

from .head import EmbeddingMaps
from .mean_shift_layer import MeanShiftLayer, squared_distances

GROUPINGS = ("mean_shift", "components", "kmeans")
# Pixels that are less likely foreground than this cannot bring a soft mask near its threshold.
_SOFT_FOREGROUND = 0.1


class PixelGroups(NamedTuple):
    """Groups of one image: of each scale in turn, the largest first.

    Attributes:
        soft_masks: (R, h, w) float32 in 0-1 on the grid of the maps: membership times foreground probability.
        class_probabilities: (R, K) float32: mean class probabilities of the group's pixels, summing over the K classes
            to how likely the pixels are foreground.
        agreement: (R,) float32 in 0-1: mean membership of the group's pixels before anything else is applied.
    """

    soft_masks: torch.Tensor
    class_probabilities: torch.Tensor
    agreement: torch.Tensor


class _Points(NamedTuple):
    """Pixels of one image that may be part of a group, P of them.

    Attributes:
        cells: (P,) int64 places on the flattened grid.
        weight: (P,) how likely they are foreground.
        grouped: (P,) bool: they are, as far as the threshold knows.
        x, votes, sizes: (P, D), (P, 2) and (P,), what the maps say there.
        keys: (M,) int64 points that define the density.
    """

    cells: torch.Tensor
    weight: torch.Tensor
    grouped: torch.Tensor
    x: torch.Tensor
    votes: torch.Tensor
    sizes: torch.Tensor
    keys: torch.Tensor


class PixelGrouping(nn.Module):
    """Shift, cluster, split, drop tiny groups, soft membership, class vote.

    The paper leaves the step from shifted embeddings to instances open; this one keeps its grouping (mean shift on
    the sphere) and adds what masks need: every foreground pixel belongs softly to the modes, and the membership
    times the foreground probability is what is upsampled and thresholded later.
    """

    @configurable
    def __init__(
        self,
        *,
        grouping: str,
        foreground_threshold: float,
        merge_cosine: float,
        merge_distance: float,
        split_into_components: bool,
        min_area: float,
        max_groups: int,
        scales: Sequence[float],
    ):
        """
        Args:
            grouping: "mean_shift", "components" (connected components of the class map, no embeddings) or "kmeans"
                (of embeddings and votes without shifting, with the true number of instances: an oracle to compare).
            foreground_threshold: probability from which on a pixel is grouped.
            merge_cosine, merge_distance: of :func:`rpe_d2.ops.clustering.cluster_embeddings` on shifted pixels;
                the distance is between shifted votes; 0: two spatial bandwidths.
            split_into_components: connected parts of a group become groups of their own.
            min_area: in pixels of the image.
            max_groups: the largest groups kept of each scale.
            scales: factors of the bandwidths and of the distance; the pixels are grouped anew with each. Groups of
                different scales overlap.
        """
        super().__init__()
        self.grouping = grouping
        self.foreground_threshold = foreground_threshold
        self.merge_cosine = merge_cosine
        self.merge_distance = merge_distance
        self.split_into_components = split_into_components
        self.min_area = min_area
        self.max_groups = max_groups
        self.scales = tuple(scales)

    @classmethod
    def from_config(cls, cfg):
        rpe = cfg.MODEL.RPE
        if rpe.GROUPING not in GROUPINGS:
            raise ValueError(
                f"MODEL.RPE.GROUPING is {rpe.GROUPING!r}; allowed: {', '.join(GROUPINGS)}"
            )
        return {
            "grouping": rpe.GROUPING,
            "foreground_threshold": rpe.FOREGROUND_THRESHOLD,
            "merge_cosine": rpe.MERGE_COSINE,
            "merge_distance": rpe.MERGE_DISTANCE,
            "split_into_components": rpe.SPLIT_COMPONENTS,
            "min_area": rpe.MIN_AREA,
            "max_groups": rpe.MAX_GROUPS,
            "scales": cfg.MODEL.MEAN_SHIFT.TEST_SCALES,
        }

    @torch.no_grad()
    def forward(
        self,
        maps: EmbeddingMaps,
        index: int,
        size: torch.Size,
        shift: MeanShiftLayer,
        num_instances: Optional[int] = None,
    ) -> PixelGroups:
        """
        Args:
            maps: of a batch.
            index: which image of it.
            size: (H, W) of that image without padding.
            shift: the layer that moves its pixels.
            num_instances: true number of instances, for "kmeans".

        Raises:
            ValueError: "kmeans" without it.
        """
        if self.grouping == "kmeans" and num_instances is None:
            raise ValueError(
                'MODEL.RPE.GROUPING "kmeans" needs the true number of instances; allowed: only in evaluations of '
                "annotated data"
            )
        probability = maps.logits[index].softmax(dim=0)  # (K + 1, h, w)
        rows, columns = (-(-side // maps.stride) for side in size)
        inside = torch.zeros_like(probability[0])
        inside[:rows, :columns] = 1
        if self.grouping == "components":
            soft_masks, agreement = self._components(probability, inside, maps.stride)
        else:
            foreground = (1 - probability[-1]) * inside
            points = self._points(maps, index, foreground, shift)
            groups = [
                self._modes(points, foreground, maps.stride, shift, scale, num_instances)
                for scale in self.scales
            ]
            soft_masks, agreement = (torch.cat(parts) for parts in zip(*groups))
        votes = soft_masks.flatten(1) @ probability[:-1].flatten(1).T  # (R, K)
        votes = votes / soft_masks.flatten(1).sum(dim=1, keepdim=True).clamp(min=1e-12)
        return PixelGroups(soft_masks, votes, agreement)

    def _points(
        self, maps: EmbeddingMaps, index: int, foreground: torch.Tensor, shift: MeanShiftLayer
    ) -> _Points:
        cells = torch.nonzero(foreground.flatten() > _SOFT_FOREGROUND).squeeze(1)
        weight = foreground.flatten()[cells]
        grouped = weight >= self.foreground_threshold
        x = maps.embeddings[index].flatten(1)[:, cells].T
        votes = maps.votes[index].flatten(1)[:, cells].T
        sizes = maps.sizes[index].flatten()[cells]
        keys = shift.choose_keys(x, votes, sizes, grouped)
        return _Points(cells, weight, grouped, x, votes, sizes, keys)

    def _modes(
        self,
        points: _Points,
        foreground: torch.Tensor,
        stride: int,
        shift: MeanShiftLayer,
        scale: float,
        num_instances: Optional[int],
    ):
        size = foreground.shape
        cells, weight, grouped, x, votes, sizes, keys = points
        if self.grouping == "kmeans":
            own = x[grouped], votes[grouped]
            modes = _centers(*own, self._kmeans(*own, sizes[grouped], shift, num_instances))
            belongs = torch.ones(len(x), len(modes[0]), dtype=torch.bool, device=x.device)
        else:
            x, votes = shift.settle(x, votes, sizes, keys, scale)
            # Fixed positions say where a pixel is, not what it belongs to: only votes enter.
            labels = cluster_embeddings(
                x[keys],
                self.merge_cosine,
                positions=votes[keys] if shift.shift_positions else None,
                max_distance=self._reach(shift, sizes[keys], scale),
            )
            modes = _centers(x[keys], votes[keys], labels)
            belongs = self._belongs(x, votes, sizes, *modes, shift, scale)
        affinity = shift.affinity(x, votes, sizes, *modes, scale)  # (N, R)
        num_modes = affinity.shape[1]
        owned = grouped & belongs.any(dim=1)
        if num_modes:
            owner = affinity.masked_fill(~belongs, -math.inf).argmax(dim=1)
            areas = torch.bincount(owner[owned], minlength=num_modes) * stride**2
        else:
            areas = foreground.new_zeros(0)
        largest = torch.argsort(areas, descending=True, stable=True)[: self.max_groups]
        largest = largest[areas[largest] >= self.min_area]
        num_groups = len(largest)
        if num_groups == 0:
            return foreground.new_zeros(0, *size), foreground.new_zeros(0)
        # Pixels that no mode accepts, as those of an object of which nothing is left, are nobody's.
        inside = belongs[:, largest].any(dim=1)
        membership = affinity[:, largest].softmax(dim=1) * inside[:, None]
        nearest = membership.argmax(dim=1)

        if not self.split_into_components:
            soft = _scatter(membership.T * weight, cells, size)
            best = membership.amax(dim=1, keepdim=True)
            return soft, _means(best[inside], nearest[inside], num_groups).squeeze(1)
        group_map = torch.full((size.numel(),), -1, dtype=torch.long, device=x.device)
        clear = grouped & inside
        group_map[cells[clear]] = nearest[clear]
        parts, group = self._large_parts(group_map.view(size), stride)
        soft = _scatter(membership.T[group] * weight, cells, size) * _dilate(parts)
        member = _scatter(membership.T[group], cells, size) * parts
        return soft, member.flatten(1).sum(dim=1) / parts.flatten(1).sum(dim=1)

    def _belongs(
        self,
        x: torch.Tensor,
        votes: torch.Tensor,
        sizes: torch.Tensor,
        modes: torch.Tensor,
        where: torch.Tensor,
        shift: MeanShiftLayer,
        scale: float,
    ) -> torch.Tensor:
        """(N, R) bool: points near enough to modes to be of their clusters."""
        near = x @ modes.T >= self.merge_cosine
        reach = self._reach(shift, sizes, scale)
        if reach is not None:
            reach = torch.as_tensor(reach, device=x.device).view(-1, 1)
            near &= squared_distances(votes, where) <= reach**2
        return near

    def _reach(
        self, shift: MeanShiftLayer, sizes: torch.Tensor, scale: float
    ) -> Union[None, float, torch.Tensor]:
        """How far, in pixels, a point may be from its mode."""
        if not shift.shift_positions:
            return None
        return self.merge_distance * scale if self.merge_distance else 2 * shift.sigma(sizes, scale)

    def _kmeans(
        self,
        x: torch.Tensor,
        votes: torch.Tensor,
        sizes: torch.Tensor,
        shift: MeanShiftLayer,
        num_instances: int,
    ) -> torch.Tensor:
        """(N,) labels, the largest group first, by k-means in the coordinates of the joint kernel."""
        if len(x) == 0 or num_instances == 0:
            return torch.zeros(len(x), dtype=torch.long, device=x.device)
        points = x / shift.bandwidth
        if shift.shift_positions:
            sigma = torch.as_tensor(shift.sigma(sizes), device=x.device)
            points = torch.cat([points, votes / sigma.view(-1, 1)], dim=1)
        count = min(num_instances, len(points))
        _, found = kmeans2(points.double().cpu().numpy(), count, minit="++", seed=0)
        labels = torch.as_tensor(found, dtype=torch.long, device=x.device)
        by_size = torch.bincount(labels, minlength=count).argsort(descending=True)
        return by_size.argsort()[labels]

    def _components(self, probability: torch.Tensor, inside: torch.Tensor, stride: int):
        class_map = probability.argmax(dim=0)
        background = len(probability) - 1
        class_map[(class_map == background) | (inside == 0)] = -1
        parts, classes = self._large_parts(class_map, stride)
        soft = probability[classes] * _dilate(parts) * inside
        return soft, soft.new_ones(len(soft))

    def _large_parts(self, group_map: torch.Tensor, stride: int):
        """Connected parts of a map of groups (negative: none): supports (R, h, w) 0 or 1 and their groups (R,)."""
        parts = split_components(group_map)
        number, sizes = torch.unique(parts[parts >= 0], return_counts=True)
        order = torch.argsort(sizes, descending=True, stable=True)[: self.max_groups]
        number = number[order][sizes[order] * stride**2 >= self.min_area]
        support = parts == number.view(-1, 1, 1)  # (R, h, w)
        first = support.flatten(1).to(torch.uint8).argmax(dim=1) if len(number) else number
        return support.float(), group_map.flatten()[first]


def _centers(x: torch.Tensor, votes: torch.Tensor, labels: torch.Tensor):
    """Mean directions (R, D) and mean positions (R, 2) of labelled points."""
    count = int(labels.max()) + 1 if len(labels) else 0
    return F.normalize(_means(x, labels, count), dim=1), _means(votes, labels, count)


def _means(values: torch.Tensor, labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    sums = values.new_zeros(num_labels, values.shape[1]).index_add_(0, labels, values)
    counts = torch.bincount(labels, minlength=num_labels).clamp(min=1)
    return sums / counts[:, None]


def _scatter(values: torch.Tensor, index: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """(R, N) values at flat positions -> (R, h, w), zero elsewhere."""
    maps = values.new_zeros(len(values), size.numel())
    maps[:, index] = values
    return maps.view(-1, *size)


def _dilate(masks: torch.Tensor) -> torch.Tensor:
    """Grows each mask by one cell, where its soft boundary fades out."""
    if len(masks) == 0:
        return masks
    return F.max_pool2d(masks.unsqueeze(1), 3, stride=1, padding=1).squeeze(1)
