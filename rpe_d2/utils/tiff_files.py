"""Reading TIFF files of any number type, with any number of channels and planes."""

import html
import logging
import re
from typing import Any, BinaryIO, Dict, List, NamedTuple, Optional, Tuple

import cv2
import numpy as np
import tifffile

__all__ = ["TiffLayout", "TiffPlanes", "is_tiff", "ome_metadata", "tiff_layout"]

# It reports damage in lines of its own. What matters here is raised.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CHANNEL_AXES = "CS"  # channels of a hyperstack, samples of a pixel
_ORIENTATION = 274
# By the number of samples of a pixel, what Pillow knows: gray and palettes, RGB, YCbCr, Lab, CMYK.
_PLAIN = {1: (0, 1, 3), 3: (2, 6, 8), 4: (2, 5)}
_SIZES = re.compile(r'\bSize[ZCT]\s*=\s*["\'](\d+)')  # in the metadata of OME-TIFF
_PHYSICAL_SIZES = re.compile(
    r'\bPhysicalSize([XYZ])\s*=\s*["\'](\d+(?:\.\d*)?(?:[eE][-+]?\d{1,2})?)["\']'
)
_PHYSICAL_UNITS = re.compile(r'\bPhysicalSize[XYZ]Unit\s*=\s*["\']([^"\']+)')
_MOST_PLANES = 1_000_000
_ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)


def is_tiff(start: bytes) -> bool:
    """Returns whether the first bytes of a file are those of a TIFF file."""
    return start[:4] in _MAGIC


def tiff_layout(path: str) -> Optional["TiffLayout"]:
    """Returns the layout of a TIFF file, or None for other files."""
    with open(path, "rb") as file:
        start = file.read(4)
        file.seek(0)
        return TiffPlanes(file).layout() if is_tiff(start) else None


def ome_metadata(layout: Optional["TiffLayout"], axes: str) -> Dict[str, Any]:
    """Returns arguments of ``tifffile.imwrite`` that store axes and the size of a pixel.

    Args:
        layout: layout of the image. None: no sizes are stored.
        axes: letters of all axes of what is written.
    """
    metadata: Dict[str, Any] = {"axes": axes}
    for axis, size in (layout.pixel_size if layout else {}).items():
        metadata[f"PhysicalSize{axis}"] = size
        metadata[f"PhysicalSize{axis}Unit"] = layout.unit
    return {"ome": True, "metadata": metadata}


