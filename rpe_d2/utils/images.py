"""Reading image files of any bit depth and any number of channels and planes as 8-bit images.

Datasets, commands and predictors all use :class:`ImageReader`, so that an image is read in the same
way in training, evaluation and prediction.
"""

import copy
import logging
from typing import NamedTuple, Optional, Tuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.logger import log_first_n
from PIL import Image

from .image_files import RawImage, decode_image
from .readable import UnreadableImage

__all__ = ["ImageReader", "Intensity", "parse_channels", "parse_intensity"]

# The percentiles of "auto" for images of more than 8 bits.
_AUTO = (0.1, 99.8)


class Intensity(NamedTuple):
    """A rule that maps intensities to 0-255.

    Attributes:
        kind: "auto", "dtype", "percentile" or "range".
        low, high: percentiles or intensities that become 0 and 255.
    """

    kind: str
    low: float = 0.0
    high: float = 0.0


def parse_intensity(text: str) -> Intensity:
    """Parses a value of ``INPUT.INTENSITY``.

    Args:
        text: "auto", "dtype", "percentile:LO,HI" or "LO,HI".

    Raises:
        ValueError: The text is none of these.
    """
    if text in ("auto", "dtype"):
        return Intensity(text)
    kind, _, numbers = text.rpartition(":")
    try:
        low, high = (float(number) for number in numbers.split(","))
        in_order = low < high and np.isfinite([low, high]).all()
        if in_order and kind == "percentile" and 0 <= low and high <= 100:
            return Intensity("percentile", low, high)
        if in_order and not kind:
            return Intensity("range", low, high)
    except ValueError:
        pass
    raise ValueError(
        f"INPUT.INTENSITY is {text!r}; allowed: auto, dtype, percentile:LO,HI with LO < HI in "
        "0-100, or LO,HI with LO < HI"
    )


def parse_channels(text: str) -> Tuple[int, ...]:
    """Parses a value of ``INPUT.CHANNELS`` other than "auto" and "mean": one or three numbers.

    Raises:
        ValueError: The text is neither of these.
    """
    parts = text.split(",")
    if len(parts) in (1, 3) and all(part.strip().isdecimal() for part in parts):
        return tuple(int(part) for part in parts)
    raise ValueError(
        f"INPUT.CHANNELS is {text!r}; allowed: auto, mean, the number of a channel, or three of "
        "them such as 2,1,0"
    )


