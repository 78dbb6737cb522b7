"""One small file of every kind in ``dev/input_kinds.py``."""

import os
import struct
import zlib
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Tuple

import cv2
import numpy as np
import tifffile
from PIL import Image

from rpe_d2.data import render_shapes

HEIGHT, WIDTH = 40, 48


class KindOfFile(NamedTuple):
    """How a file of a kind is made and used.

    Attributes:
        name: its name.
        write: writes it.
        opts: overrides of the configuration.
        size: height and width in the annotations.
        plane: what the name of the plane adds to that of the file.
    """

    name: str
    write: Callable[[Path], None]
    opts: Tuple[str, ...] = ()
    size: Tuple[int, int] = (HEIGHT, WIDTH)
    plane: str = ""


def scene() -> np.ndarray:
    """Returns an RGB image (H, W, 3) uint8 with dark and bright parts."""
    return np.ascontiguousarray(render_shapes("val", 0)[40 : 40 + HEIGHT, 40 : 40 + WIDTH])


def deep_scene() -> np.ndarray:
    """Returns the scene with 12 of 16 bits, (H, W, 3) uint16."""
    return scene().astype(np.uint16) * 16


def huge_png(path: Path, side: int = 60_000, depth: int = 8) -> None:
    """Writes the header of a gray PNG with a side of many pixels and one row of data."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", side, side, depth, 0, 0, 0, 0)
    data = zlib.compress(bytes(1 + side * depth // 8))
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def _saved(mode: str, **options) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(scene()).convert(mode).save(path, **options)


def _turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    _saved("RGB", exif=exif)(path)


def _tiff(make: Callable[[], np.ndarray], **options) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, make(), photometric="minisblack", **options)


def _floats() -> np.ndarray:
    return (scene()[:, :, 0] / 255).astype(np.float32)


def _floats_with_gaps() -> np.ndarray:
    floats = 1e4 * _floats()
    floats[0, :3] = np.nan, np.inf, -np.inf
    return floats


def _channels(count: int) -> Callable[[Path], None]:
    return _tiff(lambda: deep_scene()[:, :, np.arange(count) % 3], planarconfig="contig")


def _stack() -> np.ndarray:
    return deep_scene().transpose(2, 0, 1)


def _gif(path: Path) -> None:
    frames = [Image.fromarray(np.roll(scene(), n, axis=0)) for n in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def _cut(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def write_cut(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[:-400])

    return write_cut


def _video(path: Path) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (WIDTH, HEIGHT))
    writer.write(scene()[:, :, ::-1])
    writer.release()


def _folder(path: Path) -> None:
    path.mkdir()
    _saved("RGB")(path / "a38_inside.png")


def _no_text(path: Path) -> None:
    Image.fromarray(scene()).save(path, "PNG")


KINDS_OF_FILES: Dict[str, KindOfFile] = {
    "8-bit grayscale PNG": KindOfFile("a01.png", _saved("L")),
    "8-bit RGB JPEG": KindOfFile("a02.jpg", _saved("RGB")),
    "8-bit RGB WebP": KindOfFile("a03.webp", _saved("RGB")),
    "8-bit RGB TIFF": KindOfFile("a04.tif", _saved("RGB")),
    "8-bit RGB NPY, (H, W, 3)": KindOfFile("a05.npy", lambda path: np.save(path, scene())),
    "1-bit PNG": KindOfFile("a06.png", _saved("1")),
    "RGB PNG with opacity": KindOfFile("a07.png", _saved("RGBA")),
    "grayscale PNG with opacity": KindOfFile("a08.png", _saved("LA")),
    "palette PNG": KindOfFile("a09.png", _saved("P")),
    "CMYK JPEG": KindOfFile("a10.jpg", _saved("CMYK")),
    "JPEG with an EXIF orientation": KindOfFile("a11.jpg", _turned, size=(WIDTH, HEIGHT)),
    "the same, annotated as it is stored": KindOfFile("a12.jpg", _turned),
    "16-bit grayscale PNG": KindOfFile(
        "a13.png", lambda path: Image.fromarray(deep_scene()[:, :, 0]).save(path)
    ),
    "16-bit RGB PNG": KindOfFile("a14.png", lambda path: cv2.imwrite(str(path), deep_scene())),
    "16-bit grayscale TIFF": KindOfFile("a15.tif", _tiff(lambda: deep_scene()[:, :, 0])),
    "16-bit TIFF, LZW": KindOfFile("a16.tif", lambda path: cv2.imwrite(str(path), deep_scene())),
    "signed 16-bit TIFF": KindOfFile(
        "a17.tif", _tiff(lambda: deep_scene()[:, :, 0].astype(np.int16) - 2000)
    ),
    "32-bit integer TIFF": KindOfFile(
        "a18.tif", _tiff(lambda: deep_scene()[:, :, 0].astype(np.int32) * 1000)
    ),
    "floating-point TIFF, 0 to 1": KindOfFile("a19.tif", _tiff(_floats)),
    "floating-point TIFF with NaN and infinity": KindOfFile("a20.tif", _tiff(_floats_with_gaps)),
    "floating-point NPY, (H, W)": KindOfFile("a21.npy", lambda path: np.save(path, _floats())),
    "TIFF of 2 channels": KindOfFile("a22.tif", _channels(2)),
    "the same with `INPUT.CHANNELS 0,1,1`": KindOfFile(
        "a23.tif", _channels(2), ("INPUT.CHANNELS", "0,1,1")
    ),
    "TIFF of 5 channels": KindOfFile("a24.tif", _channels(5)),
    "the same with `INPUT.CHANNELS mean`": KindOfFile(
        "a25.tif", _channels(5), ("INPUT.CHANNELS", "mean")
    ),
    "TIFF of 3 pages": KindOfFile("a26.tif", _tiff(_stack)),
    "animated GIF": KindOfFile("a27.gif", _gif),
    "NPY, (3, H, W)": KindOfFile("a28.npy", lambda path: np.save(path, _stack())),
    "one page, `name.tif[1]`": KindOfFile("a29.tif", _tiff(_stack), plane="[1]"),
    "TIFF of 3 pages with `INPUT.PLANE 1`": KindOfFile(
        "a30.tif", _tiff(_stack), ("INPUT.PLANE", "1")
    ),
    "name with bytes that are no text": KindOfFile(os.fsdecode(b"a31\xff.png"), _no_text),
    "name with `$`, `[` and `%`": KindOfFile("a32$b$_[1]%s.png", _saved("RGB")),
    "truncated JPEG": KindOfFile("a33.jpg", _cut(_saved("RGB"))),
    "truncated TIFF": KindOfFile("a34.tif", _cut(_tiff(_floats))),
    "empty file": KindOfFile("a35.png", lambda path: path.touch()),
    "text file called .png": KindOfFile("a36.png", lambda path: path.write_text("hello")),
    "video": KindOfFile("a37.avi", _video),
    "folder called .png": KindOfFile("a38.png", _folder),
    "named pipe (FIFO)": KindOfFile("a39.png", lambda path: os.mkfifo(path)),
    "PNG of 60,000 x 60,000 pixels": KindOfFile("a40.png", huge_png),
}


def write_all(folder: Path) -> Dict[str, str]:
    """Writes a file of every kind, and returns the names under which they are read."""
    names = {}
    for kind, file in KINDS_OF_FILES.items():
        file.write(folder / file.name)
        names[kind] = str(folder / file.name) + file.plane
    return names


def overrides_used() -> List[Tuple[str, ...]]:
    """Returns the different overrides of all kinds, each once."""
    return list(dict.fromkeys(file.opts for file in KINDS_OF_FILES.values()))
