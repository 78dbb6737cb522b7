"""The dataset mapper of networks that spread the labels or colors of a few pixels."""

import zlib
from typing import Any, Dict, Optional, Tuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable

from .image_mapper import ImageMapper

__all__ = ["SparsePixelMapper", "draw_pixels", "lightness_and_color", "superpixels"]

KINDS = ("labels", "color")
# Weight of the position against the lightness in 0-1. With 0.1, a quarter of the superpixels are
# merged with others.
_COMPACTNESS = 0.3


class SparsePixelMapper(ImageMapper):
    """A dataset mapper that reveals one random pixel in each superpixel (slide 38 of the SPN).

    For labels, the result has ``sparse_labels`` (K, H, W) float32, 1 where the class of a pixel is
    known and 0 elsewhere. Pixels with the ignored label are not drawn.

    For color, ``image`` is the lightness, (3, H, W) uint8 with equal channels. ``values`` (2, H, W)
    float32 in 0-1 has the true color of every pixel, a and b of OpenCV's 8-bit Lab, ``known``
    (H, W) bool are the drawn pixels, and ``sparse_values`` is ``values`` there and 0 elsewhere.

    Superpixels are those of the lightness. In training, other pixels are drawn every time. In
    testing, they depend on nothing but the ``image_id``.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        kind: str = "labels",
        num_classes: int = 8,
        num_superpixels: int = 300,
        ignored_label: int = 255,
        **kwargs: Any,
    ):
        """
        Args:
            is_train: whether the mapper is used in training.
            kind: "labels" or "color", what the drawn pixels reveal.
            num_classes: number K of classes of the labels.
            num_superpixels: desired number of superpixels.
            ignored_label: label of pixels whose class is not known.
            kwargs: arguments of :class:`ImageMapper`.
        """
        super().__init__(is_train, **kwargs)
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; allowed: {', '.join(KINDS)}")
        for name, value in (("num_classes", num_classes), ("num_superpixels", num_superpixels)):
            if value < 1:
                raise ValueError(f"{name} is {value}; allowed: 1 or more")
        self.kind = kind
        self.num_classes = num_classes
        self.num_superpixels = num_superpixels
        self.ignored_label = ignored_label

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> Dict[str, Any]:
        return {
            **super().from_config(cfg, is_train),
            "kind": "color" if cfg.MODEL.SPN.NETWORK == "sparse_color" else "labels",
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignored_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def __call__(self, dataset_dict: Dict[str, Any]) -> Dict[str, Any]:
        """
        Raises:
            ValueError: The picture has no label map or, for color, a single channel.
            UnreadableImage: A file cannot be read or has a wrong size.
        """
        item = super().__call__(dataset_dict)
        if self.is_train:
            random = np.random.default_rng(np.random.randint(1 << 31))
        else:
            random = np.random.default_rng(zlib.crc32(str(dataset_dict["image_id"]).encode()))
        return self.with_pixels(item, random, self.num_superpixels)

    def with_pixels(
        self, item: Dict[str, Any], random: np.random.Generator, num_superpixels: int
    ) -> Dict[str, Any]:
        """Adds the inputs of a network to a mapped dict.

        Args:
            item: has ``image`` (C, H, W) uint8 and, for labels, ``sem_seg`` (H, W) int64.
            random: draws the pixels.
            num_superpixels: desired number of superpixels.

        Returns:
            A new dict.

        Raises:
            ValueError: There is no label map or, for color, a single channel.
        """
        where = item.get("file_name", "the picture")
        pixels = np.ascontiguousarray(item["image"].permute(1, 2, 0).numpy())
        lightness, color = lightness_and_color(pixels, self.image_format)
        segments = superpixels(lightness, num_superpixels)
        if self.kind == "labels":
            if "sem_seg" not in item:
                raise ValueError(f"{where} has no label map; allowed: data sets with semantic maps")
            labels = item["sem_seg"].numpy()
            known = draw_pixels(segments, random, labels != self.ignored_label)
            maps = (labels == np.arange(self.num_classes)[:, None, None]) & known
            return {**item, "sparse_labels": torch.from_numpy(maps.astype(np.float32))}
        if color is None:
            raise ValueError(f"{where} has 1 channel; allowed for color: 3")
        known = draw_pixels(segments, random)
        values = color.transpose(2, 0, 1).astype(np.float32) / 255
        return {
            **item,
            "image": torch.from_numpy(np.repeat(lightness[None], 3, axis=0)),
            "values": torch.from_numpy(values),
            "sparse_values": torch.from_numpy(values * known),
            "known": torch.from_numpy(known),
        }


def lightness_and_color(
    image: np.ndarray, image_format: str
) -> Tuple[np.ndarray, Optional[np.ndarray]]:
    """Splits an image into OpenCV's 8-bit L, a and b.

    Args:
        image: (H, W, 3) uint8, or (H, W, 1), which is the lightness itself.
        image_format: "BGR", or any other format for RGB.

    Returns:
        The lightness (H, W) uint8, and a and b (H, W, 2) uint8, or None for a single channel.
    """
    if image.shape[2] == 1:
        return image[..., 0], None
    lab = cv2.cvtColor(image, cv2.COLOR_BGR2LAB if image_format == "BGR" else cv2.COLOR_RGB2LAB)
    return lab[..., 0], lab[..., 1:]


def superpixels(lightness: np.ndarray, count: int) -> np.ndarray:
    """Segments an image into superpixels by SLIC (Achanta et al., PAMI 2012).

    Args:
        lightness: (H, W) uint8.
        count: desired number; the number found differs by some percent.

    Returns:
        (H, W) int64 numbers of the superpixels, from 0.
    """
    from skimage.segmentation import slic  # slow to import, and needed by this mapper alone

    return slic(lightness, count, _COMPACTNESS, start_label=0, channel_axis=None)


def draw_pixels(
    segments: np.ndarray, random: np.random.Generator, allowed: Optional[np.ndarray] = None
) -> np.ndarray:
    """Draws one pixel in each segment, all with the same probability.

    Args:
        segments: (H, W) int numbers of the segments.
        random: the generator.
        allowed: (H, W) bool, pixels that may be drawn; None for all. A segment without any has no
            drawn pixel.

    Returns:
        (H, W) bool.
    """
    order = random.permutation(segments.size)
    if allowed is not None:
        order = order[allowed.ravel()[order]]
    _, first = np.unique(segments.ravel()[order], return_index=True)
    drawn = np.zeros(segments.size, bool)
    drawn[order[first]] = True
    return drawn.reshape(segments.shape)
