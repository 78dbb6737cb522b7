"""Groups of the pixels of one image, whose soft masks are computed on demand."""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Iterator, Optional, Tuple

import torch
from torch.nn import functional as F

from .image_points import ImagePoints
from .mean_shift_layer import MeanShiftLayer

# Elements of the soft masks that are computed at a time (float32: 64 MB). glibc returns blocks
# above 32 MB to the system at once, while repeated smaller ones of several MB fragment its heap.
_CHUNK_ELEMENTS = 1 << 24


class SoftMasks(ABC):
    """Soft masks (R, h, w) that are computed on demand, because R large maps exceed the memory.

    Attributes:
        size: (h, w) of the masks.
    """

    size: torch.Size

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        """Computes the masks (n, h, w) float32 in 0-1 of the groups with the indices (n,)."""


class PixelGroups:
    """Groups of the pixels of one image, the largest first within each scale.

    Attributes:
        class_probabilities: (R, K) float32, the mean class probabilities over the soft mask, times
            the confidence. They sum to the probability that the group is foreground.
        agreement: (R,) float32 in 0-1, the mean membership of the group's pixels.
    """

    def __init__(
        self,
        masks: SoftMasks,
        agreement: torch.Tensor,
        probability: torch.Tensor,
        confidence: Optional[torch.Tensor] = None,
    ):
        """
        Args:
            masks: R soft masks, the membership in the group times the foreground probability, or
                the membership alone if background is a group.
            agreement: (R,) mean membership of the group's pixels.
            probability: (K + 1, h, w) class probabilities, background last.
            confidence: (R,) in 0-1, a score of each group that does not depend on its class. None
                means 1.
        """
        self._masks = masks
        self._index = torch.arange(len(masks), device=probability.device)
        self.agreement = agreement
        classes = probability[:-1].flatten(1).T  # (h * w, K)
        votes = [classes.new_zeros(0, classes.shape[1])]
        for _, soft in self.chunks():
            soft = soft.flatten(1)
            votes.append((soft @ classes) / soft.sum(dim=1, keepdim=True).clamp(min=1e-12))
        self.class_probabilities = torch.cat(votes)
        if confidence is not None:
            self.class_probabilities = self.class_probabilities * confidence[:, None]

    def __len__(self) -> int:
        return len(self._index)

    @cached_property
    @torch.no_grad()
    def soft_masks(self) -> torch.Tensor:
        """All soft masks (R, h, w) float32 in 0-1 on the grid of the maps, which are then stored.

        The masks of a large image may not fit into memory. :meth:`chunks` computes a few at a time.
        """
        return self._masks[self._index]

    @torch.no_grad()
    def masks_of(self, index: torch.Tensor) -> torch.Tensor:
        """Returns the soft masks (n, h, w) of the groups with these indices (n,)."""
        if len(self) * self._masks.size.numel() <= _CHUNK_ELEMENTS:
            return self.soft_masks[index]
        return self._masks[self._index[index]]

    def chunks(
        self, order: Optional[torch.Tensor] = None
    ) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        """Yields indices (n,) and soft masks (n, h, w) of a few groups at a time.

        Args:
            order: (m,) indices of the groups. None means all groups.
        """
        if order is None:
            order = torch.arange(len(self), device=self._index.device)
        if len(order):
            at_once = max(1, _CHUNK_ELEMENTS // max(1, self._masks.size.numel()))
            for index in order.split(at_once):
                yield index, self.masks_of(index)

    def select(self, index: torch.Tensor) -> "PixelGroups":
        """Returns the groups with these indices, in the order of the indices."""
        selected = object.__new__(PixelGroups)
        selected._masks = self._masks
        selected._index = self._index[index]
        selected.agreement = self.agreement[index]
        selected.class_probabilities = self.class_probabilities[index]
        return selected


class Modes:
    """The modes of the density of one image at one scale.

    Attributes:
        x: (R, D) unit vectors.
        votes: (R, 2) positions in pixels.
        scale: factor of the bandwidths.
    """

    def __init__(self, x: torch.Tensor, votes: torch.Tensor, scale: float):
        self.x, self.votes, self.scale = x, votes, scale

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: torch.Tensor) -> "Modes":
        return Modes(self.x[index], self.votes[index], self.scale)


