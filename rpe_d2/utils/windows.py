"""Reading parts of images that are larger than memory: TIFF files and Zarr arrays."""

import os
from abc import ABC, abstractmethod
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Iterator, List, Optional, Tuple

import numpy as np
from detectron2.utils.file_io import PathManager

from .image_files import check_is_file, printable, split_plane
from .images import ImageReader
from .readable import UnreadableImage
from .tiff_files import TiffPlanes, is_tiff

__all__ = ["NetworkWindows", "StoredWindows", "is_zarr", "number_of_pixels", "open_windows"]

# The last or the first axis of a Zarr array is that of channels if it is no longer than this.
_MOST_CHANNELS = 16
# Pixels that are read for the percentiles of a whole image.
_SAMPLE = 4_000_000
_ROWS = 512  # at a time
_LARGEST_PART = 256 << 20  # bytes of a strip or tile, and of those that are kept
_PALETTE = 3  # TIFF's photometric interpretation


class StoredWindows(ABC):
    """An image on disk of which parts can be read.

    Attributes:
        shape: height, width and number of channels.
        dtype: the number type.
        alpha: index of the channel that holds opacities, or None.
    """

    shape: Tuple[int, int, int]
    dtype: np.dtype
    alpha: Optional[int] = None

    @abstractmethod
    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Reads a window (h, w, C) as it is stored."""


class _TiffWindows(StoredWindows):
    """A plane of a TIFF file that is one page of strips or tiles."""

    def __init__(self, tiff: TiffPlanes, plane: int):
        page = tiff.page(plane)
        if page is None or tiff.orientation(plane) != 1:
            raise ValueError("its planes are no separate, upright pages; allowed: those")
        if page.photometric == _PALETTE:
            raise ValueError("it has a palette; allowed: gray values or colors")
        self._page, self._file = page, page.parent.filehandle
        self.alpha = tiff.alpha(plane)
        self._is_inverted = tiff.has_inverted_intensities(plane)
        self._is_planar = page.planarconfig == 2  # one strip or tile per channel
        height, width = page.imagelength, page.imagewidth
        self.shape, self.dtype = (height, width, page.samplesperpixel), np.dtype(page.dtype)
        self._part = (
            (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
        )
        self._grid = tuple(-(-side // part) for side, part in zip((height, width), self._part))
        self._whole = self._mapped() if page.is_memmappable else None
        size = self._part[0] * self._part[1] * self.shape[2] * self.dtype.itemsize
        if self._whole is None and size > _LARGEST_PART:
            raise ValueError(
                f"it has compressed parts of {self._part[1]} x {self._part[0]} pixels; allowed: at "
                f"most {_LARGEST_PART >> 20} MB each, as with tiles"
            )
        # Neighboring windows share strips or tiles.
        self._decoded = lru_cache(max(1, _LARGEST_PART // max(size, 1)))(self._decode)

    def _mapped(self) -> np.ndarray:
        """Maps the pixels (H, W, C) of a page that is not compressed."""
        page = self._page
        dtype = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
        offset, shape = page.dataoffsets[0], self.shape
        if self._is_planar:
            shape = shape[2], shape[0], shape[1]
        size = int(np.prod(shape)) * dtype.itemsize
        self._check_end(offset + size)
        name = self._file.path if os.path.isfile(self._file.path) else self._file.name
        whole = np.memmap(name, dtype, "r", offset, shape)
        return whole.transpose(1, 2, 0) if self._is_planar else whole

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        window = self._read(rows, columns)
        if self._is_inverted and self.dtype.kind == "u":
            return np.iinfo(self.dtype).max - window
        return window

    def _read(self, rows: slice, columns: slice) -> np.ndarray:
        if self._whole is not None:
            return np.ascontiguousarray(self._whole[rows, columns], dtype=self.dtype)
        window = np.zeros((rows.stop - rows.start, columns.stop - columns.start, self.shape[2]))
        window = window.astype(self.dtype)
        for y in range(rows.start // self._part[0], -(-rows.stop // self._part[0])):
            for x in range(columns.start // self._part[1], -(-columns.stop // self._part[1])):
                for channel in range(self.shape[2] if self._is_planar else 1):
                    part = self._decoded((channel * self._grid[0] + y) * self._grid[1] + x)
                    if part is None:
                        continue
                    top, left = y * self._part[0], x * self._part[1]
                    low = max(rows.start, top), max(columns.start, left)
                    high = (
                        min(rows.stop, top + part.shape[0]),
                        min(columns.stop, left + part.shape[1]),
                    )
                    target = window[
                        low[0] - rows.start : high[0] - rows.start,
                        low[1] - columns.start : high[1] - columns.start,
                    ]
                    source = part[low[0] - top : high[0] - top, low[1] - left : high[1] - left]
                    if self._is_planar:
                        target[:, :, channel] = source[:, :, 0]
                    else:
                        target[...] = source
        return window

    def _check_end(self, end: int) -> None:
        if end > self._file.size:
            raise ValueError(f"the file is truncated: it has {self._file.size} bytes of {end}")

    def _decode(self, index: int) -> Any:
        """Returns the strip or tile (h, w, C) with an index, or None if it was not written."""
        offset, size = self._page.dataoffsets[index], self._page.databytecounts[index]
        if not size:
            return None
        self._check_end(offset + size)
        self._file.seek(offset)
        tables = {"jpegtables": self._page.jpegtables, "jpegheader": self._page.jpegheader}
        part, _, _ = self._page.decode(self._file.read(size), index, **tables)
        return None if part is None else part.reshape(part.shape[-3:])


class _ZarrWindows(StoredWindows):
    """An array of two axes, or of three axes of which the first or the last is that of channels.

    Axes of length 1 are left out. In a group, as OME-Zarr stores the levels of a pyramid, the
    largest level is read.
    """

    def __init__(self, path: str):
        try:
            import zarr
        except ImportError as error:
            raise ImportError(
                "Zarr arrays need the package zarr: pip install 'rpe_d2[large]'"
            ) from error
        found = zarr.open(path, mode="r")
        if isinstance(found, zarr.Group):
            arrays = [array for _, array in found.arrays()]
            if not arrays:
                raise ValueError("the group has no arrays; allowed: an image, or its levels")
            found = max(arrays, key=lambda array: array.size)
        self._array = found
        self._kept = [axis for axis, side in enumerate(found.shape) if side > 1]
        sides = [found.shape[axis] for axis in self._kept]
        self._first = len(sides) == 3 and sides[0] <= _MOST_CHANNELS < sides[2]
        if (
            len(sides) == 3
            and not self._first
            and sides[2] > _MOST_CHANNELS
            or len(sides) not in (2, 3)
        ):
            raise ValueError(
                f"the array has shape {found.shape}; allowed: height, width and up to "
                f"{_MOST_CHANNELS} channels"
            )
        if self._first:
            sides = [sides[1], sides[2], sides[0]]
        self.shape = (sides[0], sides[1], sides[2] if len(sides) == 3 else 1)
        self.dtype = np.dtype(found.dtype)

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        place: List[Any] = [0] * self._array.ndim
        wanted = [rows, columns] if len(self._kept) == 2 else [rows, columns, slice(None)]
        if self._first:
            wanted = [slice(None), rows, columns]
        for axis, part in zip(self._kept, wanted):
            place[axis] = part
        window = np.asarray(self._array[tuple(place)])
        if self._first:
            window = window.transpose(1, 2, 0)
        return window.reshape(*window.shape[:2], -1)


def is_zarr(path: str) -> bool:
    """Returns whether a path is the folder of a Zarr array or group."""
    names = "zarr.json", ".zarray", ".zgroup"
    return os.path.isdir(path) and any(os.path.isfile(os.path.join(path, n)) for n in names)


@contextmanager
def open_windows(file_name: str) -> Iterator[StoredWindows]:
    """Opens a TIFF file or a Zarr array for a ``with`` block.

    Args:
        file_name: the file or folder; ``name.tif[3]`` is plane 3, counted from 0.

    Raises:
        UnreadableImage: In the block or before it, the image cannot be read in parts. The message
            is one line that begins with the name of the file.
    """
    path, plane = split_plane(file_name)
    try:
        if is_zarr(path):
            yield _ZarrWindows(path)
            return
        check_is_file(path)
        with PathManager.open(path, "rb") as file:
            if not is_tiff(file.read(4)):
                raise ValueError("only TIFF files and Zarr arrays can be read in parts")
            file.seek(0)
            yield _TiffWindows(TiffPlanes(file), plane or 0)
    except UnreadableImage:
        raise
    except Exception as error:  # a damaged file may raise any error
        text = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{printable(file_name)}: {text}") from error


def number_of_pixels(file_name: str) -> int:
    """Returns the number of pixels of a TIFF file or Zarr array, 0 for files of other kinds."""
    path, _ = split_plane(file_name)
    if not is_zarr(path):
        if not os.path.isfile(path):
            return 0
        with open(path, "rb") as file:
            if not is_tiff(file.read(4)):
                return 0
    try:
        with open_windows(file_name) as image:
            return image.shape[0] * image.shape[1]
    except UnreadableImage:
        return 0


class NetworkWindows:
    """An image on disk as a network sees it, with the indexing of an array (H, W, C) uint8.

    Intensities are scaled by percentiles of the whole image, which are those of evenly spaced
    pixels.

    Attributes:
        shape: height, width and number of channels.
        dtype: uint8.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, image: StoredWindows, reader: ImageReader):
        """
        Args:
            image: the image.
            reader: converts windows to the format of the network.
        """
        self._image = image
        self._reader = reader.with_limits_of(self._sample(), image.alpha)
        self.shape = (*image.shape[:2], self[:1, :1].shape[2])

    def __getitem__(self, window: Tuple[slice, slice]) -> np.ndarray:
        rows, columns = (
            slice(*part.indices(side)[:2]) for part, side in zip(window, self._image.shape)
        )
        pixels = self._image.read(rows, columns)
        return self._reader.convert(self._reader.to_8bit(pixels, self._image.alpha))

    def _sample(self) -> np.ndarray:
        height, width, _ = self._image.shape
        step = max(1, int(np.ceil(np.sqrt(height * width / _SAMPLE))))
        rows = step * -(-_ROWS // step)  # so that tiles are decoded once
        everything = slice(0, width)
        return np.concatenate(
            [
                self._image.read(slice(y, min(y + rows, height)), everything)[::step, ::step]
                for y in range(0, height, rows)
            ]
        )