class ImageReader:
    """Reads image files as 8-bit images, by rules that the configuration sets."""

    def __init__(
        self,
        image_format: str = "RGB",
        *,
        intensity: str = "auto",
        channels: str = "auto",
        plane: Optional[int] = None,
    ):
        """
        Args:
            image_format: "RGB", "BGR", "L" or another format of Detectron2.
            intensity: how intensities are mapped to 0-255. "auto" does not change 8-bit images, and
                stretches others between the percentiles 0.1 and 99.8 of the whole image. "dtype"
                maps the range of the data type, 0-1 for floating point. "percentile:LO,HI" and
                "LO,HI" stretch between percentiles or between intensities.
            channels: "auto" accepts images of 1 or 3 channels, "mean" averages all channels, and
                one or three numbers choose channels, counted from 0.
            plane: index of the plane to read from files with several. A file name such as
                "stack.tif[3]" takes precedence.

        Raises:
            ValueError: An argument is malformed.
        """
        self.image_format = image_format
        self.intensity = parse_intensity(intensity)
        self.channels = channels if channels in ("auto", "mean") else parse_channels(channels)
        self.plane = plane

    @classmethod
    def from_cfg(cls, cfg: CfgNode, image_format: Optional[str] = None) -> "ImageReader":
        """Builds the reader of ``INPUT``.

        Args:
            cfg: a configuration, possibly without this package's keys.
            image_format: replaces ``INPUT.FORMAT``.
        """
        plane = cfg.INPUT.get("PLANE", -1)
        return cls(
            image_format or cfg.INPUT.FORMAT,
            intensity=cfg.INPUT.get("INTENSITY", "auto"),
            channels=cfg.INPUT.get("CHANNELS", "auto"),
            plane=None if plane < 0 else plane,
        )

    def with_format(self, image_format: str) -> "ImageReader":
        """Returns a reader with the same rules and another format."""
        other = copy.copy(self)
        other.image_format = image_format
        return other

    def __call__(self, file_name: str) -> np.ndarray:
        """Reads an image, as :func:`detectron2.data.detection_utils.read_image` does.

        Returns:
            (H, W, C) uint8, C = 1 for "L" and 3 otherwise.

        Raises:
            UnreadableImage: The image has several planes, or a number of channels other than 1 or
                3, and none are chosen.
            OSError, SyntaxError, Image.DecompressionBombError: The file cannot be read.
        """
        return self.read(file_name)[0]

    def read(self, file_name: str) -> Tuple[np.ndarray, int]:
        """Returns the image and the EXIF orientation of its file, 1 for upright."""
        raw = decode_image(file_name, self.plane)
        pixels = self._to_8_bit(file_name, self._chosen(file_name, raw))
        return self._in_format(pixels), raw.orientation

    def _chosen(self, file_name: str, raw: RawImage) -> np.ndarray:
        """Returns one or three channels."""
        pixels, count = raw.pixels, raw.pixels.shape[2]
        if self.channels == "mean":
            mean = pixels.mean(axis=2, keepdims=True, dtype=np.float64)
            return (mean if pixels.dtype.kind == "f" else np.rint(mean)).astype(pixels.dtype)
        if self.channels == "auto":
            if count not in (1, 3):
                raise UnreadableImage(
                    f"{file_name} has {count} channels; allowed with INPUT.CHANNELS auto: 1 or 3 "
                    "and alpha; set it to mean, to the number of a channel, or to three such as "
                    "2,1,0"
                )
            return pixels
        if max(self.channels) >= count:
            raise UnreadableImage(
                f"{file_name} has {count} channels; INPUT.CHANNELS names {max(self.channels)}, "
                f"allowed: 0 to {count - 1}"
            )
        return pixels[:, :, list(self.channels)]

    def _to_8_bit(self, file_name: str, pixels: np.ndarray) -> np.ndarray:
        if pixels.dtype == bool:
            return pixels.astype(np.uint8) * 255
        kind = self.intensity.kind
        if kind in ("auto", "dtype") and pixels.dtype == np.uint8:
            return pixels
        low, high = _limits(pixels, self.intensity)
        rule = f"the percentiles {_AUTO[0]} and {_AUTO[1]}" if kind == "auto" else kind
        log_first_n(
            logging.INFO,
            f"{file_name} has pixels of {pixels.dtype}: {low:g} to {high:g} become 0 to 255 "
            f"(INPUT.INTENSITY, {rule} of each image)",
            key="caller",
            name=__name__,
        )
        if not high > low:
            return np.zeros(pixels.shape, np.uint8)
        scaled = (pixels.astype(np.float32) - low) * (255 / (high - low))
        return np.nan_to_num(scaled.clip(0, 255)).round().astype(np.uint8)

    def _in_format(self, pixels: np.ndarray) -> np.ndarray:
        if self.image_format == "L" and pixels.shape[2] == 1:
            return np.ascontiguousarray(pixels)
        rgb = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
        if self.image_format == "RGB":
            return np.ascontiguousarray(rgb)
        if self.image_format == "BGR":
            return np.ascontiguousarray(rgb[:, :, ::-1])
        picture = Image.fromarray(np.ascontiguousarray(rgb))
        return convert_PIL_to_numpy(picture, self.image_format)


def _limits(pixels: np.ndarray, rule: Intensity) -> Tuple[float, float]:
    """Returns the intensities that become 0 and 255."""
    if rule.kind == "range":
        return rule.low, rule.high
    if rule.kind == "dtype":
        if pixels.dtype.kind == "f":
            return 0.0, 1.0
        return 0.0, float(np.iinfo(pixels.dtype).max)
    percentiles = _AUTO if rule.kind == "auto" else (rule.low, rule.high)
    values = pixels.ravel()
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 0.0
    low, high = np.percentile(values, percentiles)
    if not high > low:  # few bright pixels on a constant background
        low, high = values.min(), values.max()
    return float(low), float(high)
