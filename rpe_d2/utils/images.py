"""The one reader of images, which training, evaluation and all tools share."""

import logging
from typing import Any, Dict, List, Optional, Sequence

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.logger import log_first_n
from PIL import Image
from torch.utils.data import get_worker_info

from .image_files import (
    StoredImage,
    open_image,
    plane_names,
    printable,
    split_plane,
)
from .intensity import parse_intensity
from .readable import UnreadableImage

__all__ = [
    "CHANNELS",
    "FORMATS",
    "ImageReader",
    "check_size",
    "parse_channels",
    "reader_arguments",
    "to_rgb",
]

# Detectron2's own formats, and the modes into which Pillow converts colors of 8 bits.
FORMATS = ("BGR", "RGB", "L", "YUV-BT.601", "YCbCr", "HSV", "LAB", "CMYK", "RGBA")
CHANNELS = "'', mean, one index such as 2, or three such as 0,1,2 for red, green and blue"
_ALL = -1  # INPUT.PLANE
_MOST_CHANNELS = 1000


class ImageReader:
    """Reads image files of any kind as 8-bit images of a network's format.

    The steps are: take the plane, turn it upright as EXIF says, choose or average channels, drop
    opacities, scale intensities to 0 to 255, and convert to the format. Images of 8 bits with one,
    three or four channels are the same as those of Detectron2's ``read_image``.
    """

    def __init__(
        self, image_format: str, intensity: str = "auto", channels: str = "", plane: int = _ALL
    ):
        """
        Args:
            image_format: "BGR", "RGB", "L", or another one of Detectron2's ``INPUT.FORMAT``.
            intensity: ``INPUT.INTENSITY``; see :func:`rpe_d2.utils.intensity.parse_intensity`.
            channels: ``INPUT.CHANNELS``; see :func:`parse_channels`.
            plane: ``INPUT.PLANE``, which is taken from files of several planes, or -1.

        Raises:
            ValueError: An argument is wrong. The message names its key.
        """
        if image_format not in FORMATS:
            raise ValueError(f"INPUT.FORMAT is {image_format!r}; allowed: {', '.join(FORMATS)}")
        if plane < _ALL:
            raise ValueError(f"INPUT.PLANE is {plane}; allowed: {_ALL}, which is all, or 0 or more")
        self.image_format = image_format
        self._intensity_text = intensity
        self._intensity = parse_intensity(intensity)
        self._channels = parse_channels(channels)
        self._channels_text, self._plane = channels, plane

    @property
    def rule(self) -> str:
        """The keys that decide how images are read, for the log."""
        texts = [f"INPUT.INTENSITY {self._intensity_text}"]
        if self._channels:
            texts.append(f"INPUT.CHANNELS {self._channels_text}")
        if self._plane != _ALL:
            texts.append(f"INPUT.PLANE {self._plane}")
        return ", ".join(texts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "ImageReader":
        """Builds the reader of a configuration.

        A configuration without the keys of this package gets their defaults.
        """
        return cls(**reader_arguments(cfg))

    def __call__(self, file_name: str) -> np.ndarray:
        """Reads an image in the format.

        Args:
            file_name: see :meth:`read`.

        Returns:
            (H, W, C) uint8, or float32 for the format "YUV-BT.601".

        Raises:
            UnreadableImage: See :meth:`read`.
        """
        stays_as_it_is = not self._channels and self._intensity.kind in ("auto", "dtype")
        as_gray = self.image_format == "L" and stays_as_it_is
        return self.convert(self._read(file_name, as_gray))

    def read(self, file_name: str) -> np.ndarray:
        """Reads an image without converting it to the format.

        Args:
            file_name: any path that Detectron2's PathManager opens. ``name.tif[3]`` is plane 3 of
                a file, counted from 0.

        Returns:
            (H, W, 1) or (H, W, 3) RGB, uint8.

        Raises:
            UnreadableImage: The file cannot be read, or a key must say which plane or channels to
                read. The message is one line that names the file.
        """
        return self._read(file_name, as_gray=False)

    def from_array(self, array: np.ndarray) -> np.ndarray:
        """Treats an array in memory as :meth:`read` treats a file.

        Args:
            array: (H, W) or (H, W, C), bool, integer or floating point. Three channels are RGB, and
                a fourth one is opacity.

        Returns:
            (H, W, 1) or (H, W, 3) RGB, uint8.

        Raises:
            ValueError: The array has another shape or type, or a key must say which channels to
                use.
        """
        pixels = array[:, :, None] if array.ndim == 2 else array
        if pixels.ndim != 3 or 0 in pixels.shape or pixels.dtype.kind not in "biuf":
            raise ValueError(
                f"an image has shape {array.shape} and type {array.dtype}; allowed: numbers of "
                "shape (H, W) or (H, W, C)"
            )
        return self.to_8bit(pixels, alpha=3 if pixels.shape[2] == 4 else None)

    def to_8bit(self, pixels: np.ndarray, alpha: Optional[int]) -> np.ndarray:
        """Chooses the channels of pixels and scales their intensities.

        Args:
            pixels: (H, W, C) as they are stored.
            alpha: index of the channel that holds opacities, or None.

        Returns:
            (H, W, 1) or (H, W, 3) RGB, uint8.

        Raises:
            ValueError: A key must say which channels to use.
        """
        return self._intensity.to_8bit(self._select(pixels, alpha))

    def with_channels(self, channels: Optional[str]) -> "ImageReader":
        """Returns a reader with another ``INPUT.CHANNELS``, or this one for None."""
        if channels is None:
            return self
        return ImageReader(self.image_format, self._intensity_text, channels, self._plane)

    def with_limits_of(self, sample: np.ndarray, alpha: Optional[int]) -> "ImageReader":
        """Returns a reader that scales intensities as those of a sample of pixels.

        Args:
            sample: (H, W, C) pixels of an image as they are stored.
            alpha: index of the channel that holds opacities, or None.
        """
        if self._intensity.kind in ("range", "dtype"):
            return self
        if sample.dtype in (np.uint8, np.bool_) and self._intensity.kind == "auto":
            return self
        selected = self._select(sample, alpha)
        low, high = self._intensity.limits(selected)
        return ImageReader(self.image_format, f"{low!r},{high!r}", self._channels_text, self._plane)

    def _read(self, file_name: str, as_gray: bool) -> np.ndarray:
        path, plane = split_plane(file_name)
        with open_image(path) as image:
            pixels = image.pixels(self._chosen(image, plane), as_gray)
            array = self._select(pixels.array, pixels.alpha)
            eight_bit = self._intensity.to_8bit(array)
            if eight_bit is not array:
                self._log(path, array)
            return eight_bit

    def planes(self, file_name: str) -> List[str]:
        """Returns the names under which prediction reads the planes of a file, one or several.

        Raises:
            UnreadableImage: The file cannot be read.
        """
        return [file_name] if self._plane != _ALL else plane_names(file_name)

    def convert(self, array: np.ndarray) -> np.ndarray:
        """Converts an image to the format.

        Args:
            array: (H, W, 1) or (H, W, 3) RGB, uint8.

        Returns:
            (H, W, C) uint8, or float32 for the format "YUV-BT.601".
        """
        is_gray = array.shape[2] == 1
        if self.image_format in ("BGR", "RGB"):
            array = to_rgb(array)
            return array if self.image_format == "RGB" else array[:, :, ::-1]
        if is_gray and self.image_format == "L":
            return array
        array = np.ascontiguousarray(array[:, :, 0] if is_gray else array)
        converted = convert_PIL_to_numpy(Image.fromarray(array), self.image_format)
        if converted.dtype == np.float64:  # networks take float32
            converted = converted.astype(np.float32)
        return converted if converted.ndim == 3 else converted[:, :, None]

    def _chosen(self, image: StoredImage, plane: Optional[int]) -> int:
        count = image.num_planes
        where = "the plane"
        if plane is None and count > 1:
            if self._plane == _ALL:
                raise ValueError(
                    f"the file has {count} planes (pages, slices or frames); name one, as in "
                    f"name.tif[0], or set INPUT.PLANE; allowed: 0 to {count - 1}"
                )
            plane, where = self._plane, "INPUT.PLANE"
        if (plane or 0) >= count:
            raise ValueError(f"{where} is {plane}; allowed: 0 to {count - 1}")
        return plane or 0

    def _select(self, array: np.ndarray, alpha: Optional[int]) -> np.ndarray:
        """Reduces channels to one or three."""
        count = array.shape[2]
        if not self._channels:
            if alpha is not None:
                array = array[:, :, :alpha] if alpha == count - 1 else np.delete(array, alpha, 2)
            if array.shape[2] in (1, 3):
                return array
            raise ValueError(
                f"the file has {array.shape[2]} channels; choose with INPUT.CHANNELS; allowed: "
                f"mean, one or three of 0 to {count - 1}, as in 0,1,1"
            )
        if self._channels == "mean":
            colors = array if alpha is None else np.delete(array, alpha, 2)
            # Integers stay integers, so that 8 bits stay 8 bits.
            mean = colors.mean(axis=2, keepdims=True, dtype=np.float64)
            return mean.round().astype(array.dtype) if array.dtype.kind in "iu" else mean
        if max(self._channels) >= count:
            raise ValueError(
                f"the file has {count} channels; INPUT.CHANNELS is "
                f"{self._channels_text}; allowed: 0 to {count - 1}"
            )
        return array[:, :, list(self._channels)]

    def _log(self, path: str, array: np.ndarray) -> None:
        # The processes of a loader would all repeat it, in every epoch and evaluation.
        if get_worker_info() is None:
            log_first_n(
                logging.WARNING,
                f"{printable(path)} holds {array.dtype} from {array.min():g} to {array.max():g}; "
                f"images are scaled to 0 to 255 by {self.rule}",
                name="rpe_d2.utils.images",
            )


def to_rgb(array: np.ndarray) -> np.ndarray:
    """Converts an image (H, W, 1) or (H, W, 3) RGB, uint8, to (H, W, 3) RGB."""
    if array.shape[2] == 3:
        return array
    return cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_GRAY2RGB)


