"""Reading image files as they are stored: number type, channels, planes and EXIF orientation."""

import os
import re
import stat
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import BinaryIO, Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from .bit_depth import DEEP_MODES, is_reduced
from .readable import UnreadableImage
from .tiff_files import TiffPlanes, is_tiff

__all__ = [
    "IMAGE_SUFFIXES",
    "Pixels",
    "StoredImage",
    "check_is_file",
    "image_exists",
    "image_size",
    "image_stem",
    "list_images",
    "open_image",
    "plane_names",
    "printable",
    "split_plane",
]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp", ".npy")

_ORIENTATION = 0x0112  # EXIF tag
_PHOTOMETRIC = 262  # TIFF tag
_QUARTER_TURNS = (5, 6, 7, 8)  # its values that swap the sides
_TURNS = {
    2: np.fliplr,
    3: lambda array: np.rot90(array, 2),
    4: np.flipud,
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: np.rot90(array, -1),
    7: lambda array: np.rot90(array, 2).swapaxes(0, 1),
    8: np.rot90,
}
_PLANE = re.compile(r"(.+)\[(\d{1,9})\]", re.DOTALL)
_NPY = b"\x93NUMPY"
# An array of three axes is (H, W, C) if the last one is the shortest and no longer than this.
_MOST_NPY_CHANNELS = 16
# Formats in which further frames are previews or layers of the same picture.
_WITHOUT_PLANES = ("MPO", "PSD")
# The mode in which Pillow's images are returned. Others become RGB.
_KEPT_MODES = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA"}
# Modes with one index per pixel.
_INDEX_MODES = ("L", "P", "1", "I;16", "I;16B", "I;16L", "I")


class Pixels(NamedTuple):
    """A plane of an image file.

    Attributes:
        array: (H, W, C) in the number type of the file, upright.
        alpha: index of the channel that holds opacities, or None.
    """

    array: np.ndarray
    alpha: Optional[int] = None


class StoredImage(ABC):
    """An open image file. :func:`open_image` opens it."""

    num_planes = 1

    @abstractmethod
    def size(self, plane: int) -> Tuple[int, int]:
        """Returns the height and width of a plane as it is stored, before it is turned upright."""

    def orientation(self, plane: int) -> int:
        """Returns the EXIF orientation of a plane, 1 to 8."""
        return 1

    @abstractmethod
    def pixels(self, plane: int, as_gray: bool = False) -> Pixels:
        """Reads a plane for a network. Palettes are resolved.

        Args:
            plane: the plane.
            as_gray: whether colors of 8 bits may be returned as gray, which saves time where the
                network sees no colors.
        """

    @abstractmethod
    def indices(self, plane: int) -> Union[np.ndarray, str]:
        """Reads a plane as a label map. Palette indices are kept.

        Returns:
            (H, W), or what the file has in place of one index per pixel.
        """


@contextmanager
def open_image(file_name: str) -> Iterator[StoredImage]:
    """Opens an image file for a ``with`` block. The kind of file is detected by its content.

    Args:
        file_name: any path that Detectron2's PathManager opens.

    Raises:
        UnreadableImage: In the block or before it, the file cannot be read. The message is one line
            that begins with the name of the file.
    """
    try:
        check_is_file(file_name)
        with PathManager.open(file_name, "rb") as file:
            yield _stored_image(file)
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:  # its own message names an object of Python
        raise UnreadableImage(f"{printable(file_name)}: cannot identify image file") from error
    except FileNotFoundError as error:
        raise UnreadableImage(f"{printable(file_name)}: there is no such file") from error
    except Exception as error:  # decoders raise anything for damaged files
        reason = printable(" ".join(str(error).split())) or "it cannot be read"
        kind = "" if type(error) is ValueError else f" ({type(error).__name__})"
        raise UnreadableImage(f"{printable(file_name)}: {reason}{kind}") from error


