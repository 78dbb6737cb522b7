"""The rule by which images of any number type become 8-bit images, ``INPUT.INTENSITY``."""

from typing import NamedTuple, Optional, Tuple

import numpy as np

__all__ = ["INTENSITIES", "Intensity", "parse_intensity"]

INTENSITIES = "auto, dtype, percentile:LO,HI (0 to 100) or LO,HI, with LO below HI"
_AUTO = (0.1, 99.8)  # percentiles


class Intensity(NamedTuple):
    """A rule that maps intensities to 0 to 255.

    Attributes:
        kind: "auto", "dtype", "percentile" or "range".
        low, high: percentiles, or the intensities that become 0 and 255.
    """

    kind: str
    low: float = 0.0
    high: float = 0.0

    def to_8bit(self, pixels: np.ndarray) -> np.ndarray:
        """Converts an image to 8 bits. All channels are scaled in the same way.

        Args:
            pixels: (H, W, C) bool, integer or floating point. NaN and negative infinity become 0,
                positive infinity becomes 255.

        Returns:
            (H, W, C) uint8.
        """
        if pixels.dtype == bool:
            pixels = pixels.astype(np.uint8) * np.uint8(255)
        if pixels.dtype == np.uint8 and self.kind in ("auto", "dtype"):
            return pixels
        low, high = self.limits(pixels)
        # Wider than 16 bits, float32 would merge neighboring integers before they are scaled.
        kind = np.float32 if pixels.dtype.itemsize <= 2 else np.float64
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = (pixels.astype(kind) - kind(low)) * kind(255) / kind(high - low)
        np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
        return np.rint(np.clip(scaled, 0, 255, out=scaled), out=scaled).astype(np.uint8)

    def limits(self, pixels: np.ndarray) -> Tuple[float, float]:
        """Returns the intensities of an image (H, W, C) that become 0 and 255."""
        if self.kind == "range":
            return self.low, self.high
        if self.kind == "dtype":
            return _dtype_range(pixels.dtype)
        finite = pixels
        if pixels.dtype.kind == "f":
            finite = pixels[np.isfinite(pixels)].astype(np.float64)
        if not finite.size:
            return 0.0, 1.0
        percentiles = _AUTO if self.kind == "auto" else (self.low, self.high)
        low, high = map(float, np.percentile(finite, percentiles))
        if not low < high:  # a few bright pixels on a flat background
            low, high = float(finite.min()), float(finite.max())
        return (low, high) if low < high else (low, low + 1)


def parse_intensity(text: str) -> Intensity:
    """Parses the value of ``INPUT.INTENSITY``.

    * ``auto``: 8-bit images are used as they are. In others, the 0.1 and 99.8 percentiles of the
      whole image become 0 and 255.
    * ``dtype``: the range of the number type becomes 0 to 255, for floating point 0 to 1.
    * ``percentile:LO,HI``: these percentiles of the whole image become 0 and 255.
    * ``LO,HI``: these intensities become 0 and 255.

    Raises:
        ValueError: The text is none of these.
    """
    if text in ("auto", "dtype"):
        return Intensity(text)
    is_percentile = text.startswith("percentile:")
    numbers = _two_numbers(text.removeprefix("percentile:"))
    if numbers and (not is_percentile or (0 <= numbers[0] and numbers[1] <= 100)):
        return Intensity("percentile" if is_percentile else "range", *numbers)
    raise ValueError(f"INPUT.INTENSITY is {text!r}; allowed: {INTENSITIES}")


def _two_numbers(text: str) -> Optional[Tuple[float, float]]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        return None
    # The difference of two large numbers may be infinite.
    return (low, high) if low < high and np.isfinite(high - low) else None


def _dtype_range(dtype: np.dtype) -> Tuple[float, float]:
    if dtype.kind == "f":
        return 0.0, 1.0
    info = np.iinfo(dtype)
    return float(info.min), float(info.max)
