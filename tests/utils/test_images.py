"""The reader of images: number types, channels, planes, orientation, and files that are refused."""

import os

import cv2
import numpy as np
import PIL
import pytest
import tifffile
from detectron2.config import get_cfg
from detectron2.data.detection_utils import read_image
from PIL import Image, ImageOps

from rpe_d2 import add_rpe_config
from rpe_d2.config import check_config
from rpe_d2.utils.image_files import (
    image_exists,
    image_size,
    image_stem,
    list_images,
    plane_names,
    upright,
)
from rpe_d2.utils.images import FORMATS, ImageReader, check_size
from rpe_d2.utils.intensity import parse_intensity
from rpe_d2.utils.label_maps import read_class_indices
from rpe_d2.utils.readable import UnreadableImage
from tests.helpers.image_kinds import huge_png

HEIGHT, WIDTH = 30, 40
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GRAY = RGB[:, :, 0]
DEEP = np.random.default_rng(1).integers(0, 4096, (HEIGHT, WIDTH, 3)).astype(np.uint16)
STACK = np.stack([GRAY + np.uint16(1000 * n) for n in range(5)]).astype(np.uint16)


def read(path, image_format="RGB", **options) -> np.ndarray:
    return ImageReader(image_format, **options)(str(path))


def error_of(path, **options) -> str:
    with pytest.raises(UnreadableImage) as error:
        read(path, **options)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    return message


def percentiles(pixels: np.ndarray, low=0.1, high=99.8) -> np.ndarray:
    """Scales percentiles to 0 to 255, one pixel at a time as the documentation states it."""
    bottom, top = np.percentile(pixels[np.isfinite(pixels)], [low, high])
    return np.rint(255 * np.clip((pixels.astype(float) - bottom) / (top - bottom), 0, 1))


@pytest.mark.parametrize("image_format", ["BGR", "RGB", "L", "HSV", "YUV-BT.601"])
def test_8_bit_images_are_the_same_as_detectron2s(image_format, tmp_path):
    picture = Image.fromarray(RGB)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        picture.convert(mode).save(tmp_path / f"{mode}.png")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr"):
        picture.convert(mode).save(tmp_path / f"{mode}.tif")
    for compression in ("tiff_lzw", "jpeg", "tiff_adobe_deflate"):
        picture.save(tmp_path / f"{compression}.tif", compression=compression)
    for name in ("a.webp", "a.bmp", "a.gif", "a.jpg", "a.ppm"):
        picture.save(tmp_path / name)
    for path in sorted(tmp_path.iterdir()):
        try:
            expected = read_image(str(path), image_format)
        except OSError:
            # Pillow 12 cannot read the YCbCr TIFF files that it writes.
            assert path.name == "YCbCr.tif" and int(PIL.__version__.split(".")[0]) < 13
            continue
        if expected.dtype == np.float64:  # networks take float32
            expected = expected.astype(np.float32)
        actual = read(path, image_format)
        assert actual.dtype == expected.dtype, path.name
        np.testing.assert_array_equal(actual, expected, err_msg=path.name)


def test_the_same_scene_in_all_16_bit_formats(tmp_path):
    deep = DEEP[:, :, 0]
    for name in ("a.png", "b.tif"):  # 12 of 16 bits
        Image.fromarray(deep).save(tmp_path / name)
    cv2.imwrite(str(tmp_path / "c.tif"), deep)  # compressed by LZW
    cv2.imwrite(str(tmp_path / "d.pgm"), deep)
    np.save(tmp_path / "e.npy", deep)
    tifffile.imwrite(tmp_path / "f.tif", deep * np.uint16(16))  # all 16 bits
    tifffile.imwrite(tmp_path / "g.tif", deep.astype(np.int32) - 500)
    tifffile.imwrite(tmp_path / "h.tif", deep.astype(np.float32) / 4095)
    tifffile.imwrite(tmp_path / "i.tif", deep.astype(">u2"), byteorder=">")
    tifffile.imwrite(tmp_path / "j.tif", deep, tile=(16, 16), compression="zlib", predictor=True)
    tifffile.imwrite(tmp_path / "k.tif", 65535 - deep, photometric="miniswhite")
    expected = percentiles(deep)
    for path in sorted(tmp_path.iterdir()):
        actual = read(path, "L")
        assert actual.shape == (HEIGHT, WIDTH, 1) and actual.dtype == np.uint8
        assert abs(actual[:, :, 0] - expected).max() <= 1, path.name
        assert image_size(str(path)) == (WIDTH, HEIGHT)


