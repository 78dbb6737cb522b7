"""Decoding of image files into arrays of their original bit depth, plane by plane."""

import io
import os
import re
import stat
import struct
from typing import Any, NamedTuple, Optional, Tuple

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

from .readable import UnreadableImage

__all__ = [
    "NPY_START",
    "RawImage",
    "check_regular_file",
    "count_planes",
    "decode_image",
    "image_size",
    "split_plane",
]

_PLANE = re.compile(r"(.+)\[(\d+)\]", re.DOTALL)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NPY_START = b"\x93NUMPY"
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112
# The axes of a NumPy array are not named. A last axis of at most this length holds channels.
_MOST_NPY_CHANNELS = 4
# How EXIF orientations 2 to 8 turn an image.
_TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


class RawImage(NamedTuple):
    """One plane of a file.

    Attributes:
        pixels: (H, W, C) bool, integer or floating point. Palettes are resolved, alpha is dropped,
            and the EXIF orientation is applied.
        orientation: the EXIF orientation, 1 for upright.
    """

    pixels: np.ndarray
    orientation: int


def split_plane(file_name: str) -> Tuple[str, Optional[int]]:
    """Splits "name.tif[3]" into the file and the number of its plane, or None without one."""
    match = _PLANE.fullmatch(file_name)
    if match is None or os.path.exists(file_name):
        return file_name, None
    return match[1], int(match[2])


