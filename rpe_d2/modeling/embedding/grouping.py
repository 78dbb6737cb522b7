"""Grouping of the pixels of one image into soft masks."""

import math
from abc import ABC, abstractmethod
from typing import Iterator, Optional, Sequence, Tuple, Union

import torch
from detectron2.config import CfgNode
from torch.nn import functional as F

from rpe_d2.ops.clustering import cluster_embeddings, split_components

from ..argument_checks import check_choice, check_range
from .head import ImageMaps
from .image_points import ImagePoints, image_points
from .mean_shift_layer import MeanShiftLayer, squared_distances
from .pixel_groups import (
    ClassMaps,
    ComponentMasks,
    Components,
    JoinedMasks,
    Memberships,
    Modes,
    PixelGroups,
    SoftMasks,
)

FOREGROUNDS = ("classifier", "vote")
GROUPINGS = ("mean_shift", "components", "kmeans")
# Pixels that are less likely to be foreground cannot raise a soft mask near its threshold.
MIN_FOREGROUND = 0.1
# Affinities of points and modes are computed this many at a time (256 KB in float32, which fits
# into a cache).
_BLOCK_ELEMENTS = 1 << 16
# Points of a few rows of a large image, for which nearby modes are looked up together.
_POINTS_AT_ONCE = 1 << 13


class PixelGrouping(ABC):
    """Base class of the steps from the maps of one image to groups of its pixels.

    Groupings have no parameters. ``scales`` are the bandwidth factors at which pixels are grouped;
    groups of different scales overlap. ``shift`` is the layer that moves the pixels. If it is None,
    the model that contains both sets it. ``background_is_group`` is True if all pixels are grouped,
    so that some groups are background. ``ranks_by_agreement`` is True if the agreement of a group
    is a score of it.
    """

    background_is_group = False
    ranks_by_agreement = False
    scales: Tuple[float, ...] = (1.0,)
    shift: Optional[MeanShiftLayer] = None
    foreground_threshold: float = 0.5

    def __init__(self, *, min_area: float = 16, max_groups: int = 500):
        """
        Args:
            min_area: smallest area of a group in pixels of the image.
            max_groups: number of the largest groups that are kept at each scale.
        """
        check_range("min_area", min_area, 0)
        check_range("max_groups", max_groups, 1)
        self.min_area = min_area
        self.max_groups = max_groups

    @torch.no_grad()
    def __call__(self, maps: ImageMaps, num_instances: Optional[int] = None) -> PixelGroups:
        """Groups the pixels of an image.

        Args:
            maps: predictions for the image.
            num_instances: ground-truth number of instances, which :class:`KMeansGrouping` needs.
        """
        probability = maps.logits.softmax(dim=0)  # (K + 1, h, w)
        masks, agreement = self._soft_masks(maps, probability, num_instances)
        confidence = agreement if self.ranks_by_agreement else None
        return PixelGroups(masks, agreement, probability, confidence)

    @property
    def groups_overlap(self) -> bool:
        """Whether a pixel can be in several groups, which then compete by their scores."""
        return len(self.scales) > 1

    def foreground(self, maps: ImageMaps) -> torch.Tensor:
        """Returns the weights (h, w) in 0-1 of the cells in the groups, which are 0 in padding."""
        if self.background_is_group:
            return maps.valid
        return (1 - maps.logits.softmax(dim=0)[-1]) * maps.valid

    @abstractmethod
    def _soft_masks(
        self, maps: ImageMaps, probability: torch.Tensor, num_instances: Optional[int]
    ) -> Tuple[SoftMasks, torch.Tensor]:
        """Returns R soft masks and the agreement (R,) of the groups."""

    def _large_components(self, group_map: torch.Tensor, stride: int) -> Components:
        """Splits a map of groups, negative for none, into its large connected components."""
        parts = split_components(group_map)
        number, sizes = torch.unique(parts[parts >= 0], return_counts=True)
        order = torch.argsort(sizes, descending=True, stable=True)[: self.max_groups]
        return Components(
            parts, number[order][sizes[order] * stride**2 >= self.min_area], group_map
        )


class ComponentGrouping(PixelGrouping):
    """Grouping by connected components of the class map, a control without embeddings."""

    def _soft_masks(
        self, maps: ImageMaps, probability: torch.Tensor, num_instances: Optional[int]
    ) -> Tuple[SoftMasks, torch.Tensor]:
        class_map = probability.argmax(dim=0)
        background = len(probability) - 1
        class_map[(class_map == background) | (maps.valid == 0)] = -1
        components = self._large_components(class_map, maps.stride)
        masks = ComponentMasks(ClassMaps(probability, maps.valid), components)
        return masks, probability.new_ones(len(masks))