def printable(text: str) -> str:
    """Returns a text in which lone surrogates, as in damaged file names, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def split_plane(file_name: str) -> Tuple[str, Optional[int]]:
    """Splits ``name.tif[3]`` into the path and the plane, counted from 0.

    A file whose own name ends like that is taken as it is; without a plane, the second is None.
    """
    match = _PLANE.fullmatch(file_name)
    if match and ("://" in file_name or not PathManager.exists(file_name)):
        return match[1], int(match[2])
    return file_name, None


def plane_names(file_name: str) -> List[str]:
    """Returns the names of all planes of a file, or its own name where it has one plane.

    Raises:
        UnreadableImage: The file cannot be read.
    """
    path, plane = split_plane(file_name)
    if plane is not None:
        return [file_name]
    with open_image(path) as image:
        count = image.num_planes
    return [path] if count == 1 else [f"{path}[{plane}]" for plane in range(count)]


def image_exists(file_name: str) -> bool:
    """Returns whether there is a file of this name, which may name a plane."""
    return file_exists(split_plane(file_name)[0])


def file_exists(path: str) -> bool:
    """Returns whether there is a file of this name."""
    return _is_there(PathManager.isfile, path)


def folder_exists(path: str) -> bool:
    """Returns whether there is a folder of this name."""
    return _is_there(PathManager.isdir, path)


def _is_there(check: Callable[[str], bool], path: str) -> bool:
    try:
        return check(path)
    except NotImplementedError:  # a web address, which no path manager handles
        return False


def image_stem(file_name: str) -> str:
    """Returns the name of a file without folders and suffix: ``name``, or ``name[3]``."""
    path, plane = split_plane(file_name)
    stem = os.path.splitext(os.path.basename(path))[0]
    return stem if plane is None else f"{stem}[{plane}]"


def list_images(
    folder: str, recursive: bool = False, suffixes: Sequence[str] = IMAGE_SUFFIXES
) -> List[str]:
    """Lists the image files of a folder by their suffix, in alphabetical order.

    NPY files are listed only where no other image has the same name: many tools store their output
    so, beside the image.

    Args:
        folder: the folder.
        recursive: whether to search its subfolders.
        suffixes: those of the files, in lower case.
    """
    paths = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        if not recursive:
            folders.clear()
        paths += [os.path.join(parent, name) for name in names]
    images = [p for p in paths if os.path.splitext(p)[1].lower() in suffixes]
    pictures = {os.path.splitext(p)[0] for p in images if not p.lower().endswith(".npy")}
    return sorted(
        p for p in images if not p.lower().endswith(".npy") or p[: -len(".npy")] not in pictures
    )


def image_size(file_name: str) -> Tuple[int, int]:
    """Returns width and height of an upright image, or of its first plane, from its header alone.

    Raises:
        UnreadableImage: The file cannot be read.
    """
    path, plane = split_plane(file_name)
    with open_image(path) as image:
        height, width = image.size(plane or 0)
        is_turned = image.orientation(plane or 0) in _QUARTER_TURNS
    return (height, width) if is_turned else (width, height)


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an image (H, W, …) upright, given its EXIF orientation. The result may be a view."""
    turn = _TURNS.get(orientation)
    return turn(array) if turn else array


def check_is_file(path: str) -> None:
    """Checks that a path is no folder, and no pipe or device: those are waited for without end.

    Raises:
        UnreadableImage: It is one of these.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # a URL, or a missing file, which opening reports
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise UnreadableImage(f"{printable(path)} is {kind}; allowed: a file")


def _stored_image(file: BinaryIO) -> StoredImage:
    start = file.read(len(_NPY))
    file.seek(0)
    if not start:
        raise ValueError("the file is empty")
    if start == _NPY:
        return _NpyImage(file)
    if is_tiff(start):
        tiff = TiffPlanes(file)
        if not tiff.is_plain():
            return _TiffImage(tiff)
        file.seek(0)
    return _PillowImage(file)


def _check_number_of_pixels(size: Tuple[int, int]) -> None:
    """Applies Pillow's limit to the readers that have none.

    Raises:
        ValueError: The image is larger.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > 2 * limit:
        raise Image.DecompressionBombError(
            f"the image has {size[0]} x {size[1]} pixels; allowed: at most {2 * limit} pixels"
        )