def check_regular_file(path: str) -> None:
    """Raises UnreadableImage for a path that is not a regular file, such as a FIFO."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # a URL, or a file that does not exist, which open() reports
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise UnreadableImage(f"{path} is {kind}; allowed: image files")


def decode_image(file_name: str, plane: Optional[int] = None) -> RawImage:
    """Decodes one plane of a file.

    TIFF of any bit depth, NumPy arrays and everything that Pillow reads are allowed. In arrays of
    three dimensions, a last axis of length 4 or less holds channels. Otherwise the first axis holds
    planes.

    Args:
        file_name: any path that Detectron2's PathManager opens, with the number of the plane in
            brackets where there are several: "stack.tif[3]".
        plane: the plane to decode if the name does not contain one.

    Raises:
        UnreadableImage: The file has several planes and none is chosen, or its type is not
            supported.
        OSError, SyntaxError, Image.DecompressionBombError: The file cannot be read.
    """
    path, chosen = split_plane(file_name)
    check_regular_file(path)
    with PathManager.open(path, "rb") as file:
        return _open(path, file).plane(plane if chosen is None else chosen)


def count_planes(file_name: str) -> int:
    """Counts the planes of a file without reading its pixels; 1 if the name chooses one."""
    path, chosen = split_plane(file_name)
    if chosen is not None:
        return 1
    check_regular_file(path)
    with PathManager.open(path, "rb") as file:
        return _open(path, file).count


def image_size(file_name: str) -> Tuple[int, int]:
    """Returns width and height of an upright image without reading its pixels."""
    path, _ = split_plane(file_name)
    check_regular_file(path)
    with PathManager.open(path, "rb") as file:
        return _open(path, file).size


class _Source:
    """An opened file with ``count`` planes of ``height`` x ``width`` stored pixels."""

    def __init__(self, path: str, count: int, height: int, width: int, orientation: int = 1):
        self.path, self.count = path, count
        turned = orientation in (5, 6, 7, 8)
        self.size = (height, width) if turned else (width, height)
        self.orientation = orientation

    def plane(self, number: Optional[int]) -> RawImage:
        if number is None and self.count > 1:
            raise UnreadableImage(
                f"{self.path} has {self.count} planes; choose one as {self.path}[0] … "
                f"[{self.count - 1}], or by INPUT.PLANE"
            )
        number = number or 0
        if number >= self.count:
            raise UnreadableImage(
                f"{self.path}[{number}]: there is no such plane; allowed: 0 to {self.count - 1}"
            )
        pixels = self._read(number)
        if pixels.dtype.kind not in "buif":
            raise UnreadableImage(f"{self.path} has pixels of {pixels.dtype}; allowed: numbers")
        pixels = pixels if pixels.ndim == 3 else pixels[:, :, None]
        turn = _TURNS.get(self.orientation)
        return RawImage(pixels if turn is None else turn(pixels), self.orientation)

    def _read(self, number: int) -> np.ndarray:
        raise NotImplementedError


def _open(path: str, file: Any) -> _Source:
    start = file.read(32)
    file.seek(0)
    if start.startswith(NPY_START):
        return _NumpySource(path, file)
    if start.startswith(_TIFF):
        return _open_tiff(path, file)
    if start.startswith(_PNG) and len(start) > 25 and start[24] == 16 and start[25] in (2, 6):
        return _DeepPngSource(path, file)
    return _PillowSource(path, file)


class _PillowSource(_Source):
    def __init__(self, path: str, file: Any):
        self._image = Image.open(file)
        # The other images in a camera's MPO file are previews of the first one.
        animated = getattr(self._image, "n_frames", 1) if self._image.format != "MPO" else 1
        try:
            orientation = self._image.getexif().get(_ORIENTATION, 1)
        except Exception:  # damaged EXIF data, for which Pillow raises arbitrary errors
            orientation = 1
        super().__init__(path, animated, self._image.height, self._image.width, orientation)

    def _read(self, number: int) -> np.ndarray:
        image = self._image
        if self.count > 1:
            image.seek(number)
        if image.mode in ("LA", "La"):
            image = image.convert("LA").getchannel("L")
        elif image.mode == "P" and _is_gray(image):
            image = image.convert("L")
        elif image.mode not in ("1", "L", "RGB", "F") and not image.mode.startswith("I"):
            image = image.convert("RGB")
        return np.asarray(image)


def _is_gray(image: Image.Image) -> bool:
    colors = np.array(image.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
    return bool((colors == colors[:, :1]).all())


class _DeepPngSource(_Source):
    """A PNG with three or four channels of 16 bits, which Pillow would reduce to 8 bits."""

    def __init__(self, path: str, file: Any):
        width, height = struct.unpack(">II", file.read(24)[16:])
        file.seek(0)
        super().__init__(path, 1, height, width)
        self._file = file
        _check_size(path, height, width)

    def _read(self, number: int) -> np.ndarray:
        content = np.frombuffer(self._file.read(), np.uint8)
        pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise OSError(f"{self.path}: the PNG is damaged")
        return pixels[:, :, 2::-1]


class _NumpySource(_Source):
    def __init__(self, path: str, file: Any):
        try:
            self._array = np.load(io.BytesIO(file.read()), allow_pickle=False)
        except ValueError as error:
            raise UnreadableImage(f"{path}: {error}") from error
        shape = self._array.shape
        self._has_planes = len(shape) == 4 or (len(shape) == 3 and shape[2] > _MOST_NPY_CHANNELS)
        if len(shape) not in (2, 3, 4) or 0 in shape:
            raise UnreadableImage(
                f"{path} has an array of shape {shape}; allowed: (H, W), (H, W, C) with up to "
                f"{_MOST_NPY_CHANNELS} channels, (planes, H, W), (planes, H, W, C)"
            )
        planes, size = (shape[0], shape[1:3]) if self._has_planes else (1, shape[:2])
        super().__init__(path, planes, *size)

    def _read(self, number: int) -> np.ndarray:
        pixels = self._array[number] if self._has_planes else self._array
        if pixels.ndim == 3 and pixels.shape[2] == 4:
            pixels = pixels[:, :, :3]
        return pixels


def _open_tiff(path: str, file: Any) -> _Source:
    """Opens a TIFF with Pillow if Pillow keeps all bits, and with tifffile otherwise."""
    import tifffile

    try:
        tiff = tifffile.TiffFile(file)
        source = _TiffSource(path, tiff)
    except (tifffile.TiffFileError, IndexError, ValueError, struct.error) as error:
        if isinstance(error, UnreadableImage):
            raise
        raise OSError(f"{path}: {' '.join(str(error).split())}") from error
    # Pillow decodes compressed files without another package.
    if source.count == 1 and source.is_plain:
        file.seek(0)
        try:
            return _PillowSource(path, file)
        except Image.UnidentifiedImageError:
            file.seek(0)
    return source


class _TiffSource(_Source):
    def __init__(self, path: str, tiff: Any):
        self._series = tiff.series[0]
        self._page = self._series.keyframe
        axes, shape = self._series.axes, self._series.shape
        if "Y" not in axes or "X" not in axes or 0 in shape:
            raise UnreadableImage(f"{path} has the axes {axes or 'none'}; allowed: with Y and X")
        sizes = dict(zip(axes, shape))
        _check_size(path, sizes["Y"], sizes["X"])
        self._others = [axis for axis in axes if axis not in "YXSC"]
        self._channels = [axis for axis in axes if axis in "SC"]
        count = int(np.prod([sizes[axis] for axis in self._others], dtype=np.int64))
        depth = self._page.dtype
        self.is_plain = (
            axes in ("YX", "YXS")
            and depth is not None
            and depth.kind in "bu"
            and depth.itemsize == 1
            and sizes.get("S", 1) in (1, 3, 4)
        )
        tags = self._page.tags
        orientation = int(tags[_ORIENTATION].value) if _ORIENTATION in tags else 1
        super().__init__(path, count, sizes["Y"], sizes["X"], orientation)

    def _read(self, number: int) -> np.ndarray:
        try:
            array = self._plane_array(number)
        except ValueError as error:  # the compression needs another package
            reason = " ".join(str(error).split())
            hint = "; pip install imagecodecs" if "imagecodecs" in reason else ""
            raise UnreadableImage(f"{self.path}: {reason}{hint}") from error
        photometric = getattr(self._page.photometric, "name", "")
        if photometric == "PALETTE" and self._page.colormap is not None:
            array = (self._page.colormap[:, array[..., 0]] >> 8).astype(np.uint8)
            array = np.moveaxis(array, 0, -1)
        elif photometric == "MINISWHITE" and array.dtype.kind in "bu":
            array = ~array if array.dtype == bool else np.iinfo(array.dtype).max - array
        if photometric == "RGB" and array.shape[2] > 3:
            array = array[:, :, :3]
        elif photometric in ("MINISBLACK", "MINISWHITE") and self._has_alpha(array):
            array = array[:, :, :-1]
        return array

    def _plane_array(self, number: int) -> np.ndarray:
        """Returns (H, W, C) of one plane."""
        axes, shape = self._series.axes, self._series.shape
        lazily = self._page_of(number)
        array = self._series.asarray() if lazily is None else lazily.asarray()
        if lazily is not None:
            axes, shape = lazily.axes, lazily.shape
        array = array.reshape(shape)
        order = [axis for axis in self._others if axis in axes]
        array = array.transpose(
            [axes.index(a) for a in [*order, "Y", "X"]] + [axes.index(a) for a in axes if a in "SC"]
        )
        planes = array.reshape(-1, *array.shape[len(order) :])
        plane = planes[number if lazily is None else 0]
        return plane.reshape(*plane.shape[:2], -1)

    def _page_of(self, number: int) -> Optional[Any]:
        """Returns the page that is the plane, so that nothing else of a stack is read."""
        pages = self._series.pages
        if self.count > 1 and len(pages) == self.count and not ({"C"} & set(self._channels)):
            page = pages[number]
            return getattr(page, "aspage", lambda: page)()
        return None

    def _has_alpha(self, array: np.ndarray) -> bool:
        samples = [getattr(sample, "name", "") for sample in self._page.extrasamples or ()]
        return array.shape[2] == 2 and samples[-1:] in (["UNASSALPHA"], ["ASSOCALPHA"])


def _check_size(path: str, height: int, width: int) -> None:
    """Raises an error for images that are far too large, as Pillow does."""
    limit = 2 * (Image.MAX_IMAGE_PIXELS or height * width)
    if height * width > limit:
        raise Image.DecompressionBombError(
            f"{path} has {height} x {width} pixels; allowed: up to {limit} pixels"
        )
