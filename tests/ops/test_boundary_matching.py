import numpy as np
import pytest

from rpe_d2.ops.boundary_matching import match_boundaries
from tests.reference.boundary_matching import dense_matching
from tests.reference.memory import peak_bytes


def random_maps(seed):
    generator = np.random.default_rng(seed)
    size = generator.integers(4, 24, 2)
    densities = generator.uniform(0, 0.4, 2)
    return [generator.random(size) < density for density in densities]


def pairs_and_cost(predicted, truth, max_distance):
    """Checks that the result is a valid matching, and returns its size and cost."""
    first, second = match_boundaries(predicted, truth, max_distance)
    assert len(first) == len(second)
    assert len(set(first.tolist())) == len(first) and len(set(second.tolist())) == len(second)
    assert predicted.reshape(-1)[first].all() and truth.reshape(-1)[second].all()
    assert (np.diff(first) > 0).all()
    width = predicted.shape[1]
    steps = np.array(np.divmod(first, width)) - np.array(np.divmod(second, width))
    distances = np.hypot(*steps)
    assert (distances <= max_distance).all()
    return len(first), pytest.approx(float(distances.sum()), abs=1e-6)


@pytest.mark.parametrize("max_distance", [0, 1, 2.5, 4.337, 100])
def test_agrees_with_a_dense_assignment(max_distance):
    for seed in range(40):
        maps = random_maps(seed)
        assert pairs_and_cost(*maps, max_distance) == dense_matching(*maps, max_distance)


def test_the_number_of_pairs_comes_before_their_distances():
    """A pixel gives up a partner at distance 0 if that adds a pair."""
    predicted, truth = np.zeros((1, 9), bool), np.zeros((1, 9), bool)
    predicted[0, [2, 4]] = True
    truth[0, [4, 6]] = True
    assert pairs_and_cost(predicted, truth, 2) == (2, 4)  # 2-4 and 4-6, not 4-4 alone
    # The same along a chain of 200 pixels, whose distances add up.
    predicted, truth = np.zeros((1, 900), bool), np.zeros((1, 900), bool)
    predicted[0, 0:800:4] = True
    truth[0, 4:804:4] = True
    assert pairs_and_cost(predicted, truth, 4) == (200, 800)


@pytest.mark.parametrize(
    "change", [np.flipud, np.fliplr, np.transpose, lambda x: np.pad(x, ((3, 1), (2, 5)))]
)
def test_symmetries(change):
    for seed in range(10):
        predicted, truth = random_maps(seed)
        expected = pairs_and_cost(predicted, truth, 3)
        assert pairs_and_cost(truth, predicted, 3) == expected
        assert pairs_and_cost(change(predicted).copy(), change(truth).copy(), 3) == expected


def test_the_distance_is_inclusive():
    predicted, truth = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    predicted[0, 0] = truth[3, 4] = True
    assert pairs_and_cost(predicted, truth, 5)[0] == 1
    assert pairs_and_cost(predicted, truth, 4.999)[0] == 0


def test_nothing_to_match():
    empty, full = np.zeros((5, 6), bool), np.ones((5, 6), bool)
    for predicted, truth in ((empty, full), (full, empty), (empty, empty)):
        assert pairs_and_cost(predicted, truth, 2) == (0, 0)
    assert pairs_and_cost(full, full, 2) == (30, 0)
    with pytest.raises(ValueError, match=r"\(5, 6\) and \(6, 5\)"):
        match_boundaries(full, full.T, 2)


LARGE = """
import numpy as np
from rpe_d2.ops.boundary_matching import _near_pairs

predicted, truth = np.zeros((2, 3000, 4000), bool)
predicted[100::150], truth[103::150] = True, True
"""


def test_the_search_for_pairs_fits_into_memory_on_twelve_megapixels():
    """The indices of all 80,000 true pixels times all 4,400 steps would take 2.8 GB."""
    peak = peak_bytes(LARGE, "assert len(_near_pairs(predicted, truth, 37.5)[0]) > 5e6")
    assert peak < 1.5e9


def test_maps_with_too_many_pairs_are_refused_early():
    full = np.ones((400, 400), bool)
    with pytest.raises(ValueError, match="of 400 x 400 pixels have more than 33554432 pairs"):
        match_boundaries(full, full, 37.5)
