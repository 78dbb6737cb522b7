"""Masks of files in COCO's results format."""

from typing import Any, Tuple

import numpy as np
import pycocotools.mask as mask_util

from .errors import one_line


class UnusableMask(ValueError):
    """A mask does not decode or is not of its picture's size; the message says so in one line."""


def decode_mask(segmentation: Any, size: Tuple[int, int]) -> np.ndarray:
    """A mask (H, W) bool from polygons or RLE, compressed or not.

    Args:
        segmentation: of an entry.
        size: (H, W) of its picture.

    Raises:
        UnusableMask: it is something else, or of another size.
    """
    try:
        if isinstance(segmentation, list):
            segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, *size))
        elif isinstance(segmentation["counts"], list):
            segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
        mask = mask_util.decode(segmentation).astype(bool)
    except Exception as error:  # whatever pycocotools makes of nonsense
        raise UnusableMask(f"its mask does not decode ({one_line(error)})") from error
    if mask.shape != tuple(size):
        raise UnusableMask(
            f"its mask has the size {mask.shape[0]} x {mask.shape[1]}, the picture {size[0]} x {size[1]}"
        )
    return mask
