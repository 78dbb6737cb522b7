"""Planes of TIFF files that are truncated, spread over several files, or not what they say."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from rpe_d2.utils.image_files import plane_names
from rpe_d2.utils.images import ImageReader
from rpe_d2.utils.label_maps import read_class_indices
from rpe_d2.utils.readable import UnreadableImage
from rpe_d2.utils.tiff_files import tiff_layout

STACK = np.random.default_rng(0).integers(0, 9999, (3, 20, 30)).astype(np.uint16)
OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:a"><Image>'
    '<Pixels DimensionOrder="XYZCT" Type="uint16" SizeX="30" SizeY="20" SizeZ="{}" SizeC="1"'
    ' SizeT="1">{}</Pixels></Image></OME>'
)


def read(path, **options) -> np.ndarray:
    return ImageReader("L", **options)(str(path))[:, :, 0]


def write_stack(path: Path, kind: str) -> None:
    if kind == "pillow":
        pages = [Image.fromarray(page) for page in STACK]
        pages[0].save(path, save_all=True, append_images=pages[1:])
    elif kind == "8 bits":
        pages = [Image.fromarray((page >> 6).astype(np.uint8)) for page in STACK]
        pages[0].save(path, save_all=True, append_images=pages[1:])
    else:
        options = {
            "imagej": {"imagej": True},
            "channels": {"imagej": True},
            "pages": {"photometric": "minisblack"},
        }[kind]
        axes = "CYX" if kind == "channels" else "ZYX"
        tifffile.imwrite(path, STACK, metadata={"axes": axes}, **options)


@pytest.mark.parametrize("kind", ["pillow", "8 bits", "imagej", "channels", "pages"])
def test_a_truncated_stack_does_not_lose_planes_or_channels_silently(kind, tmp_path):
    whole, cut = tmp_path / "whole.tif", tmp_path / "cut.tif"
    write_stack(whole, kind)
    expected = plane_names(str(whole))
    content = whole.read_bytes()
    for percent in range(10, 100, 10):
        cut.write_bytes(content[: len(content) * percent // 100])
        with pytest.raises(UnreadableImage):  # listing the planes, or reading the last ones
            assert len(plane_names(str(cut))) == len(expected)
            for name in plane_names(str(cut)):
                read(name, channels="0")


def test_a_missing_plane_is_not_read_as_black(tmp_path):
    path = tmp_path / "a.ome.tif"
    parts = "".join(
        f'<TiffData FirstZ="{z}" PlaneCount="1"><UUID FileName="{name}.ome.tif">urn:uuid:{name}'
        "</UUID></TiffData>"
        for z, name in enumerate("ab")
    )
    tifffile.imwrite(path, STACK[0], description=OME.format(2, parts), metadata=None)
    assert read(f"{path}[0]").any()
    with pytest.raises(UnreadableImage, match="planes that are missing"):
        read(f"{path}[1]")
    tifffile.imwrite(tmp_path / "b.ome.tif", STACK[1], description="", metadata=None)
    assert read(f"{path}[1]").any()

    tifffile.imwrite(path, STACK[0], description=OME.format(10**9, "<TiffData/>"), metadata=None)
    with pytest.raises(UnreadableImage, match="more than 1000000 planes"):
        plane_names(str(path))


def test_a_plane_of_a_large_hyperstack_is_read_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    stack = np.stack([STACK, STACK // 2])  # (Z, C, H, W)
    tifffile.imwrite(path, stack, imagej=True, metadata={"axes": "ZCYX"})
    monkeypatch.delattr(tifffile.TiffPageSeries, "asarray")
    for z in range(2):
        for c in range(3):
            one = read(f"{path}[{z}]", channels=str(c), intensity="0,9999")
            assert (one == np.rint(stack[z, c] / np.float32(9999) * 255)).all()


def test_label_maps_keep_their_numbers_where_0_is_shown_white(tmp_path):
    labels = STACK[0] % 200
    for dtype in (np.uint8, np.uint16):
        path = tmp_path / f"{dtype.__name__}.tif"
        tifffile.imwrite(path, labels.astype(dtype), photometric="miniswhite")
        assert (read_class_indices(path) == labels).all()


@pytest.mark.parametrize("size", ["1.2.3", "INF", "-1", "", "1e999"])
def test_a_pixel_size_that_is_no_number_is_left_out(size, tmp_path):
    pixels, path = np.zeros((4, 5), np.uint16), str(tmp_path / "a.ome.tif")
    sizes = {"PhysicalSizeX": 1, "PhysicalSizeY": 2}
    tifffile.imwrite(path, pixels, metadata=sizes)
    with tifffile.TiffFile(path) as file:
        text = file.ome_metadata.replace('PhysicalSizeX="1"', f'PhysicalSizeX="{size}"')
    tifffile.imwrite(path, pixels, description=text.encode(), metadata=None)
    layout = tiff_layout(path)
    assert layout.pixel_size == {"Y": 2.0} and layout.sides == ()
