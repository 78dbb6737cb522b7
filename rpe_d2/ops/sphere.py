"""Bounds on the number of groups that fit on a sphere for a given margin of the loss."""

import math
from typing import Tuple

# Largest cosine between any two of Q points that are spread as widely as possible on the sphere in
# three dimensions (Tammes problem). Holds the Q that have a proof of optimality and for which the
# answer is neither the simplex nor the cross-polytope.
_TAMMES_COSINE = {
    7: math.cos(math.radians(77.8695421)),
    8: math.cos(math.radians(74.8584922)),
    9: 1.0 / 3.0,
    10: math.cos(math.radians(66.1468220)),
    11: 1.0 / math.sqrt(5.0),
    12: 1.0 / math.sqrt(5.0),
    13: math.cos(math.radians(57.1367031)),
    14: math.cos(math.radians(55.6705700)),
    24: math.cos(math.radians(43.6907671)),
}


def loss_lower_bound(num_groups: int, margin: float) -> float:
    """Returns the smallest possible value of the linear pair loss with joint normalization.

    Corollary of Proposition 1 (Kong & Fowlkes, CVPR 2018):
    ``max(0, (Q-2)/(2Q) - margin (Q-1)/Q)``. It holds in every dimension and for all group sizes. Q
    simplex vertices (dimension >= Q - 1) attain it if ``margin <= (Q-2) / (2 (Q-1))``.

    Args:
        num_groups: number of groups Q, >= 1.
        margin: calibrated cosine similarity in 0 to 1 below which two groups do not repel.

    Raises:
        ValueError: An argument is out of range.
    """
    _check_groups(num_groups)
    if not 0.0 <= margin <= 1.0:
        raise ValueError(f"margin is {margin}; allowed: 0 to 1")
    return max(0.0, ((num_groups - 2) / 2 - margin * (num_groups - 1)) / num_groups)


def min_margin(num_groups: int, dim: int) -> Tuple[float, bool]:
    """Returns the smallest margin for which the pair loss of ``num_groups`` groups can be zero.

    A margin ``a`` is feasible if there are Q unit vectors in R^dim whose calibrated similarity
    ``(1 + cos) / 2`` never exceeds ``a``, that is a spherical code. Closed forms exist in two
    dimensions, for ``Q <= 2 dim`` (simplex, then cross-polytope: Rankin) and for a few Q in three
    dimensions (Tammes). Otherwise the value is a lower bound.

    Args:
        num_groups: number of groups Q, >= 1.
        dim: embedding dimension, >= 1.

    Returns:
        The margin in 0 to 1, and whether it is exact. If it is not, every feasible margin is at
        least this value, but the value itself may be infeasible.

    Raises:
        ValueError: An argument is out of range.
    """
    _check_groups(num_groups)
    if dim < 1:
        raise ValueError(f"dim is {dim}; allowed: 1 or more")
    cosine, exact = _smallest_max_cosine(num_groups, dim)
    return (1.0 + cosine) / 2.0, exact


def _check_groups(num_groups: int) -> None:
    if num_groups < 1:
        raise ValueError(f"num_groups is {num_groups}; allowed: 1 or more")


def _smallest_max_cosine(num_points: int, dim: int) -> Tuple[float, bool]:
    if num_points == 1:
        return -1.0, True
    if num_points <= dim + 1:
        return -1.0 / (num_points - 1), True
    if dim == 1:
        return 1.0, True
    if dim == 2:
        return math.cos(2.0 * math.pi / num_points), True
    if num_points <= 2 * dim:
        return 0.0, True
    if dim == 3 and num_points in _TAMMES_COSINE:
        return _TAMMES_COSINE[num_points], True
    bounds = [0.0, _cap_packing_bound(num_points, dim), _levenshtein_bound(num_points, dim)]
    if dim == 3:
        bounds.append(_fejes_toth_bound(num_points))
        # A subset of a code is a code, so the optimal codes of fewer points bound this one too.
        bounds.extend(cosine for points, cosine in _TAMMES_COSINE.items() if points < num_points)
    return max(bounds), False


def _cap_packing_bound(num_points: int, dim: int) -> float:
    """Bounds the cosine by the areas of disjoint caps, which sum to at most the sphere's area."""
    from scipy.special import betaincinv

    # A cap of angular radius phi <= pi/2 covers a fraction betainc((dim-1)/2, 1/2, sin(phi)^2) / 2
    # of the sphere.
    sin_squared = betaincinv((dim - 1) / 2, 0.5, min(1.0, 2.0 / num_points))
    return 1.0 - 2.0 * float(sin_squared)  # cos(2 phi)


def _levenshtein_bound(num_points: int, dim: int) -> float:
    """Inverts the third Levenshtein bound.

    At most ``dim (1-s) (2 + (dim+1) s) / (1 - dim s^2)`` points have cosines <= s.
    """
    from scipy.optimize import brentq

    largest = (math.sqrt(dim + 3) - 1) / (dim + 2)  # the bound's range of validity

    def excess(cosine: float) -> float:
        points = dim * (1 - cosine) * (2 + (dim + 1) * cosine) / (1 - dim * cosine**2)
        return points - num_points

    if excess(largest) <= 0:  # beyond the range of validity, where the cosine is at least this
        return largest
    return float(brentq(excess, 0.0, largest)) if excess(0.0) < 0 else 0.0


def _fejes_toth_bound(num_points: int) -> float:
    """Computes Fejes Toth's bound in three dimensions, tight for 3, 4, 6 and 12 points."""
    omega = num_points / (num_points - 2) * math.pi / 6
    return (1.0 / math.tan(omega) ** 2 - 1.0) / 2.0
