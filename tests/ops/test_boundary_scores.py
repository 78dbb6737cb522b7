import numpy as np
import pytest

from rpe_d2.ops.boundary_scores import (
    boundary_scores,
    boundary_thresholds,
    count_boundary_matches,
    count_human_matches,
    operating_point,
)

SIZE = (300, 400)  # the diagonal is 500 and the tolerance 3.75 pixels


def line(column, rows=SIZE[0]):
    mask = np.zeros(SIZE, bool)
    mask[:rows, column] = True
    return mask


def scores_of(boundaries, annotations, num_thresholds=3):
    return boundary_scores(
        count_boundary_matches(boundaries.astype(float), annotations, num_thresholds)[None]
    )


def test_thresholds():
    np.testing.assert_allclose(boundary_thresholds(99), np.arange(1, 100) / 100, rtol=1e-12)
    np.testing.assert_allclose(boundary_thresholds(1), [0.5])


@pytest.mark.parametrize("shift, expected", [(0, 1), (1, 1), (3, 1), (4, 0), (50, 0)])
def test_a_perfect_line_shifted(shift, expected):
    scores = scores_of(line(100 + shift), [line(100), line(100)])
    assert scores.ods[1:] == scores.ois[1:] == (expected, expected, expected)
    assert scores.images[0] == scores.ods
    assert scores.ap == 0  # a single recall is not a curve


def test_counts_of_several_annotators():
    """Pixels of all annotators count. A predicted pixel counts once, and any match suffices."""
    predicted = line(100) | line(200) | line(300)
    counts = count_boundary_matches(predicted.astype(float), [line(100), line(100) | line(200)], 2)
    height = SIZE[0]
    assert counts.tolist() == [[3 * height, 3 * height, 2 * height, 3 * height]] * 2
    # Both annotators drew line 100, and only one drew line 200.
    human = count_human_matches([line(100), line(100) | line(200)])
    assert human.tolist() == [2 * height, 3 * height, 2 * height, 3 * height]
    assert count_human_matches([line(100)]).tolist() == [0] * 4


def test_one_to_one():
    """Two parallel lines near one annotated line: half of their pixels have no match."""
    counts = count_boundary_matches((line(99) | line(101)).astype(float), [line(100)], 1)
    assert counts.tolist() == [[300, 300, 300, 600]]


def test_thick_boundaries_are_thinned():
    thick = line(99) | line(100) | line(101)
    matched_truth, truth, matched_predicted, predicted = count_boundary_matches(
        thick.astype(float), [line(100)], 1
    )[0]
    assert predicted == matched_predicted == matched_truth and truth - matched_truth <= 2


def test_thresholds_are_inclusive_and_equal_maps_share_counts():
    boundaries = 0.25 * line(100) + 0.75 * line(200)
    counts = count_boundary_matches(boundaries, [line(100)], 3)
    assert counts[:, 3].tolist() == [600, 300, 300]
    assert counts[:, 0].tolist() == [300, 0, 0]


def test_interpolated_scores_by_hand():
    """Recall is 1, then 1/4 at the upper threshold. Precision is 1/4, then 1."""
    counts = np.array([[[100, 100, 100, 400], [25, 100, 100, 100]]])
    scores = boundary_scores(counts)
    # Half way both are 5/8. The nearest of the 100 search points are 1/198 off the middle.
    assert scores.ods.f_measure == pytest.approx(0.625, abs=1e-4)
    assert scores.ods.threshold == pytest.approx(0.5, abs=0.01)
    assert scores.ois.f_measure == pytest.approx(0.4)  # no interpolation
    # The precision is 5/4 - recall from .25 to 1, and 0 below.
    recalls = np.arange(25, 101) / 100
    assert scores.ap == pytest.approx((1.25 - recalls).sum() / 100)


def test_ois_takes_the_best_threshold_of_each_image():
    good, bad = [100, 100, 100, 100], [0, 100, 0, 100]
    scores = boundary_scores(np.array([[good, bad], [bad, good]]))
    assert scores.ois.f_measure == 1 and scores.ods.f_measure == pytest.approx(0.5)
    assert [point.f_measure for point in scores.images] == [1, 1]


def test_nothing_predicted():
    scores = scores_of(np.zeros(SIZE), [line(100)])
    assert scores.ods[1:] == scores.ois[1:] == (0, 0, 0) and scores.ap == 0
    assert operating_point(np.zeros(4)) == (None, 0, 0, 0)
