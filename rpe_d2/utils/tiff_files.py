"""Reading TIFF files of any number type, with any number of channels and planes."""

from typing import Any, BinaryIO, List, NamedTuple, Optional, Tuple

import cv2
import numpy as np
import tifffile

__all__ = ["TiffPlanes", "is_tiff"]

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CHANNEL_AXES = "CS"  # channels of a hyperstack, samples of a pixel
_ORIENTATION = 274
# By the number of samples of a pixel, what Pillow knows: gray and palettes, RGB, YCbCr, Lab, CMYK.
_PLAIN = {1: (0, 1, 3), 3: (2, 6, 8), 4: (2, 5)}
_ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)


def is_tiff(start: bytes) -> bool:
    """Returns whether the first bytes of a file are those of a TIFF file."""
    return start[:4] in _MAGIC


class _Plane(NamedTuple):
    series: int
    index: int  # among the planes of its series


class TiffPlanes:
    """The planes of a TIFF file: its pages, z-slices and times.

    Thumbnails and the smaller levels of a pyramid do not count.
    """

    def __init__(self, file: BinaryIO):
        """
        Args:
            file: the open file, which must stay open.
        """
        self._file = file
        self._tiff = tifffile.TiffFile(file)
        series = [one for one in self._tiff.series if one.keyframe is not None]
        full = [one for one in series if not one.keyframe.is_reduced]
        self._series = full or series
        self._planes = [
            _Plane(number, index)
            for number, one in enumerate(self._series)
            for index in range(_number_of_planes(one))
        ]

    def __len__(self) -> int:
        return len(self._planes)

    def dtype(self, plane: int) -> np.dtype:
        """Returns the number type of a plane."""
        return np.dtype(self._of(plane).dtype)

    def size(self, plane: int) -> Tuple[int, int]:
        """Returns the height and width of a plane as they are stored."""
        series = self._of(plane)
        return tuple(series.shape[series.axes.index(axis)] for axis in "YX")

    def orientation(self, plane: int) -> int:
        """Returns the EXIF orientation of a plane, 1 to 8."""
        tag = self._of(plane).keyframe.tags.get(_ORIENTATION)
        return int(tag.value) if tag is not None else 1

    def is_plain(self) -> bool:
        """Returns whether Pillow reads the file without a loss: one plane of 8 bits, 1 to 4 bands.

        Pillow resolves palettes, CMYK and the color spaces of JPEG compression.
        """
        page = self._series[0].keyframe
        return (
            len(self) == len(self._tiff.pages) == 1
            and page.bitspersample in (1, 2, 4, 8)
            and page.dtype in (np.uint8, np.bool_)
            and page.photometric in _PLAIN.get(page.samplesperpixel, ())
        )

    def alpha(self, plane: int) -> Optional[int]:
        """Returns the index of the alpha channel of a plane, or None."""
        series = self._of(plane)
        extra = series.keyframe.extrasamples
        channels = _number_of_channels(series)
        if channels != series.keyframe.samplesperpixel or not extra:
            return None
        first = channels - len(extra)
        found = [first + i for i, kind in enumerate(extra) if kind in _ALPHA]
        if found:
            return found[0]
        is_rgb = series.keyframe.photometric == tifffile.PHOTOMETRIC.RGB
        return 3 if is_rgb and channels == 4 else None

    def read(self, plane: int) -> np.ndarray:
        """Reads a plane as it is stored.

        Returns:
            (H, W, C) of the file's own number type.
        """
        series, (_, index) = self._of(plane), self._planes[plane]
        count = _number_of_planes(series)
        try:
            if len(series.pages) == count and series.pages[index] is not None:
                page = series.pages[index]
                _check_complete(page)
                axes, pixels = page.axes, page.asarray()
            else:
                for page in series.pages:
                    _check_complete(page)
                axes, pixels = _plane_of(series, index)
        except ValueError as error:
            if "imagecodecs" not in str(error) or len(series.pages) != count:
                raise
            return self._read_with_opencv(series, index, str(error))
        return _channels_last(pixels, axes)

    def has_inverted_intensities(self, plane: int) -> bool:
        """Returns whether 0 is white."""
        return self._of(plane).keyframe.photometric == tifffile.PHOTOMETRIC.MINISWHITE

    def _of(self, plane: int) -> Any:
        return self._series[self._planes[plane].series]

    def _read_with_opencv(self, series: Any, index: int, reason: str) -> np.ndarray:
        """Reads a compression that tifffile needs the large package imagecodecs for, such as LZW.

        Raises:
            ValueError: OpenCV cannot read it either.
        """
        page = series.pages[index].index
        self._file.seek(0)
        content = np.frombuffer(self._file.read(), np.uint8)
        read, mats = cv2.imdecodemulti(content, cv2.IMREAD_UNCHANGED, range=(page, page + 1))
        wrong = ValueError(f"{reason}; install it, or save the file without this compression")
        if not read or not len(mats) or mats[0].shape[:2] != series.keyframe.shape[:2]:
            raise wrong
        pixels = mats[0] if mats[0].ndim == 3 else mats[0][:, :, None]
        channels = pixels.shape[2]
        if pixels.dtype != series.dtype or channels != series.keyframe.samplesperpixel:
            raise wrong
        order = [2, 1, 0, 3][:channels] if channels in (3, 4) else list(range(channels))
        return np.ascontiguousarray(pixels[:, :, order])


def _number_of_planes(series: Any) -> int:
    sides = [s for s, axis in zip(series.shape, series.axes) if axis not in _CHANNEL_AXES + "YX"]
    return int(np.prod(sides, dtype=np.int64))


def _number_of_channels(series: Any) -> int:
    sides = [s for s, axis in zip(series.shape, series.axes) if axis in _CHANNEL_AXES]
    return int(np.prod(sides, dtype=np.int64))


def _plane_of(series: Any, index: int) -> Tuple[str, np.ndarray]:
    """Reads one plane of a series whose channels are pages, or whose pages are one block."""
    pixels = series.asarray()
    others = [i for i, axis in enumerate(series.axes) if axis not in _CHANNEL_AXES + "YX"]
    position = np.unravel_index(index, [series.shape[i] for i in others]) if others else ()
    place: List[Any] = [slice(None)] * pixels.ndim
    for axis, value in zip(others, position):
        place[axis] = int(value)
    axes = "".join(axis for axis in series.axes if axis in _CHANNEL_AXES + "YX")
    return axes, pixels[tuple(place)]


def _channels_last(pixels: np.ndarray, axes: str) -> np.ndarray:
    """Reorders a plane to (H, W, C). Axes of length 1 besides those are dropped."""
    keep = [i for i, axis in enumerate(axes) if axis in _CHANNEL_AXES + "YX"]
    pixels = pixels.reshape([pixels.shape[i] for i in keep])
    axes = "".join(axes[i] for i in keep)
    order = [axes.index("Y"), axes.index("X")]
    order += [i for i in range(len(axes)) if i not in order]
    height, width = (pixels.shape[i] for i in order[:2])
    return pixels.transpose(order).reshape(height, width, -1)


def _check_complete(page: Any) -> None:
    """Raises where a page is cut: tifffile fills missing strips and tiles with zeros.

    Raises:
        ValueError: Bytes of the page lie behind the end of the file.
    """
    if page is None:
        return
    page = page.aspage()
    size = page.parent.filehandle.size
    ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts)]
    if any(end > size for end in ends):
        raise ValueError(f"the file is truncated: it has {size} bytes of {max(ends)}")