class _PillowImage(StoredImage):
    def __init__(self, file: BinaryIO):
        self._file = file
        self._image = Image.open(file)
        if self._image.format == "EPS":
            raise ValueError("the file is a program in PostScript, which is not run")
        if self._image.format not in _WITHOUT_PLANES:
            self.num_planes = getattr(self._image, "n_frames", 1)
        if self._image.format == "TIFF" and self.orientation(0) != 1:
            # Pillow turns the pixels upright when it loads them, and then drops the orientation.
            self._image.load()

    def size(self, plane: int) -> Tuple[int, int]:
        self._image.seek(plane)
        width, height = self._image.size
        return height, width

    def orientation(self, plane: int) -> int:
        try:
            return int(self._image.getexif().get(_ORIENTATION, 1))
        except Exception:  # damaged EXIF data do not damage the pixels
            return 1

    def pixels(self, plane: int, as_gray: bool = False) -> Pixels:
        self._image.seek(plane)
        if is_reduced(self._image):
            return self._read_with_opencv(plane)
        image, mode = self._image, _KEPT_MODES.get(self._image.mode, "RGB")
        if as_gray and mode.startswith("RGB"):
            mode = "L"
        if image.mode in DEEP_MODES:
            array = _native(np.asarray(image))
        else:
            array = np.asarray(image if image.mode == mode else image.convert(mode))
        array = upright(array, self.orientation(plane))
        if array.ndim == 2:
            array = array[:, :, None]
        return Pixels(array, array.shape[2] - 1 if array.shape[2] in (2, 4) else None)

    def indices(self, plane: int) -> Union[np.ndarray, str]:
        self._image.seek(plane)
        if self._image.mode not in _INDEX_MODES:
            return f"the mode {self._image.mode}"
        labels = _native(np.asarray(self._image))
        if labels.dtype == np.uint8 and self._is_white_at_0():
            labels = 255 - labels  # the stored numbers, which Pillow has inverted
        return upright(labels, self.orientation(plane))

    def _is_white_at_0(self) -> bool:
        return self._image.format == "TIFF" and self._image.tag_v2.get(_PHOTOMETRIC) == 0

    def _read_with_opencv(self, plane: int) -> Pixels:
        self._file.seek(0)
        content = np.frombuffer(self._file.read(), np.uint8)
        array = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
        if array is None or array.shape[:2] != self.size(plane):
            raise ValueError("the 16-bit image is damaged, or its format is read with 8 bits only")
        array = array[:, :, None] if array.ndim == 2 else array
        channels = array.shape[2]
        array = upright(array, self.orientation(plane))
        if channels < 3:
            return Pixels(array)
        return Pixels(array[:, :, [2, 1, 0, 3][:channels]], 3 if channels == 4 else None)


class _TiffImage(StoredImage):
    def __init__(self, tiff: TiffPlanes):
        self._tiff = tiff
        self.num_planes = len(tiff)

    def size(self, plane: int) -> Tuple[int, int]:
        size = self._tiff.size(plane)
        _check_number_of_pixels(size)
        return size

    def orientation(self, plane: int) -> int:
        return self._tiff.orientation(plane)

    def pixels(self, plane: int, as_gray: bool = False) -> Pixels:
        array = self._read(plane)
        if self._tiff.has_inverted_intensities(plane) and array.dtype.kind == "u":
            array = np.iinfo(array.dtype).max - array
        return Pixels(array, self._tiff.alpha(plane))

    def indices(self, plane: int) -> Union[np.ndarray, str]:
        array = self._read(plane)
        return array[:, :, 0] if array.shape[2] == 1 else f"{array.shape[2]} channels"

    def _read(self, plane: int) -> np.ndarray:
        self.size(plane)
        return upright(_native(self._tiff.read(plane)), self.orientation(plane))


class _NpyImage(StoredImage):
    """An array (H, W), (H, W, C), (planes, H, W) or (planes, H, W, C)."""

    def __init__(self, file: BinaryIO):
        # Files on the disk are mapped, so that only one plane of them is read.
        name = getattr(file, "name", None)
        is_on_disk = isinstance(name, str) and os.path.isfile(name)
        source = {"file": name, "mmap_mode": "r"} if is_on_disk else {"file": file}
        self._array = np.load(**source, allow_pickle=False)
        shape = self._array.shape
        has_channels = len(shape) == 4 or (
            len(shape) == 3 and shape[2] <= min(*shape[:2], _MOST_NPY_CHANNELS)
        )
        if len(shape) not in (2, 3, 4) or not self._array.size:
            raise ValueError(
                f"the array has the shape {shape}; allowed: (H, W), (H, W, C), (planes, H, W) or "
                "(planes, H, W, C)"
            )
        self._has_planes = len(shape) == 3 + has_channels
        self._has_channels = has_channels
        self.num_planes = shape[0] if self._has_planes else 1

    def size(self, plane: int) -> Tuple[int, int]:
        size = self._array.shape[1:3] if self._has_planes else self._array.shape[:2]
        _check_number_of_pixels(size)
        return size

    def pixels(self, plane: int, as_gray: bool = False) -> Pixels:
        array = self._read(plane)
        array = array if self._has_channels else array[:, :, None]
        return Pixels(array, 3 if array.shape[2] == 4 else None)

    def indices(self, plane: int) -> Union[np.ndarray, str]:
        array = self._read(plane)
        if array.ndim == 2:
            return array
        return f"an array {self._array.shape} of {self._array.dtype}"

    def _read(self, plane: int) -> np.ndarray:
        self.size(plane)
        return _native(np.array(self._array[plane] if self._has_planes else self._array))


def _native(array: np.ndarray) -> np.ndarray:
    """Returns an array in the byte order of the machine.

    Raises:
        ValueError: It has neither numbers nor booleans.
    """
    if array.dtype.kind not in "buif":
        raise ValueError(f"the number type is {array.dtype}; allowed: integer or floating point")
    return array.astype(array.dtype.newbyteorder("="), copy=False)