def reader_arguments(cfg: CfgNode) -> Dict[str, Any]:
    """Returns the arguments of :class:`ImageReader` that a configuration gives."""
    names = {
        "image_format": "FORMAT",
        "intensity": "INTENSITY",
        "channels": "CHANNELS",
        "plane": "PLANE",
    }
    return {name: cfg.INPUT[key] for name, key in names.items() if key in cfg.INPUT}


def parse_channels(text: str) -> Any:
    """Parses the value of ``INPUT.CHANNELS``.

    Returns:
        "mean", or the indices of one or three channels, or () where images with one, three or four
        channels are used as they are.

    Raises:
        ValueError: The text is none of these.
    """
    if text == "mean":
        return text
    parts = [part.strip() for part in text.split(",")] if text else []
    if len(parts) in (0, 1, 3) and all(part.isascii() and part.isdigit() for part in parts):
        indices = tuple(int(part) for part in parts if len(part) <= 4)
        if len(indices) == len(parts) and all(index < _MOST_CHANNELS for index in indices):
            return indices
    raise ValueError(f"INPUT.CHANNELS is {text!r}; allowed: {CHANNELS}")


def check_size(record: Dict[str, Any], size: Sequence[int]) -> None:
    """Checks the size of an upright image against its annotations, and adds it where they lack it.

    Args:
        record: a dict in Detectron2's format of datasets, which may have ``height`` and ``width``.
        size: height and width of the image.

    Raises:
        UnreadableImage: The sizes differ. The message is one line with both of them.
    """
    height, width = size
    expected = record.get("height", height), record.get("width", width)
    if expected != (height, width):
        turned = _orientation(record["file_name"])
        note = f" after it is turned upright (its EXIF orientation is {turned})" if turned else ""
        raise UnreadableImage(
            f"{printable(record['file_name'])} is {width} x {height} pixels{note}; its annotations "
            f"say {expected[1]} x {expected[0]} (width x height); allowed: the same"
        )
    record.setdefault("height", height)
    record.setdefault("width", width)


def _orientation(file_name: str) -> int:
    """Returns the EXIF orientation of an image, 0 where it is upright as it is stored."""
    path, plane = split_plane(file_name)
    with open_image(path) as image:
        orientation = image.orientation(plane or 0)
    return orientation if orientation in range(2, 9) else 0
