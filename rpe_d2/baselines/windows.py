"""Square windows that slide over feature maps: their grid, their labels and reading maps in them.

A window of n cells is identified by its first row and column on a map that is padded with n // 2
cells on all sides. There is one window per cell of the map, and for even n one more in each
direction. On the unpadded map, the window starts n // 2 cells earlier.
"""

import math
from dataclasses import dataclass
from typing import Callable, NamedTuple, Sequence, Tuple

import torch

from rpe_d2.modeling.argument_checks import check_range

NEGATIVE = -1
IGNORED = -2


@dataclass(frozen=True)
class WindowTolerances:
    """Limits that label a window as positive or negative (Pinheiro et al., NIPS 2015, section 3.2).

    An object is canonical in a window if their centers coincide and the longer side of its box is
    ``object_size`` times the side of the window. A window is positive for an object within both
    positive tolerances. It is negative if every object is beyond one of the negative tolerances.
    The defaults are those of DeepMask for patches of 224 pixels.

    Attributes:
        object_size: side of a canonical object as a fraction of the side of the window.
        positive_shift, negative_shift: shift of the center in x or y, as a fraction of the side of
            the window.
        positive_scale, negative_scale: deviation from the canonical size in octaves.
    """

    object_size: float = 128 / 224
    positive_shift: float = 16 / 224
    positive_scale: float = 0.25
    negative_shift: float = 32 / 224
    negative_scale: float = 1.0

    def __post_init__(self) -> None:
        check_range("object_size", self.object_size, 1e-6)
        for kind in ("shift", "scale"):
            positive = getattr(self, f"positive_{kind}")
            negative = getattr(self, f"negative_{kind}")
            if not 0 <= positive < negative:
                raise ValueError(
                    f"positive_{kind} is {positive}; "
                    f"allowed: 0 or more, and less than negative_{kind}, {negative}"
                )


class Windows(NamedTuple):
    """N windows of a batch.

    Attributes:
        level: (N,) int64 index of the map in the image pyramid.
        image: (N,) int64 index of the image in the batch.
        row, column: (N,) int64 first row and column on the padded map.
    """

    level: torch.Tensor
    image: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor


class WindowGrid(NamedTuple):
    """All A windows of an image, level by level and row by row.

    Attributes:
        level, row, column: (A,) int64, see :class:`Windows`.
        boxes: (A, 4) x0, y0, x1, y1 in pixels; windows can extend beyond the image.
    """

    level: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    boxes: torch.Tensor

    def select(self, image: torch.Tensor, index: torch.Tensor) -> Windows:
        """Selects windows by their indices (N,) in this grid, in images (N,) of a batch."""
        return Windows(self.level[index], image, self.row[index], self.column[index])

    @property
    def centers(self) -> torch.Tensor:
        """(A, 2) x, y in pixels."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    def centered_in(self, size: Tuple[int, int]) -> torch.Tensor:
        """Returns (A,) bool: whether the center of a window is in an image of size (H, W)."""
        x, y = self.centers.unbind(1)
        return (x >= 0) & (y >= 0) & (x <= size[1]) & (y <= size[0])


def window_grid(maps: Sequence[torch.Tensor], strides: Sequence[float], cells: int) -> WindowGrid:
    """Places windows of a number of cells at all positions of maps (B, C, h, w) of a pyramid."""
    parts = []
    for level, (level_maps, stride) in enumerate(zip(maps, strides)):
        rows, columns = (
            torch.arange(count, device=level_maps.device)
            for count in window_counts(level_maps.shape[-2:], cells)
        )
        row, column = (index.flatten() for index in torch.meshgrid(rows, columns, indexing="ij"))
        start = (torch.stack([column, row], dim=1) - cells // 2).float() * stride
        boxes = torch.cat([start, start + cells * stride], dim=1)
        parts.append((torch.full_like(row, level), row, column, boxes))
    return WindowGrid(*(torch.cat(part) for part in zip(*parts)))


def window_counts(size: Sequence[int], cells: int) -> Tuple[int, int]:
    """Returns the number of windows of ``cells`` cells in each direction on a map (H, W)."""
    return tuple(side + 1 - cells % 2 for side in size)


def label_windows(
    centers: torch.Tensor, sizes: torch.Tensor, boxes: torch.Tensor, tolerances: WindowTolerances
) -> torch.Tensor:
    """Labels windows with the object they show.

    Args:
        centers: (A, 2) x, y in pixels.
        sizes: (A,) sides of the windows in pixels, above 0.
        boxes: (n, 4) boxes of the objects. Objects with an empty box match no window.
        tolerances: the limits, which are inclusive.

    Returns:
        (A,) int64: the index of the object for which a window is positive (the nearest of several),
        NEGATIVE or IGNORED.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)  # (n,)
    present = torch.nonzero(sides > 0).squeeze(1)
    if len(present) == 0:
        return torch.full((len(centers),), NEGATIVE, dtype=torch.int64, device=centers.device)
    boxes, sides = boxes[present], sides[present]
    object_centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    shift = (centers[:, None] - object_centers).abs().amax(dim=2) / sizes[:, None]  # (A, n)
    scale = torch.log2(sizes[:, None] * tolerances.object_size / sides).abs()
    # Window positions have rounding errors, so the limits are widened slightly.
    slack = 1e-4
    near = (shift <= tolerances.positive_shift + slack) & (
        scale <= tolerances.positive_scale + slack
    )
    far = (shift >= tolerances.negative_shift - slack) | (
        scale >= tolerances.negative_scale - slack
    )
    # Distances are in units of the tolerances, which can be 0.
    distance = torch.maximum(
        shift / max(tolerances.positive_shift, slack), scale / max(tolerances.positive_scale, slack)
    )
    nearest = distance.masked_fill(~near, torch.inf).argmin(dim=1)
    labels = torch.where(far.all(dim=1), NEGATIVE, IGNORED)
    return torch.where(near.any(dim=1), present[nearest], labels)