def test_colors_of_16_bits_are_scaled_together(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), DEEP[:, :, ::-1])
    cv2.imwrite(str(tmp_path / "b.tif"), DEEP[:, :, ::-1])
    cv2.imwrite(str(tmp_path / "c.ppm"), DEEP[:, :, ::-1])
    opaque = np.full((HEIGHT, WIDTH, 1), 65535, np.uint16)
    rgba = np.concatenate([DEEP, opaque], axis=2)
    tifffile.imwrite(tmp_path / "d.tif", rgba, photometric="rgb")
    cv2.imwrite(str(tmp_path / "e.png"), rgba[:, :, [2, 1, 0, 3]])
    tifffile.imwrite(tmp_path / "f.tif", DEEP.transpose(2, 0, 1), photometric="rgb")  # planar
    tifffile.imwrite(
        tmp_path / "g.tif", DEEP.transpose(2, 0, 1), imagej=True, metadata={"axes": "CYX"}
    )
    np.save(tmp_path / "h.npy", rgba)
    np.save(tmp_path / "i.npy", np.asfortranarray(DEEP))
    expected = percentiles(DEEP)
    for path in sorted(tmp_path.iterdir()):
        assert abs(read(path) - expected).max() <= 1, path.name
        assert (read(path, "BGR") == read(path)[:, :, ::-1]).all()


@pytest.mark.skipif(not cv2.haveImageWriter("a.jp2"), reason="OpenCV without JPEG 2000")
def test_colors_of_16_bits_in_jpeg_2000(tmp_path):
    deep = np.tile(DEEP, (3, 2, 1))
    lossless = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
    cv2.imwrite(str(tmp_path / "a.jp2"), deep[:, :, ::-1], lossless)
    assert abs(read(tmp_path / "a.jp2") - percentiles(deep)).max() <= 1
    Image.fromarray(RGB).resize((64, 64)).save(tmp_path / "b.jp2")  # 8 bits stay as they are
    assert (read(tmp_path / "b.jp2") == read_image(str(tmp_path / "b.jp2"), "RGB")).all()


@pytest.mark.parametrize(
    "intensity, values, expected",
    [
        ("auto", np.array([0, 7, 255], np.uint8), [0, 7, 255]),
        ("dtype", np.array([0, 256, 65535], np.uint16), [0, 1, 255]),
        ("dtype", np.array([-128, 127], np.int8), [0, 255]),
        ("dtype", np.array([-1, 0.5, 1, 9], np.float64), [0, 128, 255, 255]),
        ("100,300", np.array([0, 100, 200, 301], np.uint16), [0, 0, 128, 255]),
        ("100,300", np.array([90, 200], np.uint8), [0, 128]),
        ("percentile:0,100", np.array([1000, 1100, 1200], np.uint32), [0, 128, 255]),
        ("percentile:0,100", np.array([np.nan, -np.inf, 1, 2, np.inf]), [0, 0, 0, 255, 255]),
        ("percentile:0,100", np.array([2**31, 2**31 + 2], np.uint32), [0, 255]),
        ("auto", np.array([5, 5, 5], np.uint16), [0, 0, 0]),
        ("auto", np.array([0] * 9999 + [9], np.uint16), [0] * 9999 + [255]),  # one bright pixel
        ("auto", np.array([np.nan, np.nan]), [0, 0]),
        ("auto", np.array([False, True]), [0, 255]),
        ("auto", np.array([-1e300, 1e300]), [0, 255]),
    ],
)
def test_intensity_rules(intensity, values, expected):
    actual = parse_intensity(intensity).to_8bit(values.reshape(1, -1, 1))
    assert actual.dtype == np.uint8 and actual.ravel().tolist() == expected


@pytest.mark.parametrize(
    "text", ["", "Auto", "1", "3,1", "1,1", "nan,1", "0,inf", "percentile:5", "percentile:-1,99",
             "percentile:0,101", "0,1,2", "-1e308,1e308"],
)  # fmt: skip
def test_wrong_intensities_name_the_key(text):
    with pytest.raises(ValueError, match="INPUT.INTENSITY is .*; allowed: auto, dtype"):
        ImageReader("BGR", intensity=text)


