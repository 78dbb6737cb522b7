"""How far spatial propagation is from an orthogonal map, for given gates.

An orthogonal map G keeps the energy of its input and is undone by its transpose. Temporal
propagation (Liu et al., "Switchable Temporal Propagation Network", ECCV 2018) asks for it. A
propagation in one direction is orthogonal only where it is the identity: its matrix is triangular,
and its first column of pixels is kept.
"""

from typing import Iterator, NamedTuple, Optional

import torch

from .propagation import spatial_propagation

__all__ = ["Orthogonality", "measure_orthogonality"]

# Maps of more pixels are measured with random probes only.
_MOST_PIXELS = 4096
# Vectors are propagated together up to this many values (float32, four directions: 64 MB).
_VALUES_PER_CHUNK = 1 << 22


class Orthogonality(NamedTuple):
    """Measures of the four directions, in the order of the gates, and of their merged result.

    Attributes:
        deviation: (5,) norm of G^T G - I divided by that of I (Frobenius). 0: G is orthogonal.
        energy: (5,) mean energy of G x divided by that of x, for white noise x. 1: it is kept.
    """

    deviation: torch.Tensor
    energy: torch.Tensor


def measure_orthogonality(
    gates: torch.Tensor,
    weights: Optional[torch.Tensor] = None,
    num_probes: int = 0,
    generator: Optional[torch.Generator] = None,
) -> Orthogonality:
    """Measures the propagation by given gates.

    The N x N matrices of maps with N pixels are never stored. Either all N unit vectors are
    propagated, a chunk at a time, and the measures are exact, or they are estimated from random
    vectors of -1 and 1.

    Args:
        gates: (B, C, 12 or 4, H, W) normalized gates; see
            :func:`rpe_d2.ops.propagation.spatial_propagation`. The measures are over all B and C.
        weights: weights of the directions in the merged result, which sum to 1, in a shape that
            broadcasts to (4, B, C, H, W). None: the mean.
        num_probes: number of random vectors. 0: exact measures.
        generator: source of the random vectors.

    Raises:
        ValueError: The maps are too large for exact measures, or ``num_probes`` is negative.
    """
    if num_probes < 0:
        raise ValueError(f"num_probes is {num_probes}; allowed: 0 or more")
    batch, channels, _, height, width = gates.shape
    pixels = height * width
    if num_probes == 0 and pixels > _MOST_PIXELS:
        raise ValueError(
            f"num_probes is 0 for maps of {height} x {width}; allowed: 1 or more above "
            f"{_MOST_PIXELS} pixels"
        )
    gates = gates.detach()
    if weights is None:
        weights = gates.new_full((4, 1, 1, 1, 1), 0.25)
    chunk = max(1, _VALUES_PER_CHUNK // max(1, batch * channels * pixels))
    squares = torch.zeros(2, 5, dtype=torch.float64)
    for vectors in _vectors(gates, num_probes, chunk, generator):
        squares += _squares(vectors, gates, weights.detach())
    # A unit vector has the energy 1, and a random one N.
    total = batch * channels * (num_probes * pixels if num_probes else pixels)
    deviation, energy = squares / total
    return Orthogonality(deviation.sqrt(), energy)


def _vectors(
    gates: torch.Tensor, num_probes: int, chunk: int, generator: Optional[torch.Generator]
) -> Iterator[torch.Tensor]:
    """Yields vectors (P, H, W) to propagate in all maps, at most ``chunk`` at a time."""
    height, width = gates.shape[-2:]
    if num_probes:
        for first in range(0, num_probes, chunk):
            count = min(chunk, num_probes - first)
            bits = torch.randint(2, (count, height, width), generator=generator)
            yield (2 * bits - 1).to(gates)
        return
    for first in range(0, height * width, chunk):
        places = torch.arange(first, min(first + chunk, height * width))
        vectors = gates.new_zeros(len(places), height * width)
        vectors[torch.arange(len(places)), places] = 1
        yield vectors.unflatten(1, (height, width))


def _squares(vectors: torch.Tensor, gates: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the sums of |G^T G x - x|^2 and |G x|^2 over vectors and maps, (2, 5) float64."""
    batch, channels = gates.shape[:2]
    count = len(vectors)
    x = vectors[:, None, None].expand(-1, batch, channels, -1, -1).flatten(0, 1)
    repeated = gates.repeat(count, 1, 1, 1, 1)
    sums = []
    with torch.enable_grad():
        x = x.contiguous().requires_grad_()
        directions = spatial_propagation(x, repeated, "none")  # (4, P B, C, H, W)
        merged = (weights[:, None] * directions.unflatten(1, (count, batch))).sum(dim=0)
        for result in (*directions.unbind(), merged.flatten(0, 1)):
            # The gradient of <G x, y> is G^T y.
            (back,) = torch.autograd.grad(result, x, result.detach(), retain_graph=True)
            sums.append(torch.stack([(back - x).square().sum(), result.square().sum()]))
    return torch.stack(sums, dim=1).detach().double().cpu()
