"""The bit depth of images that Pillow opens."""

import struct

from PIL import Image

__all__ = ["DEEP_MODES", "is_reduced"]

# The modes in which Pillow keeps more than 8 bits. All of them have one channel.
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_JPEG2000_SIZES = b"\xff\x4f\xff\x51"  # the markers at the start of a JPEG 2000 codestream


def is_reduced(image: Image.Image) -> bool:
    """Returns whether Pillow would cut the channels of an image from 16 bits to 8 bits.

    Args:
        image: an open image, before its pixels are loaded.
    """
    if image.mode in DEEP_MODES:
        return False
    if image.format == "JPEG2000":
        return _jpeg2000_bits(image) > 8
    for codec, _, _, arguments in getattr(image, "tile", ()):
        parts = arguments if isinstance(arguments, tuple) else (arguments,)
        if codec == "SGI16" or any(isinstance(part, str) and ";16" in part for part in parts):
            return True
        if image.format == "PPM" and isinstance(parts[-1], int) and parts[-1] > 255:
            return True
    return False


def _jpeg2000_bits(image: Image.Image) -> int:
    """Returns the number of bits of the first channel of a JPEG 2000 file."""
    image.fp.seek(0)
    content = image.fp.read(1 << 20)  # only color profiles and metadata precede the codestream
    start = content.find(_JPEG2000_SIZES)
    if start < 0 or len(content) < start + 43:
        return 8
    (depth,) = struct.unpack_from("B", content, start + 42)
    return (depth & 0x7F) + 1