@pytest.mark.parametrize("text", ["0,1", "a", "-1", "0,1,2,3", "mean,1", "1.5", "²", "9" * 30])
def test_wrong_channels_name_the_key(text):
    with pytest.raises(ValueError, match="INPUT.CHANNELS is .*; allowed: '', mean, one index"):
        ImageReader("BGR", channels=text)


@pytest.mark.parametrize("name", ["", "XYZ", "bgr", "I;16"])
def test_wrong_formats_name_the_key(name):
    with pytest.raises(ValueError, match="INPUT.FORMAT is .*; allowed: BGR, RGB, L"):
        ImageReader(name)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_converts_gray_and_colors(name):
    for channels in (1, 3):
        image = ImageReader(name).convert(np.full((2, 3, channels), 9, np.uint8))
        assert image.shape[:2] == (2, 3) and image.ndim == 3


def test_a_wrong_plane_names_the_key():
    with pytest.raises(ValueError, match="INPUT.PLANE is -2; allowed: -1, which is all, or 0 or"):
        ImageReader("BGR", plane=-2)


def test_values_that_look_like_numbers_need_no_quotes(tmp_path):
    cfg = get_cfg()
    add_rpe_config(cfg)
    (tmp_path / "a.yaml").write_text("INPUT: {CHANNELS: 1, INTENSITY: 0,4095}\n".replace(
        "0,4095", "'0,4095'"))  # fmt: skip
    cfg.merge_from_file(str(tmp_path / "a.yaml"))
    assert (cfg.INPUT.CHANNELS, cfg.INPUT.INTENSITY) == ("1", "0,4095")
    cfg.merge_from_list(["INPUT.CHANNELS", "0,1,1", "INPUT.INTENSITY", "percentile:1,99"])
    assert (cfg.INPUT.CHANNELS, cfg.INPUT.INTENSITY) == ("0,1,1", "percentile:1,99")
    (tmp_path / "b.yaml").write_text(cfg.dump())  # as a run saves it
    cfg.merge_from_list(["INPUT.CHANNELS", "", "INPUT.INTENSITY", "dtype"])
    cfg.merge_from_file(str(tmp_path / "b.yaml"))
    assert (cfg.INPUT.CHANNELS, cfg.INPUT.INTENSITY) == ("0,1,1", "percentile:1,99")
    check_config(cfg)
    for key, value in (("INTENSITY", "4095"), ("CHANNELS", "0,1"), ("PLANE", -2)):
        changed = cfg.clone()
        changed.INPUT[key] = value
        with pytest.raises(ValueError, match=f"INPUT.{key} is .*{value}"):
            check_config(changed)


def test_channels_are_chosen_or_averaged(tmp_path):
    path = tmp_path / "five.tif"
    five = np.concatenate([RGB, RGB[:, :, 1:]], axis=2)
    tifffile.imwrite(path, five, photometric="minisblack", planarconfig="contig")
    message = error_of(path)
    assert "has 5 channels; choose with INPUT.CHANNELS; allowed: mean, one or three" in message
    assert (read(path, channels="4,1,0") == five[:, :, [4, 1, 0]]).all()
    assert (read(path, "L", channels="3") == five[:, :, [3]]).all()
    assert (read(path, channels="3") == five[:, :, [3]]).all()  # gray as a color image
    average = five.mean(axis=2, keepdims=True).round()
    assert (read(path, "L", channels="mean") == average).all()
    assert "INPUT.CHANNELS is 5; allowed: 0 to 4" in error_of(path, channels="5")
    # Four channels of a microscope are no colors with opacity.
    four = tmp_path / "four.tif"
    tifffile.imwrite(four, STACK[:4], imagej=True, metadata={"axes": "CYX"})
    assert "has 4 channels" in error_of(four)
    # Opacity can be asked for, and is no part of an average.
    Image.fromarray(np.dstack([RGB, GRAY])).save(tmp_path / "rgba.png")
    assert (read(tmp_path / "rgba.png", "L", channels="3")[:, :, 0] == GRAY).all()
    average = RGB.mean(axis=2, keepdims=True).round()
    assert (read(tmp_path / "rgba.png", "L", channels="mean") == average).all()