def by_level(
    function: Callable[..., torch.Tensor], levels: Sequence, windows: Windows, *options: int
) -> torch.Tensor:
    """Applies a function to the windows of each level and joins the results.

    Args:
        function: called with a level, ``image``, ``row`` and ``column`` of its windows, and the
            options.
        levels: the input of the function for each level of the pyramid.
        windows: N windows of any levels.
        options: more arguments of the function.

    Returns:
        The results in the order of the windows.
    """
    results, indices = [], []
    for number, level in enumerate(levels):
        index = torch.nonzero(windows.level == number).squeeze(1)
        results.append(function(level, *(part[index] for part in windows[1:]), *options))
        indices.append(index)
    return torch.cat(results)[torch.cat(indices).argsort()]


def crop_windows(
    maps: torch.Tensor, image: torch.Tensor, row: torch.Tensor, column: torch.Tensor, size: int
) -> torch.Tensor:
    """Crops windows from padded maps.

    Args:
        maps: (B, C, H, W), padded.
        image, row, column: (N,) int64 indices of the image, the first row and the first column.
        size: cells of a window in each direction. All windows lie inside the maps.

    Returns:
        (N, C, size, size) with the dtype of ``maps``.
    """
    steps = torch.arange(size, device=maps.device)
    rows = (row[:, None] + steps)[:, :, None]  # (N, size, 1)
    columns = (column[:, None] + steps)[:, None, :]  # (N, 1, size)
    cropped = maps.permute(0, 2, 3, 1)[image[:, None, None], rows, columns]  # (N, size, size, C)
    return cropped.permute(0, 3, 1, 2)


def assemble_windows(
    maps: torch.Tensor, image: torch.Tensor, row: torch.Tensor, column: torch.Tensor, size: int
) -> torch.Tensor:
    """Assembles windows from instance-sensitive score maps, one map for each of the k x k parts.

    This is the assembling module of InstanceFCN (Dai et al., ECCV 2016, section 3.1), which has no
    parameters. Cell (u, v) of a window is copied from its own position on the map i k + j with
    i = floor(u k / size) and j = floor(v k / size), so neighboring windows share values.

    Args:
        maps: (B, k k, H, W), padded.
        image, row, column, size: see :func:`crop_windows`.

    Returns:
        (N, size, size) with the dtype of ``maps``.

    Raises:
        ValueError: The number of maps is not a square number.
    """
    parts = math.isqrt(int(maps.shape[1]))  # a tensor under tracing
    if parts * parts != maps.shape[1]:
        raise ValueError(f"there are {maps.shape[1]} maps; allowed: square numbers such as 9 or 25")
    steps = torch.arange(size, device=maps.device)
    part = steps * parts // size
    map_index = part[:, None] * parts + part  # (size, size)
    rows = (row[:, None] + steps)[:, :, None]
    columns = (column[:, None] + steps)[:, None, :]
    return maps[image[:, None, None], map_index, rows, columns]
