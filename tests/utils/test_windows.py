"""Parts of TIFF files and Zarr arrays are those of the whole image."""

import numpy as np
import pytest
import tifffile
import zarr

from rpe_d2.utils.images import ImageReader
from rpe_d2.utils.readable import UnreadableImage
from rpe_d2.utils.windows import NetworkWindows, number_of_pixels, open_windows

WINDOWS = [((0, 70), (0, 90)), ((3, 41), (17, 66)), ((33, 34), (0, 90)), ((64, 70), (80, 90))]


def image(*shape, dtype=np.uint16, seed=0):
    return np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)


@pytest.mark.parametrize(
    "shape, options",
    [
        ((70, 90), {}),
        ((70, 90), {"rowsperstrip": 7}),
        ((70, 90), {"tile": (32, 16)}),
        ((70, 90, 3), {"tile": (32, 16), "photometric": "rgb"}),
        ((70, 90, 3), {"tile": (16, 32), "compression": "zlib", "photometric": "rgb"}),
        ((3, 70, 90), {"tile": (16, 32), "photometric": "rgb", "planarconfig": "separate"}),
        ((3, 70, 90), {"rowsperstrip": 9, "photometric": "rgb", "planarconfig": "separate"}),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff(tmp_path, shape, options, dtype):
    pixels = image(*shape, dtype=dtype)
    path = str(tmp_path / "image.tif")
    tifffile.imwrite(path, pixels, **options)
    whole = pixels.transpose(1, 2, 0) if shape[0] == 3 else pixels.reshape(70, 90, -1)
    assert number_of_pixels(path) == 6300
    with open_windows(path) as stored:
        assert stored.shape == whole.shape and stored.dtype == dtype
        for rows, columns in WINDOWS:
            found = stored.read(slice(*rows), slice(*columns))
            np.testing.assert_array_equal(found, whole[slice(*rows), slice(*columns)])


def test_a_plane_of_a_stack(tmp_path):
    stack = image(4, 70, 90)
    tifffile.imwrite(
        tmp_path / "stack.tif", stack, photometric="minisblack", metadata={"axes": "ZYX"}
    )
    with open_windows(str(tmp_path / "stack.tif[2]")) as stored:
        found = stored.read(slice(10, 20), slice(5, 50))
    np.testing.assert_array_equal(found[:, :, 0], stack[2, 10:20, 5:50])


@pytest.mark.parametrize("shape", [(70, 90), (70, 90, 3), (3, 70, 90), (1, 1, 3, 70, 90)])
def test_zarr(tmp_path, shape):
    pixels = image(*shape)
    array = zarr.open(
        str(tmp_path / "a.zarr"), mode="w", shape=shape, chunks=shape, dtype=pixels.dtype
    )
    array[:] = pixels
    whole = pixels.reshape(shape[-3:]) if len(shape) > 3 else pixels
    whole = whole.transpose(1, 2, 0) if whole.shape[0] == 3 else whole.reshape(70, 90, -1)
    with open_windows(str(tmp_path / "a.zarr")) as stored:
        assert stored.shape == whole.shape
        for rows, columns in WINDOWS:
            found = stored.read(slice(*rows), slice(*columns))
            np.testing.assert_array_equal(found, whole[slice(*rows), slice(*columns)])


def test_the_largest_level_of_a_group_is_read(tmp_path):
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    for level, side in enumerate((64, 32)):
        array = group.create_array(str(level), shape=(side, side), dtype="uint8", chunks=(16, 16))
        array[:] = level + 1
    with open_windows(str(tmp_path / "a.zarr")) as stored:
        assert stored.shape == (64, 64, 1) and (stored.read(slice(64), slice(64)) == 1).all()


@pytest.mark.parametrize("intensity", ["auto", "dtype", "percentile:1,99", "20,200"])
def test_windows_are_scaled_as_the_whole_image(tmp_path, intensity):
    pixels = image(70, 90)
    tifffile.imwrite(tmp_path / "image.tif", pixels, rowsperstrip=8)
    reader = ImageReader("RGB", intensity)
    whole = reader(str(tmp_path / "image.tif"))
    with open_windows(str(tmp_path / "image.tif")) as stored:
        windows = NetworkWindows(stored, reader)
        assert windows.shape == whole.shape and windows.dtype == whole.dtype
        np.testing.assert_array_equal(windows[10:33, 40:90], whole[10:33, 40:90])


def test_other_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    cut = tmp_path / "cut.tif"
    tifffile.imwrite(cut, image(70, 90), rowsperstrip=10)
    cut.write_bytes(cut.read_bytes()[:-2000])
    tifffile.imwrite(
        tmp_path / "palette.tif", image(70, 90, dtype=np.uint8), colormap=image(3, 256)
    )
    broken = tmp_path / "broken.tif"
    broken.write_bytes(cut.read_bytes()[:8] + b"\xff" * 60)
    deep = zarr.open(str(tmp_path / "a.zarr"), mode="w", shape=(30, 30, 30, 2), dtype="uint8")
    assert deep.ndim == 4 and number_of_pixels(str(tmp_path / "text.png")) == 0
    for name, message in (
        ("text.png", "only TIFF files and Zarr arrays can be read in parts"),
        ("none.tif", "none.tif"),
        ("cut.tif", "the file is truncated"),
        ("broken.tif", "broken.tif: "),
        ("palette.tif", "it has a palette; allowed: gray values or colors"),
        ("a.zarr", "the array has shape .30, 30, 30, 2.; allowed: height, width and up to 16"),
    ):
        with pytest.raises(UnreadableImage, match=message):
            with open_windows(str(tmp_path / name)) as stored:
                stored.read(slice(0, 70), slice(0, 90))


def test_opacities_are_dropped_and_other_channels_have_to_be_chosen(tmp_path):
    pixels = image(70, 90, 4, dtype=np.uint8)
    colors, channels = tmp_path / "rgba.tif", tmp_path / "channels.tif"
    tifffile.imwrite(colors, pixels, photometric="rgb", extrasamples=["unassalpha"])
    tifffile.imwrite(channels, pixels, photometric="minisblack", planarconfig="contig")
    with open_windows(str(colors)) as stored:
        np.testing.assert_array_equal(
            NetworkWindows(stored, ImageReader("RGB"))[:, :], pixels[..., :3]
        )
    with pytest.raises(UnreadableImage, match="has 4 channels; choose with INPUT.CHANNELS"):
        with open_windows(str(channels)) as stored:
            NetworkWindows(stored, ImageReader("RGB"))
    with open_windows(str(channels)) as stored:
        found = NetworkWindows(stored, ImageReader("RGB", channels="3"))[5:9, 2:7]
    np.testing.assert_array_equal(found, np.repeat(pixels[5:9, 2:7, 3:], 3, axis=2))
