"""Valid and invalid files of contour maps and of annotators' contours."""

import os
import re

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from rpe_d2.evaluation.bsds_files import (
    as_boundary_map,
    check_sizes,
    read_boundary_annotations,
    read_boundary_map,
)
from tests.helpers.annotations import save_annotations

MAP = np.random.default_rng(0).integers(0, 256, (12, 17)).astype(np.uint8)


def message_of(function, *arguments, kind=ValueError) -> str:
    with pytest.raises(kind) as error:
        function(*arguments)
    message = str(error.value)
    assert "\n" not in message and str(arguments[-1]) in message
    return message


def test_the_same_map_in_every_format(tmp_path):
    Image.fromarray(MAP).save(tmp_path / "a.png")
    Image.fromarray(MAP.astype(np.uint16) * 257).save(tmp_path / "b.png")
    np.save(tmp_path / "c.npy", MAP)
    np.save(tmp_path / "d.npy", MAP / 255)
    np.save(tmp_path / "e.npy", MAP.astype(np.uint16) * 257)
    np.save(tmp_path / "f.NPY", np.asfortranarray(MAP / 255))
    (tmp_path / "f.NPY.npy").rename(tmp_path / "f.NPY")
    doubled = np.full((25, 35), 0.5)
    doubled[2::2, 2::2] = MAP / 255
    savemat(tmp_path / "g.mat", {"ucm2": doubled})
    for path in sorted(tmp_path.iterdir()):
        boundaries = read_boundary_map(str(path))
        assert boundaries.dtype == np.float64
        np.testing.assert_allclose(boundaries, MAP / 255, rtol=1e-12, err_msg=path.name)


def test_masks_are_0_and_1(tmp_path):
    Image.fromarray(MAP > 99).save(tmp_path / "a.png")  # one bit per pixel
    np.save(tmp_path / "b.npy", MAP > 99)
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(read_boundary_map(str(path)), MAP > 99)


def test_real_files(real_data):
    """Both formats of the official example are the same map, up to the rounding of PNGs."""
    bench = real_data("bsds500") / "bench"
    for path in (bench / "png").iterdir():
        picture = read_boundary_map(str(path))
        contours = read_boundary_map(str(bench / "ucm2" / f"{path.stem}.mat"))
        assert np.abs(picture - contours).max() <= 0.5 / 255 + 1e-9
        annotations = read_boundary_annotations(str(bench / "groundTruth" / f"{path.stem}.mat"))
        assert len(annotations) in (5, 6) and {a.dtype for a in annotations} == {np.dtype(bool)}
        check_sizes(picture, annotations, path.stem)


def test_annotations_round_trip(tmp_path):
    annotations = [MAP > 200, MAP > 255, MAP > 100]
    pred = read_boundary_annotations(save_annotations(tmp_path / "a.mat", annotations))
    np.testing.assert_array_equal(pred, annotations)


@pytest.mark.parametrize(
    "content, expected",
    [
        ({"other": 1, "more": 2}, "has no field groundTruth, found other, more"),
        ({}, "has no field groundTruth, found nothing"),
        ({"groundTruth": np.ones((3, 3))}, "groundTruth is not a cell array, found float64"),
        ({"groundTruth": np.empty((1, 0), object)}, "groundTruth is empty"),
    ],
)
def test_ground_truth_without_the_expected_fields(content, expected, tmp_path):
    savemat(tmp_path / "a.mat", content)
    assert expected in message_of(read_boundary_annotations, str(tmp_path / "a.mat"))


def test_invalid_ground_truth(tmp_path):
    path = tmp_path / "a.mat"
    cells = np.empty((1, 2), object)
    cells[0] = [{"Boundaries": MAP}, {"Segmentation": MAP}]
    savemat(path, {"groundTruth": cells})
    message = message_of(read_boundary_annotations, str(path))
    assert "groundTruth {2} has no Boundaries, found Segmentation" in message
    cells[0, 1] = 3.0
    savemat(path, {"groundTruth": cells})
    assert "found something other than a struct" in message_of(read_boundary_annotations, str(path))
    cells[0, 1] = {"Boundaries": "text"}
    savemat(path, {"groundTruth": cells})
    assert "groundTruth {2} is not a 2D map" in message_of(read_boundary_annotations, str(path))
    save_annotations(path, [MAP > 9, MAP.T > 9])
    message = message_of(read_boundary_annotations, str(path))
    assert "differ in size, found 12 x 17 and 17 x 12" in message
    save_annotations(path, [MAP > 255, MAP > 255])
    assert "ground truth is empty" in message_of(read_boundary_annotations, str(path))
    message_of(read_boundary_annotations, str(tmp_path / "none.mat"), kind=FileNotFoundError)