class TiffLayout(NamedTuple):
    """The axes of a file besides those of a plane, and the size of a pixel.

    Attributes:
        axes: letters of the axes before Y and X, such as "TZ" for times and slices.
        sides: their lengths. The planes are in the order of these axes, the last one fastest.
        pixel_size: sizes by the letters X, Y and Z, as far as the file has them.
        unit: their unit, such as "µm".
    """

    axes: str
    sides: Tuple[int, ...]
    pixel_size: Dict[str, float]
    unit: str


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

        Raises:
            ValueError: The list of its pages is cut, so that planes are missing.
        """
        self._file = file
        self._tiff = tifffile.TiffFile(file)
        _check_list_of_pages(self._tiff)
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
        if not {"Y", "X"} <= set(series.axes):
            raise ValueError(f"a plane has the axes {series.axes}; allowed: height Y and width X")
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
        pages = _pages_of(series, index)
        if pages is None:
            for page in series.pages:
                _check_complete(page)
            return _channels_last(*_plane_of(series, index))
        for page in pages:
            _check_complete(page)
        pixels = [_channels_last(page.axes, self._read_page(page)) for page in pages]
        return pixels[0] if len(pixels) == 1 else np.concatenate(pixels, axis=2)

    def layout(self) -> Optional[TiffLayout]:
        """Returns the layout of the file, or None if it has several images of different axes."""
        if len(self._series) != 1:
            return None
        series = self._series[0]
        leading = [
            (axis, side)
            for axis, side in zip(series.axes, series.shape)
            if axis not in _CHANNEL_AXES + "YX"
        ]
        axes, sides = "".join(axis for axis, _ in leading), tuple(side for _, side in leading)
        return TiffLayout(axes, sides, *self._pixel_size())

    def _pixel_size(self) -> Tuple[Dict[str, float], str]:
        if self._tiff.ome_metadata:
            found = _PHYSICAL_SIZES.findall(self._tiff.ome_metadata)
            units = _PHYSICAL_UNITS.findall(self._tiff.ome_metadata)
            return {axis: float(size) for axis, size in found}, html.unescape(
                units[0] if units else "µm"
            )
        page = self._series[0].keyframe
        imagej = self._tiff.imagej_metadata or {}
        unit = imagej.get("unit") or {2: "inch", 3: "cm"}.get(int(page.resolutionunit), "")
        unit = {"um": "µm", "micron": "µm", "\\u00B5m": "µm"}.get(unit, unit)
        if not unit:
            return {}, ""
        per_unit = dict(zip("XY", page.resolution))
        sizes = {axis: 1 / value for axis, value in per_unit.items() if value > 0}
        if isinstance(imagej.get("spacing"), (int, float)) and imagej["spacing"] > 0:
            sizes["Z"] = float(imagej["spacing"])
        return sizes, unit

    def page(self, plane: int) -> Optional[Any]:
        """Returns the page of a plane, or None if the plane is not one page of its own."""
        series, (_, index) = self._of(plane), self._planes[plane]
        pages = _pages_of(series, index)
        return pages[0].aspage() if pages is not None and len(pages) == 1 else None

    def has_inverted_intensities(self, plane: int) -> bool:
        """Returns whether 0 is white."""
        return self._of(plane).keyframe.photometric == tifffile.PHOTOMETRIC.MINISWHITE

    def _of(self, plane: int) -> Any:
        return self._series[self._planes[plane].series]

    def _read_page(self, page: Any) -> np.ndarray:
        try:
            return page.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            return self._read_with_opencv(page, str(error))

    def _read_with_opencv(self, page: Any, reason: str) -> np.ndarray:
        """Reads a compression that tifffile needs the large package imagecodecs for, such as LZW.

        Raises:
            ValueError: OpenCV cannot read it either.
        """
        self._file.seek(0)
        content = np.frombuffer(self._file.read(), np.uint8)
        place = page.index, page.index + 1
        read, mats = cv2.imdecodemulti(content, cv2.IMREAD_UNCHANGED, range=place)
        if read and len(mats):
            pixels, shape = mats[0], page.shape
            if pixels.dtype == page.dtype and pixels.shape == shape and page.axes in ("YX", "YXS"):
                channels = shape[2] if len(shape) == 3 else 1
                return pixels if channels < 3 else pixels[:, :, [2, 1, 0, 3][:channels]]
        raise ValueError(f"{reason}; install it, or save the file without this compression")


def _number_of_planes(series: Any) -> int:
    sides = [s for s, axis in zip(series.shape, series.axes) if axis not in _CHANNEL_AXES + "YX"]
    return int(np.prod(sides, dtype=np.int64))


def _number_of_channels(series: Any) -> int:
    sides = [s for s, axis in zip(series.shape, series.axes) if axis in _CHANNEL_AXES]
    return int(np.prod(sides, dtype=np.int64))


def _pages_of(series: Any, index: int) -> Optional[List[Any]]:
    """Returns the pages of one plane, one for each channel where channels are pages.

    Returns:
        The pages, or None where a page is not one plane or one channel of it.
    """
    leading = len(series.shape) - len(series.keyframe.shape)
    axes, shape = series.axes[:leading], series.shape[:leading]
    is_split = series.keyframe.axes != series.axes[leading:]
    if leading < 0 or is_split or set(series.keyframe.axes) - set(_CHANNEL_AXES + "YX"):
        return None
    if len(series.pages) != int(np.prod(shape, dtype=np.int64)):
        return None
    numbers = np.arange(len(series.pages)).reshape(shape)
    order = [i for i, axis in enumerate(axes) if axis not in _CHANNEL_AXES]
    order += [i for i in range(leading) if i not in order]
    numbers = numbers.transpose(order).reshape(_number_of_planes(series), -1)
    return [series.pages[number] for number in numbers[index].tolist()]


def _plane_of(series: Any, index: int) -> Tuple[str, np.ndarray]:
    """Reads one plane of a series whose pages are blocks of planes."""
    pixels = series.asarray()
    others = [i for i, axis in enumerate(series.axes) if axis not in _CHANNEL_AXES + "YX"]
    position = np.unravel_index(index, [series.shape[i] for i in others]) if others else ()
    place: List[Any] = [slice(None)] * pixels.ndim
    for axis, value in zip(others, position):
        place[axis] = int(value)
    axes = "".join(axis for axis in series.axes if axis in _CHANNEL_AXES + "YX")
    return axes, pixels[tuple(place)]


def _channels_last(axes: str, pixels: np.ndarray) -> np.ndarray:
    """Reorders a plane to (H, W, C). Axes of length 1 besides those are dropped."""
    keep = [i for i, axis in enumerate(axes) if axis in _CHANNEL_AXES + "YX"]
    pixels = pixels.reshape([pixels.shape[i] for i in keep])
    axes = "".join(axes[i] for i in keep)
    order = [axes.index("Y"), axes.index("X")]
    order += [i for i in range(len(axes)) if i not in order]
    height, width = (pixels.shape[i] for i in order[:2])
    return pixels.transpose(order).reshape(height, width, -1)


def _check_list_of_pages(tiff: tifffile.TiffFile) -> None:
    """Raises where tifffile would read fewer or more planes than the file has.

    Raises:
        ValueError: The list of pages is cut, or the metadata describe too many.
    """
    count = len(tiff.pages)  # reads the whole list
    start = tiff.pages.next_page_offset
    if start is not None:
        tiff.filehandle.seek(start)
        offset = tiff.filehandle.read(tiff.tiff.offsetsize)
        if any(offset) or len(offset) < tiff.tiff.offsetsize:
            raise ValueError(f"the file is truncated or damaged after {count} of its pages")
    sizes = map(int, _SIZES.findall(tiff.ome_metadata or ""))
    if np.prod([float(size) for size in sizes]) > _MOST_PLANES:
        raise ValueError(f"its OME metadata describe more than {_MOST_PLANES} planes")


def _check_complete(page: Any) -> None:
    """Raises where a page is cut: tifffile fills missing strips, tiles and pages with zeros.

    Raises:
        ValueError: Bytes of the page lie behind the end of the file, or in another file that
            does not exist.
    """
    if page is None:
        raise ValueError("its metadata describe planes that are missing from the file")
    page = page.aspage()
    size = page.parent.filehandle.size
    ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts)]
    if any(end > size for end in ends):
        raise ValueError(f"the file is truncated: it has {size} bytes of {max(ends)}")