def test_planes_are_named_and_never_cut(tmp_path):
    tifffile.imwrite(tmp_path / "pages.tif", STACK)
    tifffile.imwrite(tmp_path / "z.tif", STACK, imagej=True, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "deflate.tif", STACK, compression="zlib")
    cv2.imwritemulti(str(tmp_path / "lzw.tif"), list(STACK))
    np.save(tmp_path / "array.npy", STACK)
    hyperstack = np.stack([STACK, STACK + 1], axis=1)  # (Z, C, Y, X)
    tifffile.imwrite(tmp_path / "zc.tif", hyperstack, imagej=True, metadata={"axes": "ZCYX"})
    sizes = tmp_path / "sizes.tif"  # pages of different sizes
    with tifffile.TiffWriter(sizes) as writer:
        for plane in STACK:
            writer.write(plane[: 10 + len(plane)], contiguous=False)
        writer.write(STACK[0][:9], contiguous=False)
    for path in sorted(tmp_path.iterdir()):
        count = 6 if path == sizes else 5
        message = error_of(path)
        assert f"has {count} planes" in message and "INPUT.PLANE; allowed: 0 to" in message
        assert plane_names(str(path)) == [f"{path}[{n}]" for n in range(count)]
        options = {"channels": "0"} if path.name == "zc.tif" else {}
        expected = np.rint(255 * np.clip((STACK[3] - 3000.0) / 255, 0, 1))
        for name, plane in ((f"{path}[3]", -1), (path, 3)):
            actual = read(name, "L", intensity="3000,3255", plane=plane, **options)[:, :, 0]
            assert (actual == expected).all(), path.name
        assert f"the plane is 9; allowed: 0 to {count - 1}" in str(
            pytest.raises(UnreadableImage, read, f"{path}[9]").value
        )
        assert f"INPUT.PLANE is 7; allowed: 0 to {count - 1}" in error_of(path, plane=7)
    assert image_size(f"{sizes}[5]") == (WIDTH, 9)


def test_animations_have_planes_and_photographs_have_none(tmp_path):
    frames = [Image.fromarray(np.full((8, 9), value, np.uint8)) for value in (10, 200)]
    for name in ("a.gif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert "has 2 planes" in error_of(tmp_path / name)
        assert abs(read(f"{tmp_path / name}[1]", "L").astype(int) - 200).max() <= 2
    # The second picture in a file of a telephone is a preview or a depth map.
    photograph = Image.fromarray(RGB)
    photograph.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[photograph])
    assert read(tmp_path / "a.jpg").shape == RGB.shape


def test_names_of_planes(tmp_path):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, STACK)
    literal = tmp_path / "picture[3].png"
    Image.fromarray(RGB).save(literal)
    assert (read(literal) == RGB).all() and image_stem(str(literal)) == "picture[3]"
    assert image_stem(f"{path}[2]") == "stack[2]" and image_stem("a/b.c.png") == "b.c"
    assert image_exists(f"{path}[2]") and not image_exists(f"{tmp_path}/absent.tif[2]")
    assert plane_names(str(literal)) == [str(literal)]
    assert ImageReader("RGB", plane=1).planes(str(path)) == [str(path)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(_with_exif(orientation)))
    np.testing.assert_array_equal(upright(RGB, orientation), expected)
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(RGB).save(tmp_path / "b.webp", exif=exif, lossless=True)
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "c.tif", RGB, photometric="rgb", extratags=tag)
    deep = RGB.astype(np.uint16)
    tifffile.imwrite(tmp_path / "d.tif", deep, photometric="rgb", extratags=tag)
    for path in sorted(tmp_path.iterdir()):
        actual = read(path, intensity="0,255")
        np.testing.assert_array_equal(actual, expected, err_msg=path.name)
        assert image_size(str(path)) == expected.shape[1::-1]
    record = {"file_name": str(tmp_path / "a.png"), "height": HEIGHT, "width": WIDTH}
    if orientation < 5:
        check_size(record, expected.shape[:2])
    else:
        with pytest.raises(UnreadableImage) as error:
            check_size(record, expected.shape[:2])
        words = (
            f"is 30 x 40 pixels after it is turned upright (its EXIF orientation is {orientation}"
        )
        assert words in str(error.value) and "annotations say 40 x 30" in str(error.value)
    labels = tmp_path / "labels.png"
    Image.fromarray(GRAY).save(labels, exif=exif)
    np.testing.assert_array_equal(read_class_indices(labels), upright(GRAY, orientation))


def _with_exif(orientation: int) -> Image.Image:
    image = Image.fromarray(RGB)
    image.getexif()[0x0112] = orientation
    return image