@pytest.mark.parametrize(
    "content, expected",
    [
        (np.zeros((4, 5, 3)), r"shape \(4, 5, 3\); allowed: \(H, W\)"),
        (np.zeros((0, 5)), "not a boundary map"),
        (np.full((4, 5), 1 + 2j), "found complex128"),
        (np.full((4, 5), -3), "found int64"),
        (np.full((4, 5), 255.0), "values from 255 to 255; allowed: 0 to 1"),
        (np.array([[0.5, np.nan]]), "values from nan"),
        (np.array([[0.5, np.inf]]), "to inf"),
        (np.array([[0.5, -0.1]]), "values from -0.1"),
        (np.array([[{}]], object), "cannot be read as an array: Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_are_not_maps(content, expected, tmp_path):
    np.save(tmp_path / "a.npy", content)
    assert re.search(expected, message_of(read_boundary_map, str(tmp_path / "a.npy")))


def test_pipes_are_not_waited_for(tmp_path):
    for name in ("a.png", "a.npy", "a.mat"):
        os.mkfifo(tmp_path / name)
        assert "is a pipe" in message_of(read_boundary_map, str(tmp_path / name))


def test_invalid_maps(tmp_path):
    path = str(tmp_path / "a.png")
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(path)
    assert "3 channels; allowed: grayscale" in message_of(read_boundary_map, path)
    Image.fromarray(MAP).save(path)
    content = (tmp_path / "a.png").read_bytes()
    for damaged, words in (
        (content[:90], "truncated"),
        (b"text", "cannot identify image file"),
        (b"", "the file is empty"),
    ):
        (tmp_path / "a.png").write_bytes(damaged)
        assert words in message_of(read_boundary_map, path)

    path = str(tmp_path / "a.mat")
    savemat(path, {"ucm": MAP})
    assert "has no field ucm2, found ucm" in message_of(read_boundary_map, path)
    savemat(path, {"ucm2": MAP / 255})
    assert "ucm2 has the size 12 x 17; allowed: the doubled" in message_of(read_boundary_map, path)
    savemat(path, {"ucm2": "text"})
    assert "ucm2 has the size 1" in message_of(read_boundary_map, path)
    # The header of a MATLAB 7.3 file, which is HDF5.
    (tmp_path / "a.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(64))
    assert "7.3" in message_of(read_boundary_map, path)

    np.savez(tmp_path / "a.npz", MAP)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    assert "archive of arrays" in message_of(read_boundary_map, str(tmp_path / "a.npy"))
    (tmp_path / "a.npy").write_bytes(b"")
    message_of(read_boundary_map, str(tmp_path / "a.npy"))
    message_of(read_boundary_map, str(tmp_path / "none.npy"), kind=FileNotFoundError)
    assert ".png, .npy, .mat" in message_of(read_boundary_map, str(tmp_path / "a.tif"))


def test_damaged_matlab_files_are_reported_in_one_line(tmp_path):
    """A flipped or missing byte leads to contours, or to one line that names the file."""
    path = tmp_path / "a.mat"
    save_annotations(path, [MAP > 200])
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content)
        position = int(generator.integers(len(content)))
        if generator.random() < 0.3:
            del damaged[position:]
        else:
            damaged[position] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        try:
            read_boundary_annotations(str(path))
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_sizes(tmp_path):
    with pytest.raises(ValueError, match="x: the boundary map is 17 x 12 and its ground truth 12"):
        check_sizes(as_boundary_map(MAP.T, "x"), [MAP > 9], "x")
    assert set(loadmat(save_annotations(tmp_path / "a.mat", [MAP]))) > {"groundTruth"}
