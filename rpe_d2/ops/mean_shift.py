"""Mean shift on the unit sphere as a recurrent, differentiable layer.

One loop moves every embedding to the kernel-weighted mean of all embeddings and projects it back
onto the sphere (Kong & Fowlkes, CVPR 2018, section 4). With the von Mises-Fisher kernel
``exp(x.y / bandwidth^2)`` this is self-attention in which queries, keys and values are equal. It
is computed exactly by torch's fused attention, without an N x N matrix.
"""

from typing import List, Optional, Tuple, Union

import torch
from torch.nn import functional as F

Shifted = Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]

# Added to the logit of a masked key. Its exponential is 0 in float32 whatever the other logits are.
_MASKED = -1e9
# Masked rows with larger values are not unit vectors, whose coordinates are in -1 to 1.
_LARGEST_COORDINATE = 2.0
_LARGEST_POSITION = 1e6  # pixels
# The fused attention kernels need query, key and value of one width that is a multiple of this.
_WIDTH_MULTIPLE = 8
# The square of the inverse of a smaller one is infinite in float32, and the result NaN.
_SMALLEST_BANDWIDTH = 1e-12


def mean_shift(
    x: torch.Tensor,
    bandwidth: Union[float, torch.Tensor],
    num_loops: int,
    *,
    tolerance: float = 0.0,
    keys: Optional[torch.Tensor] = None,
    positions: Optional[torch.Tensor] = None,
    key_positions: Optional[torch.Tensor] = None,
    targets: Optional[torch.Tensor] = None,
    target_positions: Optional[torch.Tensor] = None,
    spatial_bandwidth: Union[None, float, torch.Tensor] = None,
    shift_positions: bool = False,
    mask: Optional[torch.Tensor] = None,
    return_trajectory: bool = False,
) -> Union[Shifted, List[Shifted]]:
    """Shifts unit vectors ``num_loops`` times towards the modes of their kernel density.

    Without ``keys``, all points move together (Gaussian blurring mean shift, the recurrent layer
    of the paper). With ``keys``, the points climb the fixed density of the keys. With
    ``spatial_bandwidth``, the kernel is
    ``exp(x.y / bandwidth^2 - |p - q|^2 / (2 spatial_bandwidth^2))`` on embeddings x, y and
    positions p, q. Forward and backward take memory linear in the number of points. Half-precision
    inputs are computed in float32, also under autocast.

    Args:
        x: (N, D) or (B, N, D) floating-point unit vectors.
        bandwidth: standard deviation of the kernel in embedding space (delta in the paper), 1e-12
            or more. A 0-d tensor may require a gradient.
        num_loops: number of loops, >= 0.
        tolerance: stops after a loop in which no coordinate of a valid point changes by more than
            this. Shifted positions count in units of ``spatial_bandwidth``. 0 runs all loops.
        keys: (M, D) or (B, M, D) unit vectors that define the density. Defaults to the points.
        positions: (N, 2) or (B, N, 2) positions of the points in pixels.
        key_positions: (M, 2) or (B, M, 2) positions of the keys in pixels, required if ``keys`` and
            ``positions`` are given.
        targets: (M, D) or (B, M, D) values to average instead of ``keys``. The kernel weights still
            come from the keys. If ``targets`` are the keys after some loops of their own, one loop
            takes each point to where its neighboring keys went.
        target_positions: (M, 2) or (B, M, 2) positions to average instead of ``key_positions``.
        spatial_bandwidth: standard deviation of the kernel on positions in pixels, > 0. A tensor
            (N,) or (B, N) gives each point its own (the balloon estimator).
        shift_positions: whether positions are averaged by the same weights as the embeddings.
        mask: (B, N) bool, True = valid, for padded batches. Invalid points have no weight in any
            mean, but they move. They may have any values, including NaN. With ``keys``, the mask is
            (B, M) and applies to the keys.
        return_trajectory: whether to return the result of every loop.

    Returns:
        The shifted points, like ``x``. With ``shift_positions``, a pair of the points and their
        positions, which are floating point even if ``positions`` are integers. With
        ``return_trajectory``, a list whose item 0 is the input and whose item k is the result of
        loop k. It has ``num_loops + 1`` items, or fewer if ``tolerance`` stopped the loops.

    Raises:
        ValueError: A shape does not fit, or a value is out of range.
    """
    _check(
        x,
        bandwidth,
        num_loops,
        keys,
        positions,
        key_positions,
        spatial_bandwidth,
        shift_positions,
        mask,
        targets,
        target_positions,
    )
    batched = x.dim() == 3
    out_dtype = x.dtype
    with torch.autocast(device_type=x.device.type, enabled=False):
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        points = _as_batch(x, dtype)
        fixed_keys = None if keys is None else _as_batch(keys, dtype)
        where = None if positions is None else _as_batch(positions, dtype)
        key_where = None if key_positions is None else _as_batch(key_positions, dtype)
        if isinstance(spatial_bandwidth, torch.Tensor):
            spatial_bandwidth = _as_batch(spatial_bandwidth.unsqueeze(-1), dtype)  # (B, N, 1)
        means_of = None if targets is None else _as_batch(targets, dtype)
        means_of_where = None if target_positions is None else _as_batch(target_positions, dtype)
        if mask is not None:
            if keys is None:
                points, where = _without_garbage(mask, points, where)
            else:
                fixed_keys, key_where = _without_garbage(mask, fixed_keys, key_where)
                means_of, means_of_where = _without_garbage(mask, means_of, means_of_where)
        if where is not None:
            # Only differences matter. Small coordinates keep the kernel's dot products exact.
            origin = _center(where.detach(), mask if keys is None else None)
            where = where - origin
            key_where = None if key_where is None else key_where - origin
        means_of = fixed_keys if means_of is None else means_of
        means_of_where = key_where if means_of_where is None else means_of_where - origin

        def result() -> Shifted:
            moved = points.to(out_dtype) if batched else points[0].to(out_dtype)
            if not shift_positions:
                return moved
            moved_positions = where + origin
            if positions.is_floating_point():
                moved_positions = moved_positions.to(positions.dtype)
            return moved, moved_positions if batched else moved_positions[0]

        def state() -> torch.Tensor:
            """Concatenates what must converge: embeddings, and shifted positions / bandwidth."""
            if not shift_positions or spatial_bandwidth is None:
                return points
            return torch.cat([points, where / spatial_bandwidth], dim=-1)

        trajectory = [result()]
        for _ in range(num_loops):
            previous = state()
            points, where = _shift_once(
                points,
                where,
                points if fixed_keys is None else fixed_keys,
                where if fixed_keys is None else key_where,
                points if fixed_keys is None else means_of,
                where if fixed_keys is None else means_of_where,
                bandwidth,
                spatial_bandwidth,
                shift_positions,
                mask,
            )
            if return_trajectory:
                trajectory.append(result())
            if tolerance > 0 and _largest_change(previous, state(), mask, keys) <= tolerance:
                break
        return trajectory if return_trajectory else result()