class Memberships(SoftMasks):
    """Memberships of points in modes times the points' foreground probability.

    A membership is the softmax of the affinities over the modes. One number for each point, the
    logarithm of the softmax's denominator, is stored instead of one for each point and mode.
    """

    def __init__(
        self,
        shift: MeanShiftLayer,
        points: ImagePoints,
        modes: Modes,
        log_total: torch.Tensor,
        size: torch.Size,
    ):
        """
        Args:
            shift: layer that computes the affinities.
            points: P points that mean shift has moved.
            modes: R modes.
            log_total: (P,) logarithm of the sum over the modes of the exponential affinities,
                infinite for points that belong to no mode.
            size: (h, w) of the masks.
        """
        self.shift, self.points, self.modes = shift, points, modes
        self.log_total, self.size = log_total, size

    def __len__(self) -> int:
        return len(self.modes)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        return self._on_grid(self.membership(index).mul_(self.points.weight))

    def membership(self, index: torch.Tensor) -> torch.Tensor:
        """Computes the memberships (n, P) in the modes with the indices (n,)."""
        _, _, _, x, votes, sizes, _ = self.points
        modes = self.modes[index]
        affinity = self.shift.affinity(x, votes, sizes, modes.x, modes.votes, modes.scale)
        return affinity.sub_(self.log_total[:, None]).exp_().T

    def _on_grid(self, values: torch.Tensor) -> torch.Tensor:
        """Writes values (n, P) to the cells of maps (n, h, w) that are zero elsewhere."""
        maps = values.new_zeros(len(values), self.size.numel())
        maps[:, self.points.cells] = values
        return maps.view(-1, *self.size)


class Components:
    """The large connected components of a map of groups.

    Attributes:
        group: (R,) the group of each component.
    """

    def __init__(self, parts: torch.Tensor, number: torch.Tensor, group_map: torch.Tensor):
        """
        Args:
            parts: (h, w) int64 component of each cell, -1 where there is none.
            number: (R,) the components that are kept.
            group_map: (h, w) int64 group of each cell.
        """
        self._parts, self._number = parts, number
        inside = torch.nonzero(parts.flatten() >= 0).squeeze(1)
        member = parts.flatten()[inside]
        some_cell = inside.new_zeros(int(parts.max()) + 1).index_copy_(0, member, inside)[number]
        self.group = group_map.flatten()[some_cell]

    def __len__(self) -> int:
        return len(self._number)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        """Returns masks (n, h, w) float32 of 0 and 1 of the components with the indices (n,)."""
        return (self._parts == self._number[index].view(-1, 1, 1)).float()

    def mean_of(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the means (R,) of values (h, w) over the components."""
        inside = self._parts >= 0
        member, counted = self._parts[inside], values[inside]
        sums = counted.new_zeros(int(self._parts.max()) + 1).index_add_(0, member, counted)
        counts = torch.bincount(member, minlength=len(sums))
        return sums[self._number] / counts[self._number]


class ComponentMasks(SoftMasks):
    """Soft masks of groups, each cut to one connected component and a border of one cell."""

    def __init__(self, soft_masks: SoftMasks, components: Components):
        """
        Args:
            soft_masks: the masks of the groups.
            components: R components of these groups.
        """
        self.soft_masks, self.components = soft_masks, components
        self.size = soft_masks.size

    def __len__(self) -> int:
        return len(self.components)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        masks = self.components[index]
        if len(masks):  # the soft border of a mask falls to zero within one cell
            masks = F.max_pool2d(masks.unsqueeze(1), 3, stride=1, padding=1).squeeze(1)
        return self.soft_masks[self.components.group[index]].mul_(masks)


class ClassMaps(SoftMasks):
    """The probabilities of the classes, without padding."""

    def __init__(self, probability: torch.Tensor, valid: torch.Tensor):
        """
        Args:
            probability: (K + 1, h, w) class probabilities.
            valid: (h, w) float32: 1 in cells of the image, 0 in padding.
        """
        self.probability, self.valid = probability, valid
        self.size = valid.shape

    def __len__(self) -> int:
        return len(self.probability)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        return self.probability[index] * self.valid


class JoinedMasks(SoftMasks):
    """The masks of several scales, concatenated."""

    def __init__(self, parts: Tuple[SoftMasks, ...]):
        self.parts = parts
        self.size = parts[0].size

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        masks = torch.empty(len(index), *self.size, device=index.device)
        start = 0
        for part in self.parts:
            own = (index >= start) & (index < start + len(part))
            if bool(own.any()):
                masks[own] = part[index[own] - start]
            start += len(part)
        return masks
