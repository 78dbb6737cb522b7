"""The one reader of pictures: depths, channels, planes, orientations, and what is refused."""

import os
import time

import cv2
import numpy as np
import pytest
import tifffile
from detectron2.data.detection_utils import read_image
from PIL import Image, ImageOps

from rpe_d2.utils.image_files import count_planes, decode_image, image_size
from rpe_d2.utils.images import ImageReader, parse_channels, parse_intensity
from rpe_d2.utils.readable import UnreadableImage

GRAY = np.arange(240, dtype=np.uint8).reshape(12, 20)
RGB = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)


def written(path, array, **options):
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, **options)
    elif path.suffix == ".npy":
        np.save(path, array)
    else:
        (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **options)
    return str(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("array", [GRAY, RGB], ids=["gray", "rgb"])
@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L"])
def test_pictures_of_8_bits_are_those_of_detectron2(tmp_path, suffix, array, image_format):
    path = written(tmp_path / f"a{suffix}", array)
    image = ImageReader(image_format)(path)
    assert image.dtype == np.uint8 and image.flags["C_CONTIGUOUS"]
    assert np.array_equal(image, read_image(path, image_format))


def converted(mode):
    image = Image.fromarray(RGB).convert("RGBA" if mode in ("LA", "RGBA") else "RGB")
    return image.convert(mode)


@pytest.mark.parametrize(
    "mode, suffix", [("P", ".png"), ("P", ".tif"), ("1", ".png"), ("1", ".tif"), ("CMYK", ".jpg")]
)
def test_palettes_bits_and_cmyk_are_resolved(tmp_path, mode, suffix):
    path = tmp_path / f"a{suffix}"
    converted(mode).save(path)
    assert np.array_equal(ImageReader("RGB")(str(path)), read_image(str(path), "RGB"))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_alpha_is_left_out(tmp_path, suffix):
    alpha = np.full((12, 20, 1), 7, np.uint8)
    Image.fromarray(np.concatenate([RGB, alpha], axis=2)).save(tmp_path / f"rgba{suffix}")
    assert np.array_equal(ImageReader("RGB")(str(tmp_path / f"rgba{suffix}")), RGB)
    Image.fromarray(np.stack([GRAY, alpha[:, :, 0]], axis=2), "LA").save(tmp_path / f"la{suffix}")
    assert np.array_equal(ImageReader("L")(str(tmp_path / f"la{suffix}"))[:, :, 0], GRAY)


@pytest.mark.parametrize(
    "name, array",
    [
        ("a.png", 257 * GRAY.astype(np.uint16)),
        ("a.tif", 257 * GRAY.astype(np.uint16)),
        ("a.tif", (257 * GRAY.astype(np.uint16)).astype(">u2")),
        ("a.tif", GRAY.astype(np.int32) * 1000 - 5000),
        ("a.tif", GRAY.astype(np.float32) / 255),
        ("a.tif", GRAY.astype(np.float64) * 1e6),
        ("a.npy", GRAY.astype(np.float32) / 255),
        ("a.npy", GRAY.astype(np.int16)),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.dtype),
)
def test_deep_pictures_are_stretched_between_percentiles(tmp_path, name, array):
    path = written(tmp_path / name, array)
    low, high = np.percentile(array, (0.1, 99.8))
    expected = ((array.astype(float) - low) / (high - low) * 255).clip(0, 255)
    image = ImageReader("L")(path)[:, :, 0]
    assert np.abs(image - expected).max() <= 0.51
    assert len(np.unique(image)) > 200
    assert np.array_equal(ImageReader("RGB")(path), np.repeat(image[:, :, None], 3, axis=2))


def test_png_of_16_bits_and_three_channels(tmp_path):
    deep = RGB.astype(np.uint16) * 10  # all below 2,560: Pillow keeps the high byte alone
    path = str(tmp_path / "deep.png")
    cv2.imwrite(path, deep[:, :, ::-1])
    image = ImageReader("RGB", intensity="0,2550")(path)
    assert np.array_equal(image, RGB)
    assert image_size(path) == (20, 12)


def test_the_rules_of_intensity(tmp_path):
    path = written(tmp_path / "a.tif", np.array([[0, 100, 1000, 65535]], np.uint16))
    assert ImageReader("L", intensity="dtype")(path).ravel().tolist() == [0, 0, 4, 255]
    assert ImageReader("L", intensity="100,1000")(path).ravel().tolist() == [0, 0, 255, 255]
    median = ImageReader("L", intensity="percentile:0,50")(path).ravel()
    assert median.tolist() == [0, 46, 255, 255]
    # An explicit rule holds for 8 bits as well.
    path = written(tmp_path / "b.png", np.array([[0, 50, 100]], np.uint8))
    assert ImageReader("L", intensity="0,100")(path).ravel().tolist() == [0, 128, 255]
    floats = np.array([[np.nan, -np.inf, 0, 0.5, 1, np.inf]], np.float32)
    path = written(tmp_path / "c.npy", floats)
    assert ImageReader("L")(path).ravel().tolist() == [0, 0, 0, 128, 255, 255]
    assert ImageReader("L", intensity="dtype")(path).ravel().tolist() == [0, 0, 0, 128, 255, 255]
    constant = written(tmp_path / "d.npy", np.full((3, 3), 700, np.uint16))
    assert ImageReader("L")(constant).max() == 0
    sparse = np.zeros((100, 100), np.uint16)
    sparse[0, 0] = 9
    assert ImageReader("L")(written(tmp_path / "e.npy", sparse))[0, 0, 0] == 255


@pytest.mark.parametrize("text", ["", "max", "5", "5,5", "9,1", "percentile:0,101", "a,b", "1,nan"])
def test_malformed_rules_are_named(text):
    with pytest.raises(ValueError, match="^INPUT.INTENSITY is '.*'; allowed: auto, dtype"):
        parse_intensity(text)
    with pytest.raises(ValueError, match="^INPUT.CHANNELS is '.*'; allowed: auto, mean"):
        parse_channels(text if text != "5" else "1,2")


def test_channels_are_chosen_or_averaged(tmp_path):
    five = np.random.default_rng(0).integers(0, 200, (12, 20, 5), np.uint8)
    channels_last = written(
        tmp_path / "a.tif", five, planarconfig="contig", photometric="minisblack"
    )
    channels_first = written(
        tmp_path / "b.tif",
        np.moveaxis(five, 2, 0),
        photometric="minisblack",
        metadata={"axes": "CYX"},
    )
    for path in (channels_last, channels_first):
        with pytest.raises(
            UnreadableImage, match="has 5 channels; allowed with INPUT.CHANNELS auto"
        ):
            ImageReader("RGB")(path)
        assert np.array_equal(ImageReader("RGB", channels="4,0,2")(path), five[:, :, [4, 0, 2]])
        assert np.array_equal(ImageReader("L", channels="3")(path), five[:, :, 3:4])
        mean = np.rint(five.mean(axis=2, keepdims=True))
        assert np.array_equal(ImageReader("L", channels="mean")(path), mean)
        with pytest.raises(UnreadableImage, match="names 7, allowed: 0 to 4"):
            ImageReader("RGB", channels="7")(path)
    two = written(tmp_path / "c.npy", five[:, :, :2])
    with pytest.raises(UnreadableImage, match="has 2 channels"):
        ImageReader("RGB")(two)


def test_planes_are_asked_for(tmp_path):
    stack = np.stack([GRAY + plane for plane in range(4)]).astype(np.uint16)
    paths = [
        written(tmp_path / "pages.tif", stack, photometric="minisblack"),
        written(tmp_path / "imagej.tif", stack, imagej=True, metadata={"axes": "ZYX"}),
        written(tmp_path / "array.npy", stack),
    ]
    for path in paths:
        assert count_planes(path) == 4 and count_planes(f"{path}[2]") == 1
        assert image_size(path) == (20, 12)
        with pytest.raises(UnreadableImage, match="has 4 planes; choose one as .*INPUT.PLANE"):
            decode_image(path)
        assert np.array_equal(decode_image(f"{path}[3]").pixels[:, :, 0], stack[3])
        assert np.array_equal(decode_image(path, plane=1).pixels[:, :, 0], stack[1])
        assert np.array_equal(decode_image(f"{path}[0]", plane=1).pixels[:, :, 0], stack[0])
        with pytest.raises(
            UnreadableImage, match=r"\[4\]: there is no such plane; allowed: 0 to 3"
        ):
            decode_image(f"{path}[4]")
    hyper = np.arange(2 * 3 * 2 * 12 * 20, dtype=np.uint16).reshape(2, 3, 2, 12, 20)
    path = written(tmp_path / "hyper.tif", hyper, imagej=True, metadata={"axes": "TZCYX"})
    assert count_planes(path) == 6
    assert np.array_equal(decode_image(f"{path}[4]").pixels, np.moveaxis(hyper[1, 1], 0, -1))
    gif = [Image.fromarray(GRAY + plane) for plane in range(3)]
    gif[0].save(tmp_path / "a.gif", save_all=True, append_images=gif[1:])
    assert count_planes(str(tmp_path / "a.gif")) == 3
    bracketed = written(tmp_path / "name[3].png", GRAY)  # a file of that name
    assert np.array_equal(ImageReader("L")(bracketed)[:, :, 0], GRAY)


def test_the_further_pictures_of_a_camera_are_previews(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(RGB).save(
        path, format="MPO", save_all=True, append_images=[Image.fromarray(GRAY)]
    )
    assert count_planes(str(path)) == 1
    assert ImageReader("RGB")(str(path)).shape == (12, 20, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = written(tmp_path / "a.png", RGB, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    image, found = ImageReader("RGB").read(path)
    assert np.array_equal(image, expected) and found == orientation
    assert image_size(path) == expected.shape[1::-1]
    deep = written(
        tmp_path / "a.tif", GRAY.astype(np.uint16), extratags=[(0x0112, "H", 1, orientation, True)]
    )
    assert ImageReader("L")(deep).shape[:2] == expected.shape[:2]


def test_what_is_no_picture_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.raises(UnreadableImage, match="fifo.png is not a regular file; allowed: image"):
        ImageReader("RGB")(str(tmp_path / "fifo.png"))
    with pytest.raises(UnreadableImage, match="is a folder"):
        ImageReader("RGB")(str(tmp_path))
    for content in (b"", b"text", b"II*\0", b"MM\0*\0\0\0\x08", b"\x93NUMPY", b"\x89PNG\r\n\x1a\n"):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises((OSError, SyntaxError, UnreadableImage)) as raised:
            ImageReader("RGB")(str(tmp_path / "a.png"))
        assert "\n" not in str(raised.value)
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UnreadableImage, match="pickled.npy"):
        ImageReader("RGB")(str(tmp_path / "pickled.npy"))
    with pytest.raises(UnreadableImage, match=r"shape \(3,\); allowed: \(H, W\)"):
        ImageReader("RGB")(written(tmp_path / "b.npy", np.zeros(3)))
    with pytest.raises(UnreadableImage, match="pixels of complex128; allowed: numbers"):
        ImageReader("RGB")(written(tmp_path / "c.npy", np.zeros((3, 3), complex)))
    with pytest.raises(FileNotFoundError):
        ImageReader("RGB")(str(tmp_path / "none.png"))


def test_pictures_that_are_far_too_large_are_refused_by_their_header(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(np.zeros((8, 8), np.uint16))
    with open(tmp_path / "a.tif", "r+b") as file:
        tiff = tifffile.TiffFile(file)
        tiff.pages[0].tags["ImageWidth"].overwrite(60000)
        tiff.pages[0].tags["ImageLength"].overwrite(60000)
    with pytest.raises(Image.DecompressionBombError, match="60000 x 60000 pixels; allowed: up to"):
        ImageReader("L")(str(tmp_path / "a.tif"))


@pytest.mark.slow
def test_ordinary_pictures_are_read_as_fast_as_by_detectron2(tmp_path):
    path = written(
        tmp_path / "a.jpg", np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), np.uint8)
    )
    reader, times = ImageReader("BGR"), {"ours": [], "theirs": []}
    for _ in range(8):
        for name, read in (
            ("ours", lambda: reader(path)),
            ("theirs", lambda: read_image(path, "BGR")),
        ):
            start = time.perf_counter()
            np.ascontiguousarray(read())
            times[name].append(time.perf_counter() - start)
    assert min(times["ours"]) < 1.1 * min(times["theirs"])
