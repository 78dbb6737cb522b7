"""Grouping of the pixels of one image into soft masks."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, Optional, Sequence, Tuple, Union

import torch
from detectron2.config import CfgNode
from torch.nn import functional as F

from rpe_d2.ops.clustering import cluster_embeddings, split_components

from ..argument_checks import check_choice, check_range
from .head import ImageMaps
from .mean_shift_layer import MeanShiftLayer, squared_distances

FOREGROUNDS = ("classifier", "vote")
GROUPINGS = ("mean_shift", "components", "kmeans")
# Pixels that are less likely to be foreground cannot bring a soft mask near its threshold.
_MIN_FOREGROUND = 0.1


class PixelGroups(NamedTuple):
    """Groups of the pixels of one image, the largest first within each scale.

    Attributes:
        soft_masks: (R, h, w) float32 in 0-1 on the grid of the maps, the membership in the group
            times the foreground probability, or the membership alone where background is a group.
        class_probabilities: (R, K) float32, the mean class probabilities over the soft mask. They
            sum to the probability that the group is foreground.
        agreement: (R,) float32 in 0-1, the mean membership of the group's pixels.
    """

    soft_masks: torch.Tensor
    class_probabilities: torch.Tensor
    agreement: torch.Tensor

    def select(self, index: torch.Tensor) -> "PixelGroups":
        """Returns the groups with these indices, in their order."""
        return PixelGroups(*(part[index] for part in self))


class ImagePoints(NamedTuple):
    """P cells of one image as points that mean shift moves.

    Attributes:
        cells: (P,) int64 indices into the flattened grid.
        weight: (P,) foreground probability.
        grouped: (P,) bool, whether the foreground probability reaches the threshold.
        x, votes, sizes: (P, D), (P, 2) and (P,) predictions at the cells.
        keys: (M,) int64 indices of the points that define the density.
    """

    cells: torch.Tensor
    weight: torch.Tensor
    grouped: torch.Tensor
    x: torch.Tensor
    votes: torch.Tensor
    sizes: torch.Tensor
    keys: torch.Tensor


def image_points(
    maps: ImageMaps,
    foreground: torch.Tensor,
    shift: MeanShiftLayer,
    *,
    foreground_threshold: float,
    min_foreground: float,
) -> ImagePoints:
    """Selects the cells of an image that mean shift moves, and the keys among them.

    Args:
        maps: predictions for the image.
        foreground: (h, w) foreground probability, 0 in padding.
        shift: layer that chooses the keys.
        foreground_threshold: foreground probability from which on a cell can be a key.
        min_foreground: cells with a foreground probability of at most this are left out.
    """
    cells = torch.nonzero(foreground.flatten() > min_foreground).squeeze(1)
    weight = foreground.flatten()[cells]
    grouped = weight >= foreground_threshold
    x = maps.embeddings.flatten(1)[:, cells].T
    votes = maps.votes.flatten(1)[:, cells].T
    sizes = maps.sizes.flatten()[cells]
    keys = shift.choose_keys(x, votes, sizes, grouped)
    return ImagePoints(cells, weight, grouped, x, votes, sizes, keys)


class PixelGrouping(ABC):
    """Base class of the steps from the maps of one image to groups of its pixels.

    Groupings have no parameters. ``scales`` are the bandwidth factors at which pixels are grouped;
    groups of different scales overlap. ``shift`` is the layer that moves the pixels. A model that
    owns both sets it where it is None. ``background_is_group`` says whether all pixels are grouped,
    so that some groups are background.
    """

    background_is_group = False
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
        soft_masks, agreement = self._soft_masks(maps, probability, num_instances)
        votes = soft_masks.flatten(1) @ probability[:-1].flatten(1).T  # (R, K)
        votes = votes / soft_masks.flatten(1).sum(dim=1, keepdim=True).clamp(min=1e-12)
        return PixelGroups(soft_masks, votes, agreement)

    def foreground(self, maps: ImageMaps) -> torch.Tensor:
        """Returns (h, w) how much each cell takes part in the groups, in 0-1 and 0 in padding."""
        if self.background_is_group:
            return maps.valid
        return (1 - maps.logits.softmax(dim=0)[-1]) * maps.valid

    @abstractmethod
    def _soft_masks(
        self, maps: ImageMaps, probability: torch.Tensor, num_instances: Optional[int]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Returns soft masks (R, h, w) and the agreement (R,) of the groups."""

    def _large_components(
        self, group_map: torch.Tensor, stride: int
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Splits a map of groups, negative for none, into its large connected components.

        Returns:
            Masks (R, h, w) of 0 and 1, and the group (R,) of each.
        """
        parts = split_components(group_map)
        number, sizes = torch.unique(parts[parts >= 0], return_counts=True)
        order = torch.argsort(sizes, descending=True, stable=True)[: self.max_groups]
        number = number[order][sizes[order] * stride**2 >= self.min_area]
        masks = parts == number.view(-1, 1, 1)  # (R, h, w)
        first = masks.flatten(1).to(torch.uint8).argmax(dim=1) if len(number) else number
        return masks.float(), group_map.flatten()[first]


class ComponentGrouping(PixelGrouping):
    """Connected components of the class map, a control that uses no embeddings."""

    def _soft_masks(
        self, maps: ImageMaps, probability: torch.Tensor, num_instances: Optional[int]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        class_map = probability.argmax(dim=0)
        background = len(probability) - 1
        class_map[(class_map == background) | (maps.valid == 0)] = -1
        masks, classes = self._large_components(class_map, maps.stride)
        soft = probability[classes] * _dilate(masks) * maps.valid
        return soft, soft.new_ones(len(soft))


class MeanShiftGrouping(PixelGrouping):
    """Clusters of the pixels that mean shift has moved.

    The paper leaves open how instances are read from the shifted embeddings. Here, shifted pixels
    are clustered around the modes of their density, tiny clusters are dropped, and every foreground
    pixel is a soft member of the modes that it is near to.
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
            shift: layer that moves the pixels. None stands for that of the model.
            foreground: "classifier" groups the pixels that the class scores call foreground and
                multiplies masks by the foreground probability. "vote" groups all pixels, as the
                paper does, so that background forms groups as well.
            foreground_threshold: foreground probability from which on a pixel is grouped. "vote"
                does not use it.
            merge_cosine: threshold of :func:`rpe_d2.ops.clustering.cluster_embeddings` for shifted
                embeddings.
            merge_distance: largest distance of shifted votes in a cluster, in pixels. 0 stands for
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
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        points = image_points(
            maps,
            self.foreground(maps),
            self.shift,
            foreground_threshold=self.foreground_threshold,
            min_foreground=_MIN_FOREGROUND,
        )
        groups = [self._groups_of_scale(points, maps, s, num_instances) for s in self.scales]
        soft_masks, agreement = (torch.cat(parts) for parts in zip(*groups))
        return soft_masks, agreement

    def _modes(
        self, points: ImagePoints, scale: float, num_instances: Optional[int]
    ) -> Tuple[ImagePoints, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Moves the points and finds the modes of their density.

        Returns:
            The moved points, the modes (R, D) with their positions (R, 2), and (P, R) bool whether
            a point is near enough to a mode to belong to its cluster.
        """
        x, votes = self.shift.shift_points(points.x, points.votes, points.sizes, points.keys, scale)
        keys = points.keys
        # Fixed positions are where a pixel is, which says nothing about its instance. Votes do.
        labels = cluster_embeddings(
            x[keys],
            self.merge_cosine,
            positions=votes[keys] if self.shift.shift_positions else None,
            max_distance=self._max_distance(points.sizes[keys], scale),
        )
        modes, mode_votes = _cluster_centers(x[keys], votes[keys], labels)
        belongs = x @ modes.T >= self.merge_cosine
        max_distance = self._max_distance(points.sizes, scale)
        if max_distance is not None:
            max_distance = torch.as_tensor(max_distance, device=x.device).view(-1, 1)
            belongs &= squared_distances(votes, mode_votes) <= max_distance**2
        return points._replace(x=x, votes=votes), modes, mode_votes, belongs

    def _max_distance(self, sizes: torch.Tensor, scale: float) -> Union[None, float, torch.Tensor]:
        """Returns the largest distance in pixels between a point and its mode."""
        if not self.shift.shift_positions:
            return None
        if self.merge_distance:
            return self.merge_distance * scale
        return 2 * self.shift.sigma(sizes, scale)

    def _groups_of_scale(
        self, points: ImagePoints, maps: ImageMaps, scale: float, num_instances: Optional[int]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Returns soft masks (R, h, w) and the agreement (R,) of the groups at one scale."""
        size = maps.logits.shape[-2:]
        moved, modes, mode_votes, belongs = self._modes(points, scale, num_instances)
        cells, weight, grouped, x, votes, sizes, _ = moved
        affinity = self.shift.affinity(x, votes, sizes, modes, mode_votes, scale)  # (P, R)
        num_modes = affinity.shape[1]
        owned = grouped & belongs.any(dim=1)
        if num_modes:
            owner = affinity.masked_fill(~belongs, -math.inf).argmax(dim=1)
            areas = torch.bincount(owner[owned], minlength=num_modes) * maps.stride**2
        else:
            areas = weight.new_zeros(0)
        largest = torch.argsort(areas, descending=True, stable=True)[: self.max_groups]
        largest = largest[areas[largest] >= self.min_area]
        num_groups = len(largest)
        if num_groups == 0:
            return weight.new_zeros(0, *size), weight.new_zeros(0)
        # Pixels that belong to no remaining mode, such as those of dropped groups, have no group.
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
        masks, group = self._large_components(group_map.view(size), maps.stride)
        soft = _scatter(membership.T[group] * weight, cells, size) * _dilate(masks)
        member = _scatter(membership.T[group], cells, size) * masks
        return soft, member.flatten(1).sum(dim=1) / masks.flatten(1).sum(dim=1)


class KMeansGrouping(MeanShiftGrouping):
    """k-means of embeddings and votes, an oracle that is told the number of instances.

    The pixels are not shifted. The coordinates are those of the joint kernel.
    """

    def _soft_masks(
        self, maps: ImageMaps, probability: torch.Tensor, num_instances: Optional[int]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        if num_instances is None:
            raise ValueError(
                'MODEL.RPE.GROUPING "kmeans" needs the ground-truth number of instances; allowed: '
                "only in evaluations of annotated data"
            )
        return super()._soft_masks(maps, probability, num_instances)

    def _modes(
        self, points: ImagePoints, scale: float, num_instances: Optional[int]
    ) -> Tuple[ImagePoints, torch.Tensor, torch.Tensor, torch.Tensor]:
        x, votes = points.x[points.grouped], points.votes[points.grouped]
        labels = self._kmeans(x, votes, points.sizes[points.grouped], num_instances)
        modes, mode_votes = _cluster_centers(x, votes, labels)
        belongs = torch.ones(len(points.x), len(modes), dtype=torch.bool, device=x.device)
        return points, modes, mode_votes, belongs

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
    """Leaves out the groups whose most probable class is background."""
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
    """Returns the mean directions (R, D) and mean positions (R, 2) of labelled points."""
    count = int(labels.max()) + 1 if len(labels) else 0
    return F.normalize(_means(x, labels, count), dim=1), _means(votes, labels, count)


def _means(values: torch.Tensor, labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    sums = values.new_zeros(num_labels, values.shape[1]).index_add_(0, labels, values)
    counts = torch.bincount(labels, minlength=num_labels).clamp(min=1)
    return sums / counts[:, None]


def _scatter(values: torch.Tensor, index: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Writes values (R, P) to cells of maps (R, h, w) that are zero elsewhere."""
    maps = values.new_zeros(len(values), size.numel())
    maps[:, index] = values
    return maps.view(-1, *size)


def _dilate(masks: torch.Tensor) -> torch.Tensor:
    """Dilates masks by one cell, where their soft border falls to zero."""
    if len(masks) == 0:
        return masks
    return F.max_pool2d(masks.unsqueeze(1), 3, stride=1, padding=1).squeeze(1)