def test_postscript_is_not_run(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.eps")
    assert "PostScript" in error_of((tmp_path / "a.eps").rename(tmp_path / "a.png"))


def test_damaged_files_are_named_in_one_line(tmp_path):
    path = tmp_path / "a.png"
    deep = tmp_path / "deep.png"
    Image.fromarray(DEEP[:, :, 0]).save(deep)
    tiffs = {}
    for name, options in (("strips", {"rowsperstrip": 4}), ("zlib", {"compression": "zlib"})):
        tifffile.imwrite(tmp_path / f"{name}.tif", DEEP, photometric="rgb", **options)
        tiffs[name] = (tmp_path / f"{name}.tif").read_bytes()
    np.save(tmp_path / "a.npy", DEEP)
    npy = (tmp_path / "a.npy").read_bytes()
    for content, words in (
        (b"", "the file is empty"),
        (b"hello", "cannot identify image file"),
        (deep.read_bytes()[:900], "a.png"),
        (tiffs["strips"][:-9], "the file is truncated"),
        (tiffs["zlib"][:-9], "the file is truncated"),
        (tiffs["strips"][:20], "a.png"),
        (npy[:-9], "a.png"),
        (npy[:9], "a.png"),
        (b"PK\3\4" + bytes(90), "cannot identify image file"),
    ):
        path.write_bytes(content)
        assert words in error_of(path)
        with pytest.raises(UnreadableImage, match="a.png"):
            read_class_indices(path)
    assert "there is no such file" in error_of(tmp_path / "absent.png")


@pytest.mark.parametrize(
    "array, words",
    [
        (np.zeros((4, 5), complex), "the number type is complex128; allowed: integer or floating"),
        (np.array([["a"]]), "the number type is <U1"),
        (np.array([[{}]], object), "Python objects in dtype"),
        (np.zeros(3), "the shape (3,); allowed: (H, W), (H, W, C)"),
        (np.zeros((0, 5)), "the shape (0, 5)"),
        (np.zeros((2, 2, 2, 2, 2)), "the shape (2, 2, 2, 2, 2)"),
    ],
)
def test_arrays_that_are_no_images(array, words, tmp_path):
    np.save(tmp_path / "a.npy", array)
    assert words in error_of(tmp_path / "a.npy")


def test_files_that_would_not_fit_into_memory(tmp_path):
    huge_png(tmp_path / "a.png")
    huge_png(tmp_path / "b.png", depth=16)
    tifffile.memmap(tmp_path / "c.tif", shape=(60_000, 60_000), dtype=np.uint16)  # a sparse file
    header = {"descr": "|u1", "fortran_order": False, "shape": (60_000, 60_000)}
    with open(tmp_path / "d.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 60_000**2)
    for path in sorted(tmp_path.iterdir()):
        assert "178956970 pixels" in error_of(path), path.name
        with pytest.raises(UnreadableImage, match="178956970 pixels"):
            read_class_indices(path)


def test_pipes_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    assert "is a pipe or a device; allowed: a file" in error_of(tmp_path / "pipe.png")
    assert "is a folder; allowed: a file" in error_of(tmp_path / "folder.png")
    with pytest.raises(UnreadableImage, match="pipe.png is a pipe or a device"):
        read_class_indices(tmp_path / "pipe.png")
    assert "is a pipe or a device" in error_of("/dev/zero")


def test_names_that_are_no_text(tmp_path):
    name = os.path.join(os.fsencode(tmp_path), b"a\xff.png")
    with open(name, "wb") as file:
        Image.fromarray(RGB).save(file, "PNG")
    assert (read(os.fsdecode(name)) == RGB).all()
    with open(name, "wb") as file:
        file.write(b"hello")
    with pytest.raises(UnreadableImage) as error:
        read(os.fsdecode(name))
    assert r"a\udcff.png" in str(error.value).encode().decode()  # it can be printed
    with pytest.raises(UnreadableImage, match=r"b\\ud800.png"):
        read(f"{tmp_path}/b\ud800.png")


def test_folders_are_listed_once_and_without_stored_outputs(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.PNG", "a.jpg", "a.npy", "c.npy", "notes.txt", "sub/d.tif", "a.tif"):
        (tmp_path / name).touch()
    top = [str(tmp_path / name) for name in ("a.jpg", "a.tif", "b.PNG", "c.npy")]
    assert list_images(str(tmp_path)) == top
    assert list_images(str(tmp_path), recursive=True) == [*top, str(tmp_path / "sub/d.tif")]
