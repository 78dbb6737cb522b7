"""Key frames from pictures, label maps and strokes."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from rpe_d2.inference.key_frames import (
    ColorKeys,
    LabelKeys,
    complete_by_edges,
    find_keys,
)
from rpe_d2.utils.frame_properties import split_lab
from rpe_d2.utils.video_files import open_clip
from tests.helpers.clips import moving_square, write_frames

COUNT = 4


@pytest.fixture(scope="module")
def scene():
    return moving_square(COUNT)


@pytest.fixture
def clip(scene, tmp_path):
    """Frames 1 to 4, in gray."""
    gray = [np.asarray(Image.fromarray(f).convert("L").convert("RGB")) for f in scene[0]]
    with open_clip(str(write_frames(tmp_path / "clip", gray, first=1))) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "keys"
    path.mkdir()
    return path


def found(clip, path) -> dict:
    return find_keys(clip, str(path), "--keys")


def test_files_belong_to_the_frames_of_their_numbers(clip, scene, folder):
    for number in (4, 2):
        Image.fromarray(scene[0][number - 1]).save(folder / f"key{number:02d}.png")
    files = found(clip, folder)
    assert files == {1: str(folder / "key02.png"), 3: str(folder / "key04.png")}
    keys = ColorKeys(clip, files)
    assert keys.indices == [1, 3]
    first, second = keys.read([1, 3])
    np.testing.assert_array_equal(first, split_lab(scene[0][1])[1])
    np.testing.assert_array_equal(second, split_lab(scene[0][3])[1])
    digest = keys.digest()
    Image.fromarray(scene[0][0]).save(folder / "key04.png")
    assert ColorKeys(clip, files).digest() != digest


def test_a_single_file(clip, scene, tmp_path):
    for name, index in (("start.png", 0), ("frame_3.png", 2)):
        Image.fromarray(scene[0][0]).save(tmp_path / name)
        assert found(clip, tmp_path / name) == {index: str(tmp_path / name)}


def test_results_have_the_lightness_of_the_frame_and_the_colors_of_the_key(clip, scene, folder):
    Image.fromarray(scene[0][2]).save(folder / "3.png")
    keys = ColorKeys(clip, found(clip, folder))
    (colors,) = keys.read([2])
    frame = clip.reader().read(2)
    picture = keys.result(colors, frame)
    assert picture.dtype == np.uint8
    assert np.abs(split_lab(picture)[0] - split_lab(frame)[0]).mean() < 0.005
    assert np.abs(split_lab(picture)[1] - colors).mean() < 0.01


def test_label_maps_keep_their_labels_whatever_the_type(clip, scene, folder):
    labels = scene[1][0].astype(np.uint32) * 70_000
    tifffile.imwrite(folder / "1.tif", labels)
    other = scene[1][3].astype(np.int32) * 9
    other[:4] = 5
    np.save(folder / "4.npy", other.astype(np.int64))
    keys = LabelKeys(clip, found(clip, folder))
    assert keys.labels == [0, 5, 9, 70_000] and keys.dtype == np.uint32
    first, second = keys.read([0, 3])
    assert first.shape == (4, 48, 64) and first.dtype == np.float32
    np.testing.assert_array_equal(first.sum(axis=0), 1)
    np.testing.assert_array_equal(keys.result(first, None), labels)
    np.testing.assert_array_equal(keys.result(second, None), other)
    assert keys.read([0])[0].shape == (2, 48, 64)  # only the labels that are needed


def test_color_strokes_are_spread_along_edges(clip, scene, folder):
    """Each of two regions of a frame gets the color of its stroke."""
    halves = np.full((48, 64, 3), 60, np.uint8)
    halves[:, 32:] = 160
    with open_clip(str(write_frames(folder.parent / "halves", [halves]))) as two:
        strokes = np.zeros((48, 64, 4), np.uint8)
        strokes[10:12, 4:9] = 200, 60, 60, 255
        strokes[30, 50:60] = 40, 90, 200, 255
        Image.fromarray(strokes).save(folder / "0.png")
        on_frame = halves.copy()
        on_frame[strokes[:, :, 3] > 0] = strokes[strokes[:, :, 3] > 0, :3]
        Image.fromarray(on_frame).save(folder.parent / "0.png")
        for path in (folder, folder.parent / "0.png"):  # with and without opacities
            (colors,) = ColorKeys(two, found(two, path), complete_by_edges).read([0])
            expected = split_lab(strokes[:, :, :3])[1]
            for side, pixel in ((np.s_[:, :, :32], (10, 5)), (np.s_[:, :, 32:], (30, 55))):
                target = expected[:, pixel[0], pixel[1]][:, None, None]
                assert np.abs(colors[side] - target).max() < 0.02


def test_label_strokes_are_spread_and_known_pixels_stay(clip, scene, folder):
    frames, labels = scene
    strokes = np.full((48, 64), 255, np.uint8)
    strokes[10:14, 12:16] = 3  # on the square
    strokes[40, :] = strokes[:, 60] = 0
    Image.fromarray(strokes).save(folder / "1.png")
    keys = LabelKeys(clip, found(clip, folder), complete_by_edges)
    assert keys.labels == [0, 3] and keys.dtype == np.uint8
    result = keys.result(keys.read([0])[0], None)
    known = strokes != 255
    assert np.array_equal(result[known], strokes[known]) and set(np.unique(result)) == {0, 3}


@pytest.mark.parametrize(
    "name, array, kind, message",
    [
        ("5.png", np.zeros((48, 64), np.uint8), LabelKeys, "frame number 5; allowed .* 1 to 4"),
        ("a.png", np.zeros((48, 64), np.uint8), LabelKeys, "a.png has no number in its name"),
        ("1.png", np.zeros((48, 60), np.uint8), LabelKeys, "60 x 48 pixels; .* clip, 64 x 48"),
        ("1.png", np.zeros((40, 64, 3), np.uint8), ColorKeys, "64 x 40 pixels; .* 64 x 48"),
        ("1.png", np.zeros((48, 64, 3), np.uint8), LabelKeys, "allowed: one index per pixel"),
        ("1.npy", np.full((48, 64), -2), LabelKeys, "has the label -2; allowed: 0 or more"),
    ],
)
def test_wrong_files(clip, folder, name, array, kind, message):
    path = folder / name
    np.save(path, array) if path.suffix == ".npy" else Image.fromarray(array).save(path)
    with pytest.raises(ValueError, match=message) as error:
        kind(clip, found(clip, folder))
    assert "\n" not in str(error.value)


def test_files_without_strokes(clip, folder):
    Image.fromarray(clip.reader().read(1)).save(folder / "2.png")
    with pytest.raises(ValueError, match="2.png has no strokes; allowed: one or more"):
        ColorKeys(clip, found(clip, folder), complete_by_edges)
    Image.fromarray(np.full((48, 64, 4), 255, np.uint8)).save(folder / "2.png")
    with pytest.raises(ValueError, match="a value at every pixel.*transparent pixels, or"):
        ColorKeys(clip, found(clip, folder), complete_by_edges)
    Image.fromarray(np.ones((48, 64), np.uint8)).save(folder / "2.png")
    with pytest.raises(ValueError, match="a value at every pixel.*few pixels.*and 255 elsewhere"):
        LabelKeys(clip, found(clip, folder), complete_by_edges)
    Image.fromarray(np.full((48, 64), 255, np.uint8)).save(folder / "2.png")
    with pytest.raises(ValueError, match="2.png has no strokes"):
        LabelKeys(clip, found(clip, folder), complete_by_edges)


def test_wrong_folders(clip, folder):
    with pytest.raises(ValueError, match="--keys .* has no images; allowed: key frames"):
        found(clip, folder)
    with pytest.raises(ValueError, match="--keys .*none: no such file or folder"):
        found(clip, folder / "none")
    for name in ("1.png", "01.png"):
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(folder / name)
    with pytest.raises(ValueError, match="has the number of 01.png; allowed: one file for each"):
        found(clip, folder)
