"""Mean shift with its bandwidths, as training and inference use it."""

import math
from typing import List, Tuple, Union

import torch
from detectron2.config import configurable
from torch import nn

from rpe_d2.ops.mean_shift import margin_bandwidth, mean_shift

_GOLDEN_RATIO = (5**0.5 - 1) / 2
_FAR = 3.0  # a point is far from a key where their kernel is below exp(-this)
# Elements of one block of kernel values (4 MB in float32, which a cache holds).
_BLOCK_ELEMENTS = 1 << 20
BANDWIDTH_MODES = ("fixed", "learned", "margin")

ShiftedPoints = Tuple[torch.Tensor, torch.Tensor]


class MeanShiftLayer(nn.Module):
    """The recurrent layer of Kong & Fowlkes (CVPR 2018, section 4), optionally with the joint kernel on positions."""

    @configurable
    def __init__(
        self,
        *,
        bandwidth: float,
        learn_bandwidth: bool,
        spatial_bandwidth: float,
        relative_bandwidth: float,
        shift_positions: bool,
        train_loops: int,
        test_loops: int,
        tolerance: float,
        max_keys: int,
    ):
        """
        Args:
            bandwidth: of the kernel on embeddings, > 0.
            learn_bandwidth: make it a parameter that starts there.
            spatial_bandwidth: of the kernel on positions, pixels; 0: embeddings alone.
            relative_bandwidth: of the kernel on positions, as a fraction of the size predicted for the pixel's
                instance, at least ``spatial_bandwidth``; 0: that for all.
            shift_positions: move positions (votes) together with the embeddings.
            train_loops, test_loops: number of loops.
            tolerance: stops the loops at inference, see :func:`rpe_d2.ops.mean_shift.mean_shift`.
            max_keys: points that define the density at inference.
        """
        super().__init__()
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

    @classmethod
    def from_config(cls, cfg):
        shift, rpe = cfg.MODEL.MEAN_SHIFT, cfg.MODEL.RPE
        if shift.BANDWIDTH_MODE not in BANDWIDTH_MODES:
            raise ValueError(
                f"MODEL.MEAN_SHIFT.BANDWIDTH_MODE is {shift.BANDWIDTH_MODE!r}; "
                f"allowed: {', '.join(BANDWIDTH_MODES)}"
            )
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
        }

    @property
    def bandwidth(self) -> torch.Tensor:
        """0-d tensor, > 0."""
        return self.log_bandwidth.exp()

    def sigma(self, sizes: torch.Tensor, scale: float = 1.0) -> Union[None, float, torch.Tensor]:
        """Spatial bandwidth in pixels: one for all, or one for each of the sizes (…); None without positions."""
        if self.spatial_bandwidth is None:
            return None
        if not self.relative_bandwidth:
            return self.spatial_bandwidth * scale
        return (self.relative_bandwidth * sizes).clamp(min=self.spatial_bandwidth) * scale

    def trajectory(
        self, x: torch.Tensor, positions: torch.Tensor, sizes: torch.Tensor, mask: torch.Tensor
    ) -> List[ShiftedPoints]:
        """All training loops on padded batches of sampled points.

        Args:
            x: (B, N, D) unit vectors.
            positions: (B, N, 2) in pixels.
            sizes: (B, N) of the points' instances, in pixels.
            mask: (B, N) bool, True = valid.

        Returns:
            (embeddings, positions) before the first and after each loop.
        """
        steps = mean_shift(
            x,
            self.bandwidth,
            self.train_loops,
            positions=positions,
            # A kernel that shrinks or grows to please the losses after the loops would predict no sizes any more.
            spatial_bandwidth=self.sigma(sizes.detach()),
            shift_positions=self.shift_positions,
            mask=mask,
            return_trajectory=True,
        )
        return [self._with_positions(step, positions) for step in steps]

    def choose_keys(
        self, x: torch.Tensor, positions: torch.Tensor, sizes: torch.Tensor, may_be: torch.Tensor
    ) -> torch.Tensor:
        """Which points define the density at inference: all that may, or ``max_keys`` of them.

        Three quarters are chosen evenly. The rest are chosen among the points that are far from all of those, so that
        small objects are not left out.

        Args:
            x: (N, D) unit vectors.
            positions: (N, 2) in pixels.
            sizes: (N,) of the points' instances, in pixels.
            may_be: (N,) bool.

        Returns:
            (M,) int64 indices, M <= max_keys.
        """
        index = torch.nonzero(may_be).squeeze(1)
        if len(index) <= self.max_keys:
            return index
        lonely_keys = self.max_keys // 4
        chosen = evenly(index, self.max_keys - lonely_keys)
        density = self._largest_kernel(
            x[index], positions[index], sizes[index], x[chosen], positions[chosen]
        )
        lonely = index[density < math.exp(-_FAR)]
        return torch.cat([chosen, evenly(lonely, lonely_keys)])

    def _largest_kernel(self, x, positions, sizes, keys, key_positions) -> torch.Tensor:
        """(N,) kernel value of each point with the key where it is largest."""
        # The exponent as one product: (x.k - 1) / delta^2 - (|p|^2 - 2 p.q + |q|^2) / (2 sigma^2).
        points, offset = [x / self.bandwidth**2], -1 / self.bandwidth**2
        sigma = self.sigma(sizes)
        if sigma is not None:
            middle = key_positions.mean(dim=0)  # squares of small numbers lose fewer digits
            positions, key_positions = positions - middle, key_positions - middle
            precision = torch.as_tensor(sigma, device=x.device).expand(len(x)).square().reciprocal()
            points += [positions * precision[:, None], -0.5 * precision[:, None]]
            keys = torch.cat(
                [keys, key_positions, key_positions.square().sum(dim=1, keepdim=True)], dim=1
            )
            offset = offset - 0.5 * precision * positions.square().sum(dim=1)
        parts = torch.cat(points, dim=1).split(max(1, _BLOCK_ELEMENTS // len(keys)))
        return (torch.cat([(part @ keys.T).amax(dim=1) for part in parts]) + offset).exp()

    def settle(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        sizes: torch.Tensor,
        key_index: torch.Tensor,
        scale: float = 1.0,
        return_trajectory: bool = False,
    ) -> Union[ShiftedPoints, List[ShiftedPoints]]:
        """Inference on one image: the keys shift among themselves; all other points go where their neighbours went.

        Args:
            x: (N, D) unit vectors.
            positions: (N, 2) in pixels.
            sizes: (N,) of the points' instances, in pixels.
            key_index: (M,) int64: points that define the density, see :meth:`choose_keys`.
            scale: factor of both bandwidths.
            return_trajectory: return every loop's result.

        Returns:
            (embeddings (N, D), positions (N, 2)) after the last loop; or a list of these, before the first and after
            each.
        """
        if len(key_index) == 0:
            return [(x, positions)] if return_trajectory else (x, positions)
        follows = torch.ones(len(x), dtype=torch.bool, device=x.device)
        follows[key_index] = False
        follower_index = torch.nonzero(follows).squeeze(1)
        bandwidth = self.bandwidth * scale
        keys = mean_shift(
            x[key_index],
            bandwidth,
            self.test_loops,
            tolerance=self.tolerance,
            positions=positions[key_index],
            spatial_bandwidth=self.sigma(sizes[key_index], scale),
            shift_positions=self.shift_positions,
            return_trajectory=True,
        )
        keys = [self._with_positions(step, positions[key_index]) for step in keys]
        steps = [(x, positions)]
        for moved_keys in keys[1:] if return_trajectory else keys[-1:]:
            followers = self._with_positions(
                mean_shift(
                    x[follower_index],
                    bandwidth,
                    1,
                    keys=x[key_index],
                    targets=moved_keys[0],
                    positions=positions[follower_index],
                    key_positions=positions[key_index],
                    target_positions=moved_keys[1],
                    spatial_bandwidth=self.sigma(sizes[follower_index], scale),
                    shift_positions=self.shift_positions,
                ),
                positions[follower_index],
            )
            steps.append(
                tuple(
                    torch.empty_like(old)
                    .index_copy(0, key_index, key)
                    .index_copy(0, follower_index, follower)
                    for old, key, follower in zip(steps[0], moved_keys, followers)
                )
            )
        return steps if return_trajectory else steps[-1]

    def affinity(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        sizes: torch.Tensor,
        modes: torch.Tensor,
        mode_positions: torch.Tensor,
        scale: float = 1.0,
    ) -> torch.Tensor:
        """Logarithm of the joint kernel between points and modes; its softmax is the membership.

        Args:
            x: (N, D) unit vectors.
            positions: (N, 2) in pixels.
            sizes: (N,) of the points' instances, in pixels.
            modes: (R, D) unit vectors.
            mode_positions: (R, 2) in pixels; fixed positions say where a pixel is, not what it belongs to: they enter
                only where they are shifted.
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


def evenly(index: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` of the entries of index (N,), or all where there are no more; in their order."""
    if len(index) <= count:
        return index
    # One of each of as many runs of entries, by the golden ratio somewhere in it: always the first of each would lie on
    # a few columns of the picture.
    run = torch.arange(count + 1, device=index.device)
    start = run * len(index) // max(count, 1)
    within = (run[:-1].double() * _GOLDEN_RATIO).frac() * start.diff()
    return index[start[:-1] + within.long()]


def squared_distances(positions: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """(N, R) squared distances of (N, 2) and (R, 2)."""
    # Differences first: exact at hundreds of pixels, and differentiable where they are 0, unlike cdist.
    x_distance, y_distance = (a[:, None] - b for a, b in zip(positions.unbind(1), others.unbind(1)))
    return x_distance.square() + y_distance.square()
