"""Checks of masks in COCO's format, which run before pycocotools decodes anything."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from rpe_d2.utils.coco_annotations import (
    box_problem,
    check_stored_rles,
    compressed_runs,
    mask_problem,
    replacement_box,
    usable_segmentation,
)


def runs_of(mask):
    """Returns the lengths of a mask's runs, of background first."""
    flat = np.concatenate([[0], mask.T.ravel(), [2]])
    edges = np.concatenate([[0], np.flatnonzero(np.diff(flat))])
    return np.diff(edges).tolist()


def test_compressed_text_is_decoded_as_pycocotools_does():
    rng = np.random.default_rng(0)
    for height, width, density in [(1, 1, 1), (7, 5, 0.5), (40, 60, 0.02), (3000, 2000, 1e-5)] * 5:
        mask = (rng.random((height, width)) < density).astype(np.uint8)
        rle = mask_util.encode(np.asfortranarray(mask))
        runs = compressed_runs(rle["counts"])
        assert runs.tolist() == runs_of(mask)
        assert runs[1::2].sum() == mask_util.area(rle)
        assert mask_problem(rle, height, width) is None
        assert mask_problem({**rle, "counts": rle["counts"].decode()}, height, width) is None
        listed = {"size": [height, width], "counts": runs_of(mask)}
        assert mask_problem(listed, height, width) is None


def short_text(height, width, counts):
    """Compresses runs that do not sum to the number of pixels."""
    return mask_util.frPyObjects({"size": [height, width], "counts": counts}, height, width)


@pytest.mark.parametrize(
    "counts, total", [([5, 3], 8), ([5, 3, 20], 28), ([5, 3, 8, 4], 20), ([], 0)]
)
def test_runs_must_sum_to_the_number_of_pixels(counts, total):
    for rle in ({"size": [4, 4], "counts": counts}, short_text(4, 4, counts)):
        problem = mask_problem(rle, 4, 4)
        assert f"sum to {total} in 4 x 4 = 16 pixels" in problem.found
        assert problem.allowed == "runs that sum to height x width"


@pytest.mark.parametrize("text", ["~~nonsense", "o", "0 0", "é", "oooooooooo0", "\x00", "5O"])
def test_malformed_text(text):
    assert "counts" in mask_problem({"size": [4, 4], "counts": text}, 4, 4).found


@pytest.mark.parametrize(
    "size", [None, [4], [4, "4"], [4.0, 4.0], [0, 16], [-4, -4], [True, 16], [2, 8]]
)
def test_malformed_size(size):
    assert "size" in mask_problem({"size": size, "counts": [16]}, 4, 4).found


def test_the_first_five_entries_are_named():
    bad = {"size": [4, 4], "counts": [5, 3]}
    good = {"size": [4, 4], "counts": [5, 3, 8]}
    check_stored_rles("x.json", [good, [[1, 1, 2, 1, 2, 2]]])
    with pytest.raises(ValueError) as error:
        check_stored_rles("x.json", [good, *[bad] * 7])
    message = str(error.value)
    assert message.startswith("x.json: 7 of 8 masks or boxes cannot be used: entry 1 has RLE runs")
    assert message.count("sum to 8 in 4 x 4 = 16 pixels") == 5 and "entry 6" not in message
    assert message.endswith("…; allowed: runs that sum to height x width")


@pytest.mark.parametrize("far", [1e8, -1e8, 301, float("nan"), float("inf"), 10**400])
def test_coordinates_far_outside_are_refused(far):
    assert mask_problem([[1, 1, 9, 1, 9, far]], 30, 30)
    if far == far and abs(far) < 1e300:
        assert "at most 10 times" in box_problem([1, 1, far, 5], 30, 30).allowed
        assert "at most 10 times" in mask_problem([[1, 1, 9, 1, far, 9]], 30, 30).allowed


def test_coordinates_near_the_image_are_allowed():
    assert mask_problem([[-300, 1, 300, 1, 300, 300]], 30, 30) is None
    assert box_problem([-5, -5, 60, 60], 30, 30) is None


def test_small_contours_through_the_centers_of_pixels_keep_their_boxes():
    """The corners of a square of 3 x 3 pixels are 2 apart where they are centers of pixels."""
    contour = [[5, 5, 7, 5, 7, 7, 5, 7]]
    annotation = {"bbox": [5, 5, 3, 3], "segmentation": contour}
    assert replacement_box(annotation, 20, 20) is None
    assert replacement_box({**annotation, "bbox": [5, 5, 7, 7]}, 20, 20) == (5, 5, 2, 2)


def test_the_replacement_is_the_box_of_the_pixels():
    """A perfect prediction of the mask has a perfect box, whatever the corners are."""
    contour = [[10.3, 20.2, 30.9, 24.6, 18.7, 41.1]]
    drawn = mask_util.merge(mask_util.frPyObjects(contour, 60, 60))
    annotation = {"bbox": [0, 0, 0, 0], "segmentation": contour}
    assert replacement_box(annotation, 60, 60) == tuple(mask_util.toBbox(drawn))
    assert replacement_box({**annotation, "segmentation": drawn}, 60, 60) == tuple(
        mask_util.toBbox(drawn)
    )


@pytest.mark.parametrize("counts", [[1200, 0, 1200], [0, 0, 400, 2000], [40, 0, 0, 40, 2320]])
@pytest.mark.parametrize("compressed", [False, True])
def test_empty_runs_do_not_change_boxes_or_ious(counts, compressed):
    """pycocotools says that such a mask has an IoU of 0 with itself."""
    rle = {"size": [40, 60], "counts": counts}
    expected = mask_util.decode(mask_util.frPyObjects(rle, 40, 60))
    rle = mask_util.frPyObjects(rle, 40, 60) if compressed else rle
    annotation = {"bbox": [0, 0, 1, 1], "segmentation": rle}
    usable = usable_segmentation(annotation)
    np.testing.assert_array_equal(mask_util.decode(usable), expected)
    rows, columns = expected.nonzero()
    if len(rows) == 0:
        assert replacement_box(annotation, 40, 60) is None
        return
    assert mask_util.iou([usable], [usable], [0]) == 1
    corner = columns.min(), rows.min()
    size = columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()
    assert replacement_box(annotation, 40, 60) == (*corner, *size)
