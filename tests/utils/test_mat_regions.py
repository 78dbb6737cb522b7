"""Region proposals in MATLAB files of several layouts."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from scipy.io import savemat

from rpe_d2.utils.mat_regions import read_mat_regions

SUPERPIXELS = np.array([[1, 1, 2, 2], [3, 3, 2, 2], [3, 3, 4, 4]], np.uint16)
LABELS = [[1, 2], [3], [4, 1, 3]]
SCORES = np.array([0.5, 0.9, 0.1])


def cells(values) -> np.ndarray:
    array = np.empty((len(values), 1), object)
    for number, value in enumerate(values):
        array[number, 0] = np.array(value, float)[None]
    return array


def save(path, **variables) -> str:
    savemat(path, variables)
    return str(path)


def masks_of(regions) -> list:
    return [mask_util.decode(region.rle).astype(bool) for region in regions]


MCG = {"superpixels": SUPERPIXELS, "labels": cells(LABELS), "scores": SCORES[:, None]}


@pytest.mark.parametrize("struct", ["", "candidates", "proposals"])
def test_regions_of_superpixels(tmp_path, struct):
    path = save(tmp_path / "a.mat", **({struct: MCG} if struct else MCG))
    regions = read_mat_regions(path, 10)
    assert [region.score for region in regions] == [0.9, 0.5, 0.1]
    for mask, number in zip(masks_of(regions), (1, 0, 2)):
        np.testing.assert_array_equal(mask, np.isin(SUPERPIXELS, LABELS[number]))
    assert all(region.rle["size"] == [3, 4] for region in regions)
    assert [region.score for region in read_mat_regions(path, 2)] == [0.9, 0.5]


def test_masks_and_regions_without_scores(tmp_path):
    masks = np.random.default_rng(0).random((5, 6, 3)) > 0.5
    regions = read_mat_regions(save(tmp_path / "a.mat", masks=masks.astype(np.uint8)), 10)
    assert [region.score for region in regions] == [0, -1, -2]
    np.testing.assert_array_equal(np.stack(masks_of(regions), axis=2), masks)
    single = read_mat_regions(save(tmp_path / "b.mat", masks=masks[:, :, :1].astype(float)), 10)
    np.testing.assert_array_equal(masks_of(single)[0], masks[:, :, 0])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": None}, "has superpixels, scores; allowed: superpixels and labels, or masks"),
        ({"labels": cells([[1], [9], [2]])}, "a region has the superpixel 9; allowed: 0 to 4"),
        ({"labels": np.ones((3, 1))}, "labels are .*; allowed: a cell array of lists"),
        ({"superpixels": SUPERPIXELS * 1000.0}, "superpixels are 1000.* allowed: 0 to"),
        ({"superpixels": SUPERPIXELS[None, :, :, None]}, "superpixels are .*allowed: numbers"),
        ({"scores": SCORES[:2]}, "scores are .*; allowed: a finite number for each of 3 regions"),
        ({"scores": np.array([0, np.nan, 1])}, "scores are .*; allowed: a finite number"),
    ],
)
def test_a_wrong_file_is_reported_in_one_line(tmp_path, change, message):
    content = {name: value for name, value in {**MCG, **change}.items() if value is not None}
    path = save(tmp_path / "a.mat", **content)
    with pytest.raises(ValueError, match=message) as error:
        read_mat_regions(path, 10)
    assert str(error.value).startswith(path) and "\n" not in str(error.value)


def test_a_damaged_file_is_reported_in_one_line(tmp_path):
    path = tmp_path / "a.mat"
    path.write_bytes(b"no MATLAB file" * 20)
    with pytest.raises(ValueError, match="a.mat: cannot be read as a MATLAB file"):
        read_mat_regions(str(path), 10)