class MeanShiftGrouping(PixelGrouping):
    """Grouping by clustering the pixels that mean shift has moved.

    The paper does not specify how instances are obtained from the shifted embeddings. Here, shifted
    pixels are clustered around the modes of their density, tiny clusters are dropped, and every
    foreground pixel is a soft member of the modes near it.
    """

    def __init__(
        self,
        shift: Optional[MeanShiftLayer] = None,
        *,
        foreground: str = "classifier",
        foreground_threshold: float = 0.5,
        merge_cosine: float = 0.9,
        merge_distance: float = 0.0,
        split_into_components: bool = False,
        scales: Sequence[float] = (1.0,),
        min_area: float = 16,
        max_groups: int = 500,
    ):
        """
        Args:
            shift: layer that moves the pixels. If None, the model's layer is used.
            foreground: "classifier" groups the pixels that the class scores call foreground and
                multiplies masks by the foreground probability. "vote" groups all pixels, as the
                paper does, so that background forms groups as well.
            foreground_threshold: foreground probability at or above which a pixel is grouped. It is
                not used with "vote".
            merge_cosine: threshold of :func:`rpe_d2.ops.clustering.cluster_embeddings` for shifted
                embeddings.
            merge_distance: largest distance of shifted votes in a cluster, in pixels. 0 means
                two spatial bandwidths.
            split_into_components: whether every connected component of a group becomes a group.
            scales: factors of the bandwidths and of the distance. The pixels are grouped once with
                each factor.
            min_area: smallest area of a group in pixels of the image.
            max_groups: number of the largest groups that are kept at each scale.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(min_area=min_area, max_groups=max_groups)
        check_choice("foreground", foreground, FOREGROUNDS)
        check_range("foreground_threshold", foreground_threshold, 0, 1)
        check_range("merge_cosine", merge_cosine, -1, 1)
        check_range("merge_distance", merge_distance, 0)
        if not scales or not all(scale > 0 for scale in scales):
            raise ValueError(f"scales is {scales}; allowed: one or more factors above 0")
        self.shift = shift
        self.background_is_group = foreground == "vote"
        self.foreground_threshold = foreground_threshold
        self.merge_cosine = merge_cosine
        self.merge_distance = merge_distance
        self.split_into_components = split_into_components
        self.scales = tuple(scales)

    def _soft_masks(
        self, maps: ImageMaps, probability: torch.Tensor, num_instances: Optional[int]
    ) -> Tuple[SoftMasks, torch.Tensor]:
        points = image_points(
            maps,
            self.foreground(maps),
            self.shift,
            foreground_threshold=self.foreground_threshold,
            min_foreground=MIN_FOREGROUND,
        )
        groups = [self._groups_of_scale(points, maps, s, num_instances) for s in self.scales]
        masks, agreement = zip(*groups)
        return masks[0] if len(masks) == 1 else JoinedMasks(masks), torch.cat(agreement)

    def _modes(
        self, points: ImagePoints, scale: float, num_instances: Optional[int]
    ) -> Tuple[ImagePoints, Modes]:
        """Moves the points and finds the modes of their density."""
        x, votes = self.shift.shift_points(points.x, points.votes, points.sizes, points.keys, scale)
        keys = points.keys
        # Unlike votes, the fixed positions of pixels do not depend on their instances.
        labels = cluster_embeddings(
            x[keys],
            self.merge_cosine,
            positions=votes[keys] if self.shift.shift_positions else None,
            max_distance=self._max_distance(points.sizes[keys], scale),
        )
        modes = Modes(*_cluster_centers(x[keys], votes[keys], labels), scale)
        return points._replace(x=x, votes=votes), modes

    def _belongs(self, points: ImagePoints, modes: Modes) -> torch.Tensor:
        """Returns (P, R) bool, whether a point is near enough to a mode to be in its cluster."""
        belongs = points.x @ modes.x.T >= self.merge_cosine
        max_distance = self._max_distance(points.sizes, modes.scale)
        if max_distance is not None:
            max_distance = torch.as_tensor(max_distance, device=points.x.device).view(-1, 1)
            belongs &= squared_distances(points.votes, modes.votes) <= max_distance**2
        return belongs

    def _max_distance(self, sizes: torch.Tensor, scale: float) -> Union[None, float, torch.Tensor]:
        """Returns the largest distance in pixels between a point and its mode."""
        if not self.shift.shift_positions:
            return None
        if self.merge_distance:
            return self.merge_distance * scale
        return 2 * self.shift.sigma(sizes, scale)

    def _groups_of_scale(
        self, points: ImagePoints, maps: ImageMaps, scale: float, num_instances: Optional[int]
    ) -> Tuple[SoftMasks, torch.Tensor]:
        """Returns R soft masks and the agreement (R,) of the groups at one scale."""
        size = maps.logits.shape[-2:]
        moved, modes = self._modes(points, scale, num_instances)
        modes = modes[self._largest(moved, modes, maps.stride)]
        log_total, best, nearest = self._membership(moved, modes)
        masks = Memberships(self.shift, moved, modes, log_total, size)
        inside = log_total < math.inf
        if not self.split_into_components:
            agreement = _means(best[inside, None], nearest[inside], len(modes))
            return masks, agreement.squeeze(1)
        group_map = torch.full((size.numel(),), -1, dtype=torch.long, device=best.device)
        clear = moved.grouped & inside
        group_map[moved.cells[clear]] = nearest[clear]
        components = self._large_components(group_map.view(size), maps.stride)
        # Every clear point is in the component of the group that is nearest to it.
        membership = best.new_zeros(size.numel()).index_copy_(0, moved.cells[clear], best[clear])
        return ComponentMasks(masks, components), components.mean_of(membership.view(size))

    def _largest(self, points: ImagePoints, modes: Modes, stride: int) -> torch.Tensor:
        """Returns the indices of the modes that own the most pixels, the largest first."""
        counts = torch.zeros(len(modes), dtype=torch.long, device=points.x.device)
        for part in points.split(_POINTS_AT_ONCE):
            near = self._reachable(part, modes)
            for block, affinity, belongs in self._blocks(part, modes[near]):
                value, owner = torch.where(belongs, affinity, -math.inf).max(dim=1)
                owner = near[owner[block.grouped & (value > -math.inf)]]
                counts += torch.bincount(owner, minlength=len(modes))
        areas = counts * stride**2
        largest = torch.argsort(areas, descending=True, stable=True)[: self.max_groups]
        return largest[areas[largest] >= self.min_area]

    def _reachable(self, points: ImagePoints, modes: Modes) -> torch.Tensor:
        """Returns the indices of the modes in and around the box of the points' votes.

        No point belongs to any other mode. Neighboring points vote for neighboring positions, so
        most of the thousands of modes of a large image are excluded.
        """
        max_distance = self._max_distance(points.sizes, modes.scale)
        if max_distance is None or len(points.x) == 0:
            return torch.arange(len(modes), device=points.x.device)
        margin = torch.as_tensor(max_distance, device=points.x.device).max()
        low, high = points.votes.amin(dim=0) - margin, points.votes.amax(dim=0) + margin
        inside = (modes.votes >= low) & (modes.votes <= high)
        return torch.nonzero(inside.all(dim=1)).squeeze(1)

    def _membership(
        self, points: ImagePoints, modes: Modes
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the (P,) denominators of :class:`Memberships`, and the best membership and mode.

        Points that belong to no mode, such as those of dropped groups, have membership 0.
        """
        log_total = points.weight.new_full((len(points.x),), math.inf)
        best = torch.zeros_like(log_total)
        nearest = torch.zeros_like(points.cells)
        start = 0
        for part, affinity, belongs in self._blocks(points, modes):
            rows = slice(start, start + len(part.x))
            total = affinity.logsumexp(dim=1)
            top, nearest[rows] = affinity.max(dim=1)
            inside = belongs.any(dim=1)
            log_total[rows] = torch.where(inside, total, log_total[rows])
            best[rows] = torch.where(inside, (top - total).exp(), best[rows])
            start = rows.stop
        return log_total, best, nearest

    def _blocks(
        self, points: ImagePoints, modes: Modes
    ) -> Iterator[Tuple[ImagePoints, torch.Tensor, torch.Tensor]]:
        """Yields blocks of points, their affinities (n, R) and whether they belong (n, R) bool."""
        if len(modes) == 0:
            return
        for part in points.split(max(1, _BLOCK_ELEMENTS // len(modes))):
            affinity = self.shift.affinity(
                part.x, part.votes, part.sizes, modes.x, modes.votes, modes.scale
            )
            yield part, affinity, self._belongs(part, modes)


class KMeansGrouping(MeanShiftGrouping):
    """Grouping by k-means of embeddings and votes, an oracle that knows the number of instances.

    The pixels are not shifted. Distances are those of the joint kernel.
    """

    def _soft_masks(
        self, maps: ImageMaps, probability: torch.Tensor, num_instances: Optional[int]
    ) -> Tuple[SoftMasks, torch.Tensor]:
        if num_instances is None:
            raise ValueError(
                'MODEL.RPE.GROUPING "kmeans" needs the ground-truth number of instances; allowed: '
                "only in evaluations of annotated data"
            )
        return super()._soft_masks(maps, probability, num_instances)

    def _modes(
        self, points: ImagePoints, scale: float, num_instances: Optional[int]
    ) -> Tuple[ImagePoints, Modes]:
        x, votes = points.x[points.grouped], points.votes[points.grouped]
        labels = self._kmeans(x, votes, points.sizes[points.grouped], num_instances)
        return points, Modes(*_cluster_centers(x, votes, labels), scale)

    def _belongs(self, points: ImagePoints, modes: Modes) -> torch.Tensor:
        return torch.ones(len(points.x), len(modes), dtype=torch.bool, device=points.x.device)

    def _reachable(self, points: ImagePoints, modes: Modes) -> torch.Tensor:
        return torch.arange(len(modes), device=points.x.device)

    def _kmeans(
        self, x: torch.Tensor, votes: torch.Tensor, sizes: torch.Tensor, num_instances: int
    ) -> torch.Tensor:
        """Returns (P,) cluster labels in descending order of cluster size."""
        if len(x) == 0 or num_instances == 0:
            return torch.zeros(len(x), dtype=torch.long, device=x.device)
        coordinates = x / self.shift.bandwidth
        if self.shift.shift_positions:
            sigma = torch.as_tensor(self.shift.sigma(sizes), device=x.device)
            coordinates = torch.cat([coordinates, votes / sigma.view(-1, 1)], dim=1)
        from scipy.cluster.vq import kmeans2  # slow to import, and only this oracle needs it

        count = min(num_instances + self.background_is_group, len(coordinates))
        _, assignment = kmeans2(coordinates.double().cpu().numpy(), count, minit="++", seed=0)
        labels = torch.as_tensor(assignment, dtype=torch.long, device=x.device)
        by_size = torch.bincount(labels, minlength=count).argsort(descending=True)
        return by_size.argsort()[labels]


def drop_background(groups: PixelGroups) -> PixelGroups:
    """Drops the groups whose most probable class is background."""
    background = 1 - groups.class_probabilities.sum(dim=1)
    is_object = groups.class_probabilities.amax(dim=1) > background
    return groups.select(torch.nonzero(is_object).squeeze(1))


def build_grouping(
    cfg: CfgNode,
    *,
    scales: Optional[Sequence[float]] = None,
    max_groups: Optional[int] = None,
) -> PixelGrouping:
    """Builds the grouping that ``MODEL.RPE.GROUPING`` names.

    Args:
        cfg: the configuration.
        scales: replaces ``MODEL.MEAN_SHIFT.TEST_SCALES``.
        max_groups: replaces ``MODEL.RPE.MAX_GROUPS``.

    Raises:
        ValueError: There is no such grouping.
    """
    rpe = cfg.MODEL.RPE
    check_choice("MODEL.RPE.GROUPING", rpe.GROUPING, GROUPINGS)
    check_choice("MODEL.RPE.FOREGROUND", rpe.FOREGROUND, FOREGROUNDS)
    if rpe.FOREGROUND == "vote" and (rpe.BACKGROUND != "group" or rpe.GROUPING == "components"):
        raise ValueError(
            f"MODEL.RPE.FOREGROUND is vote; allowed with MODEL.RPE.BACKGROUND {rpe.BACKGROUND} and "
            f"MODEL.RPE.GROUPING {rpe.GROUPING}: classifier"
        )
    limits = {"min_area": rpe.MIN_AREA, "max_groups": max_groups or rpe.MAX_GROUPS}
    if rpe.GROUPING == "components":
        return ComponentGrouping(**limits)
    grouping = KMeansGrouping if rpe.GROUPING == "kmeans" else MeanShiftGrouping
    return grouping(
        foreground=rpe.FOREGROUND,
        foreground_threshold=rpe.FOREGROUND_THRESHOLD,
        merge_cosine=rpe.MERGE_COSINE,
        split_into_components=rpe.SPLIT_COMPONENTS,
        scales=scales or cfg.MODEL.MEAN_SHIFT.TEST_SCALES,
        **limits,
    )


def _cluster_centers(
    x: torch.Tensor, votes: torch.Tensor, labels: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean directions (R, D) and mean positions (R, 2) of labeled points."""
    count = int(labels.max()) + 1 if len(labels) else 0
    return F.normalize(_means(x, labels, count), dim=1), _means(votes, labels, count)


def _means(values: torch.Tensor, labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    sums = values.new_zeros(num_labels, values.shape[1]).index_add_(0, labels, values)
    counts = torch.bincount(labels, minlength=num_labels).clamp(min=1)
    return sums / counts[:, None]
