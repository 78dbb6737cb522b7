"""Mean shift as a layer with bandwidths, for training and inference."""

import math
from typing import List, Tuple, Union

import torch
from detectron2.config import configurable
from torch import nn

from rpe_d2.ops.mean_shift import margin_bandwidth, mean_shift

from ..argument_checks import check_choice, check_positive, check_range

_GOLDEN_RATIO = (5**0.5 - 1) / 2
# A point is isolated if its kernel value with every key is below exp(-this).
_ISOLATION = 3.0
# Elements of one block of kernel values (4 MB in float32, which fits into a cache).
_BLOCK_ELEMENTS = 1 << 20
# Points that follow the keys are processed this many at a time. Their intermediate results need
# about 300 bytes each.
_POINTS_AT_ONCE = 1 << 20
BANDWIDTH_MODES = ("fixed", "learned", "margin")

ShiftedPoints = Tuple[torch.Tensor, torch.Tensor]


class MeanShiftLayer(nn.Module):
    """The recurrent layer of Kong & Fowlkes (CVPR 2018, section 4).

    Optionally the kernel also depends on positions (the joint kernel).
    """

    # Weight decay would pull a learned bandwidth towards 1, the largest useful value.
    no_weight_decay = ("log_bandwidth",)

    @configurable
    def __init__(
        self,
        *,
        bandwidth: float = margin_bandwidth(0.5),
        learn_bandwidth: bool = False,
        spatial_bandwidth: float = 4.0,
        relative_bandwidth: float = 0.0,
        shift_positions: bool = True,
        train_loops: int = 2,
        test_loops: int = 5,
        tolerance: float = 1e-3,
        max_keys: int = 4096,
        train_keys: int = 0,
    ):
        """
        Args:
            bandwidth: bandwidth of the kernel on embeddings, > 0.
            learn_bandwidth: whether the bandwidth is a parameter with this initial value.
            spatial_bandwidth: bandwidth of the kernel on positions in pixels. With 0 the kernel
                depends only on embeddings.
            relative_bandwidth: bandwidth of the kernel on positions as a fraction of the size that
                is predicted for the pixel's instance, but at least ``spatial_bandwidth``. With 0 it
                is ``spatial_bandwidth`` everywhere.
            shift_positions: whether positions (votes) move together with the embeddings.
            train_loops, test_loops: number of loops.
            tolerance: largest change at which loops stop at inference, see
                :func:`rpe_d2.ops.mean_shift.mean_shift`.
            max_keys: largest number of points that define the density at inference.
            train_keys: largest number of cells that define the density in training, where all cells
                of an image are shifted. With 0, sampled points are shifted among themselves.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__()
        check_positive("bandwidth", bandwidth)
        check_range("spatial_bandwidth", spatial_bandwidth, 0)
        check_range("relative_bandwidth", relative_bandwidth, 0)
        check_range("train_loops", train_loops, 1 if learn_bandwidth else 0)
        check_range("test_loops", test_loops, 0)
        check_range("tolerance", tolerance, 0)
        check_range("max_keys", max_keys, 1)
        check_range("train_keys", train_keys, 0)
        if shift_positions or relative_bandwidth:
            check_positive("spatial_bandwidth", spatial_bandwidth)
        log_bandwidth = torch.tensor(float(bandwidth)).log()
        if learn_bandwidth:
            self.log_bandwidth = nn.Parameter(log_bandwidth)
        else:
            self.register_buffer("log_bandwidth", log_bandwidth, persistent=False)
        self.spatial_bandwidth = spatial_bandwidth or None
        self.relative_bandwidth = relative_bandwidth
        self.shift_positions = shift_positions
        self.train_loops = train_loops
        self.test_loops = test_loops
        self.tolerance = tolerance
        self.max_keys = max_keys
        self.train_keys = train_keys

    @classmethod
    def from_config(cls, cfg):
        shift, rpe = cfg.MODEL.MEAN_SHIFT, cfg.MODEL.RPE
        check_choice("MODEL.MEAN_SHIFT.BANDWIDTH_MODE", shift.BANDWIDTH_MODE, BANDWIDTH_MODES)
        if shift.SPATIAL_BANDWIDTH < 0 or (rpe.VOTES and shift.SPATIAL_BANDWIDTH == 0):
            raise ValueError(
                f"MODEL.MEAN_SHIFT.SPATIAL_BANDWIDTH is {shift.SPATIAL_BANDWIDTH}; "
                "allowed: 0 or more pixels, and more than 0 with MODEL.RPE.VOTES"
            )
        if shift.BANDWIDTH_MODE == "learned" and shift.TRAIN_LOOPS == 0:
            raise ValueError(
                "MODEL.MEAN_SHIFT.TRAIN_LOOPS is 0; allowed with BANDWIDTH_MODE learned: 1 or more"
            )
        by_margin = shift.BANDWIDTH_MODE == "margin"
        return {
            "bandwidth": margin_bandwidth(rpe.MARGIN) if by_margin else shift.BANDWIDTH,
            "learn_bandwidth": shift.BANDWIDTH_MODE == "learned",
            "spatial_bandwidth": shift.SPATIAL_BANDWIDTH,
            "shift_positions": rpe.VOTES,
            "relative_bandwidth": shift.RELATIVE_BANDWIDTH,
            "train_loops": shift.TRAIN_LOOPS,
            "test_loops": shift.TEST_LOOPS,
            "tolerance": shift.TOLERANCE,
            "max_keys": shift.MAX_KEYS,
            "train_keys": shift.TRAIN_KEYS,
        }

    @property
    def bandwidth(self) -> torch.Tensor:
        """Bandwidth of the kernel on embeddings, a 0-d tensor > 0."""
        return self.log_bandwidth.exp()

    def sigma(self, sizes: torch.Tensor, scale: float = 1.0) -> Union[None, float, torch.Tensor]:
        """Returns the spatial bandwidth in pixels, a single value or one for each of the sizes.

        It is None if the kernel does not depend on positions.
        """
        if self.spatial_bandwidth is None:
            return None
        if not self.relative_bandwidth:
            return self.spatial_bandwidth * scale
        return (self.relative_bandwidth * sizes).clamp(min=self.spatial_bandwidth) * scale

    def trajectory(
        self, x: torch.Tensor, positions: torch.Tensor, sizes: torch.Tensor, mask: torch.Tensor
    ) -> List[ShiftedPoints]:
        """Runs the training loops on padded batches of sampled points.

        Args:
            x: (B, N, D) unit vectors.
            positions: (B, N, 2) positions in pixels.
            sizes: (B, N) sizes of the points' instances in pixels.
            mask: (B, N) bool, True for valid points.

        Returns:
            Embeddings and positions before the first and after each loop.
        """
        steps = mean_shift(
            x,
            self.bandwidth,
            self.train_loops,
            positions=positions,
            # Detached, because the kernel would otherwise influence the predicted sizes.
            spatial_bandwidth=self.sigma(sizes.detach()),
            shift_positions=self.shift_positions,
            mask=mask,
            return_trajectory=True,
        )
        return [self._with_positions(step, positions) for step in steps]

    def cell_trajectory(
        self, x: torch.Tensor, positions: torch.Tensor, sizes: torch.Tensor
    ) -> List[ShiftedPoints]:
        """Runs the training loops on all cells of an image.

        At most ``train_keys`` cells, sampled with the same probability, define the density.

        Args:
            x: (N, D) unit vectors.
            positions: (N, 2) positions in pixels.
            sizes: (N,) sizes of the cells' instances in pixels.

        Returns:
            Embeddings and positions before the first and after each loop.
        """
        keys = torch.randperm(len(x), device=x.device)[: self.train_keys].sort().values
        return self._follow_keys(
            x, positions, sizes.detach(), keys, num_loops=self.train_loops, tolerance=0.0
        )

    def choose_keys(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        sizes: torch.Tensor,
        candidates: torch.Tensor,
    ) -> torch.Tensor:
        """Chooses the points that define the density at inference.

        All candidates are chosen if there are at most ``max_keys``. Otherwise three quarters of the
        keys are a stratified sample of the candidates. The rest are sampled from the candidates
        that are far from these, so that small objects have keys as well.

        Args:
            x: (N, D) unit vectors.
            positions: (N, 2) positions in pixels.
            sizes: (N,) sizes of the points' instances in pixels.
            candidates: (N,) bool, whether a point can be a key.

        Returns:
            (M,) int64 indices, M <= max_keys.
        """
        index = torch.nonzero(candidates).squeeze(1)
        if len(index) <= self.max_keys:
            return index
        num_isolated = self.max_keys // 4
        chosen = stratified_sample(index, self.max_keys - num_isolated)
        keys = x[chosen], positions[chosen]
        density = torch.cat(
            [
                self._largest_kernel(x[part], positions[part], sizes[part], *keys)
                for part in index.split(_POINTS_AT_ONCE)
            ]
        )
        isolated = index[density < math.exp(-_ISOLATION)]
        return torch.cat([chosen, stratified_sample(isolated, num_isolated)])

    def _largest_kernel(self, x, positions, sizes, keys, key_positions) -> torch.Tensor:
        """Returns (N,) the largest kernel value of each point with any key."""
        # The exponent is (x.k - 1) / delta^2 - (|p|^2 - 2 p.q + |q|^2) / (2 sigma^2), one product.
        points, offset = [x / self.bandwidth**2], -1 / self.bandwidth**2
        sigma = self.sigma(sizes)
        if sigma is not None:
            middle = key_positions.mean(dim=0)  # squares of small numbers are more precise
            positions, key_positions = positions - middle, key_positions - middle
            precision = torch.as_tensor(sigma, device=x.device).expand(len(x)).square().reciprocal()
            points += [positions * precision[:, None], -0.5 * precision[:, None]]
            keys = torch.cat(
                [keys, key_positions, key_positions.square().sum(dim=1, keepdim=True)], dim=1
            )
            offset = offset - 0.5 * precision * positions.square().sum(dim=1)
        parts = torch.cat(points, dim=1).split(max(1, _BLOCK_ELEMENTS // len(keys)))
        return (torch.cat([(part @ keys.T).amax(dim=1) for part in parts]) + offset).exp()

    def shift_points(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        sizes: torch.Tensor,
        key_index: torch.Tensor,
        scale: float = 1.0,
        return_trajectory: bool = False,
    ) -> Union[ShiftedPoints, List[ShiftedPoints]]:
        """Runs the inference loops on the points of one image.

        The keys are shifted among themselves. All other points move to the kernel-weighted mean of
        the shifted keys.

        Args:
            x: (N, D) unit vectors.
            positions: (N, 2) positions in pixels.
            sizes: (N,) sizes of the points' instances in pixels.
            key_index: (M,) int64 indices of the keys, see :meth:`choose_keys`.
            scale: factor of both bandwidths.
            return_trajectory: whether to return the result of every loop.

        Returns:
            Embeddings (N, D) and positions (N, 2) after the last loop, or a list of such pairs
            before the first and after each loop.
        """
        steps = self._follow_keys(
            x,
            positions,
            sizes,
            key_index,
            scale,
            num_loops=self.test_loops,
            tolerance=self.tolerance,
            only_last=not return_trajectory,
        )
        return steps if return_trajectory else steps[-1]

    def _follow_keys(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        sizes: torch.Tensor,
        key_index: torch.Tensor,
        scale: float = 1.0,
        *,
        num_loops: int,
        tolerance: float,
        only_last: bool = False,
    ) -> List[ShiftedPoints]:
        """Shifts the keys among themselves, and moves the other points along with nearby keys.

        Returns:
            The points before the first loop and after each, or before the first and after the last.
        """
        if len(key_index) == 0:
            return [(x, positions)] * (1 if only_last else num_loops + 1)
        follows = torch.ones(len(x), dtype=torch.bool, device=x.device)
        follows[key_index] = False
        follower_index = torch.nonzero(follows).squeeze(1)
        bandwidth = self.bandwidth * scale
        keys = mean_shift(
            x[key_index],
            bandwidth,
            num_loops,
            tolerance=tolerance,
            positions=positions[key_index],
            spatial_bandwidth=self.sigma(sizes[key_index], scale),
            shift_positions=self.shift_positions,
            return_trajectory=True,
        )
        keys = [self._with_positions(step, positions[key_index]) for step in keys]
        steps = [(x, positions)]
        for moved_keys in keys[-1:] if only_last else keys[1:]:
            step = torch.empty_like(x), torch.empty_like(positions)
            for old, moved in zip(step, moved_keys):
                old.index_copy_(0, key_index, moved)
            for part in follower_index.split(_POINTS_AT_ONCE):
                followers = mean_shift(
                    x[part],
                    bandwidth,
                    1,
                    keys=x[key_index],
                    targets=moved_keys[0],
                    positions=positions[part],
                    key_positions=positions[key_index],
                    target_positions=moved_keys[1],
                    spatial_bandwidth=self.sigma(sizes[part], scale),
                    shift_positions=self.shift_positions,
                )
                for old, moved in zip(step, self._with_positions(followers, positions[part])):
                    old.index_copy_(0, part, moved)
            steps.append(step)
        return steps

    def affinity(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        sizes: torch.Tensor,
        modes: torch.Tensor,
        mode_positions: torch.Tensor,
        scale: float = 1.0,
    ) -> torch.Tensor:
        """Computes the logarithm of the kernel between points and modes.

        Its softmax over the modes is the membership. Positions are used only if they are shifted,
        because fixed positions do not depend on the instance of a pixel.

        Args:
            x: (N, D) unit vectors.
            positions: (N, 2) positions in pixels.
            sizes: (N,) sizes of the points' instances in pixels.
            modes: (R, D) unit vectors.
            mode_positions: (R, 2) positions in pixels.
            scale: factor of both bandwidths.

        Returns:
            (N, R) x·m / delta^2 - |p - q|^2 / (2 sigma^2).
        """
        affinity = x @ modes.T / (self.bandwidth * scale) ** 2
        if self.shift_positions:
            sigma = torch.as_tensor(self.sigma(sizes, scale), device=x.device)
            distance = squared_distances(positions, mode_positions)
            affinity = affinity - distance / (2 * sigma.view(-1, 1) ** 2)
        return affinity

    def _with_positions(self, shifted, positions: torch.Tensor) -> ShiftedPoints:
        return shifted if self.shift_positions else (shifted, positions)


def stratified_sample(index: torch.Tensor, count: int) -> torch.Tensor:
    """Samples ``count`` entries of an index (N,), evenly and in their order.

    All entries are returned if there are no more than ``count``.
    """
    if len(index) <= count:
        return index
    # One entry of each of ``count`` runs. Its position in the run follows the golden ratio, because
    # the first entries of all runs may lie on a few columns of the image.
    run = torch.arange(count + 1, device=index.device)
    start = run * len(index) // max(count, 1)
    within = (run[:-1].double() * _GOLDEN_RATIO).frac() * start.diff()
    return index[start[:-1] + within.long()]


def squared_distances(positions: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Returns the squared distances (N, R) of positions (N, 2) and (R, 2)."""
    # Unlike cdist, differences are exact at hundreds of pixels and differentiable at 0.
    x_distance, y_distance = (a[:, None] - b for a, b in zip(positions.unbind(1), others.unbind(1)))
    return x_distance.square() + y_distance.square()