def margin_bandwidth(margin: float) -> float:
    """Returns the bandwidth ``(1 - margin) / 3``, a third of the margin between two groups."""
    return (1.0 - margin) / 3.0


def _shift_once(
    points: torch.Tensor,
    where: Optional[torch.Tensor],
    keys: torch.Tensor,
    key_where: Optional[torch.Tensor],
    targets: torch.Tensor,
    target_where: Optional[torch.Tensor],
    bandwidth: Union[float, torch.Tensor],
    spatial_bandwidth: Union[None, float, torch.Tensor],
    shift_positions: bool,
    mask: Optional[torch.Tensor],
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    # The kernel's logit as one dot product: [x/b, p/s^2, 1/s^2, 1] . [y/b, q, -|q|^2/2, mask].
    # Terms that depend only on the query cancel in the softmax.
    query = [points / bandwidth]
    key = [keys / bandwidth]
    value = [targets]
    ones = torch.ones_like(points[..., :1])
    if spatial_bandwidth is not None:
        precision = ones / spatial_bandwidth**2  # (B, N, 1)
        query += [where * precision, precision]
        key += [key_where, -0.5 * key_where.square().sum(dim=-1, keepdim=True)]
    if mask is not None:
        query.append(ones)
        key.append((~mask).to(keys.dtype).mul(_MASKED).unsqueeze(-1))
    if shift_positions:
        value.append(target_where)
    shifted = _attend(torch.cat(query, -1), torch.cat(key, -1), torch.cat(value, -1))
    dim = points.shape[-1]
    if shift_positions:
        where = shifted[..., dim : dim + 2]
    return F.normalize(shifted[..., :dim], dim=-1), where


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Computes softmax(query key^T) value with the fused kernels.

    They need (B, 1, N, width) with one width for all three, so zeros are appended.
    """
    width = max(query.shape[-1], value.shape[-1])
    width += -width % _WIDTH_MULTIPLE
    query, key, value = (
        F.pad(t, (0, width - t.shape[-1])).unsqueeze(1) for t in (query, key, value)
    )
    return F.scaled_dot_product_attention(query, key, value, scale=1.0).squeeze(1)


def _center(where: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
    """Returns (B, 1, 2) mean positions of the valid points, which padding must not affect."""
    if mask is None:
        return where.mean(dim=1, keepdim=True)
    valid = mask.unsqueeze(-1)
    return (where * valid).sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp(min=1)


def _without_garbage(
    mask: torch.Tensor, vectors: Optional[torch.Tensor], positions: Optional[torch.Tensor]
) -> Tuple[Optional[torch.Tensor], Optional[torch.Tensor]]:
    """Zeroes masked rows that are not unit vectors or not positions in an image.

    Padding may have any values. A weight of 0 does not remove NaN or values that overflow.
    """

    def cleaned(rows: Optional[torch.Tensor], largest: float) -> Optional[torch.Tensor]:
        if rows is None:
            return None
        sound = (rows.detach().abs() <= largest).all(dim=-1)
        return torch.where((mask | sound).unsqueeze(-1), rows, torch.zeros_like(rows))

    return cleaned(vectors, _LARGEST_COORDINATE), cleaned(positions, _LARGEST_POSITION)


def _as_batch(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    tensor = tensor.to(dtype)
    return tensor if tensor.dim() == 3 else tensor.unsqueeze(0)


def _largest_change(
    previous: torch.Tensor,
    points: torch.Tensor,
    mask: Optional[torch.Tensor],
    keys: Optional[torch.Tensor],
) -> float:
    if points.numel() == 0:
        return 0.0
    change = (points - previous).detach().abs().amax(dim=-1)
    if mask is not None and keys is None:
        change = change * mask
    return float(change.max())


def _check(
    x,
    bandwidth,
    num_loops,
    keys,
    positions,
    key_positions,
    spatial_bandwidth,
    shift_positions,
    mask,
    targets,
    target_positions,
):
    if x.dim() not in (2, 3) or not x.is_floating_point():
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}; allowed: floating point (N, D) or (B, N, D)"
        )
    if num_loops < 0:
        raise ValueError(f"num_loops is {num_loops}; allowed: 0 or more")
    # A bandwidth tensor is not read here, because that would synchronize the host with the device.
    if not isinstance(bandwidth, torch.Tensor) and not bandwidth >= _SMALLEST_BANDWIDTH:
        raise ValueError(f"bandwidth is {bandwidth}; allowed: {_SMALLEST_BANDWIDTH} or more")
    if isinstance(spatial_bandwidth, torch.Tensor):
        if spatial_bandwidth.shape != x.shape[:-1]:
            raise ValueError(
                f"spatial_bandwidth has shape {tuple(spatial_bandwidth.shape)}; allowed: a number "
                f"or one for each of the points, {tuple(x.shape[:-1])}"
            )
    elif spatial_bandwidth is not None and not spatial_bandwidth >= _SMALLEST_BANDWIDTH:
        raise ValueError(
            f"spatial_bandwidth is {spatial_bandwidth}; "
            f"allowed: {_SMALLEST_BANDWIDTH} or more, or None"
        )
    if (spatial_bandwidth is not None or shift_positions) and positions is None:
        raise ValueError("spatial_bandwidth and shift_positions need positions")
    if keys is not None and positions is not None and key_positions is None:
        raise ValueError("keys with positions need key_positions")
    if (targets is not None or target_positions is not None) and keys is None:
        raise ValueError("targets need keys")
    if targets is not None and shift_positions and target_positions is None:
        raise ValueError("targets with shift_positions need target_positions")
    for name, tensor, like, width in (
        ("keys", keys, None, x.shape[-1]),
        ("positions", positions, x, 2),
        ("key_positions", key_positions, keys, 2),
        ("targets", targets, keys, x.shape[-1]),
        ("target_positions", target_positions, keys, 2),
    ):
        if tensor is None:
            continue
        rows_fit = like is None or tensor.shape[:-1] == like.shape[:-1]
        if tensor.dim() != x.dim() or tensor.shape[-1] != width or not rows_fit:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, which does not fit x {tuple(x.shape)}"
            )
    if mask is not None:
        rows = (x if keys is None else keys).shape[:-1]
        if x.dim() != 3 or mask.dtype != torch.bool or mask.shape != rows:
            raise ValueError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}; allowed: bool of shape "
                f"{tuple(rows)}, batched x"
            )
