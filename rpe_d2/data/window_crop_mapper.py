"""The dataset mapper of networks that are trained on patches, as DeepMask is in its paper."""

import copy
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from .augmentation import RandomScale, RandomScaledCrop
from .dataset_mapper import PixelLabelMapper

__all__ = ["WindowCropMapper"]

_WINDOW = "window"  # the key of a dataset dict that holds the window of a patch
_RESIZING = (T.ResizeShortestEdge, T.RandomCrop, RandomScale, RandomScaledCrop)
_NUM_CANDIDATES = 256


class Window(NamedTuple):
    """A square window in pixels of an image, beyond which it may extend."""

    x: float  # of the center
    y: float
    side: float


class WindowCropMapper(PixelLabelMapper):
    """A dataset mapper for networks that are trained on patches (Pinheiro et al., NIPS 2015).

    In training, an image becomes a square patch of a random window, with equal probabilities:

    * Positive: the window is centered on a random object, which is canonical in it: the longer side
      of its box is ``object_size`` times that of the window. Both are jittered within the positive
      tolerances. ``instances`` has this object alone.
    * Negative: a random window of any size. Every object is beyond one of the negative tolerances.
      ``instances`` is empty.

    An image without objects gives negative patches, and one in which no negative window is found
    gives positive ones. What lies outside the image is padded with the mean of the pixels. The
    augmentations are those of the configuration without those that resize or crop.

    In testing, it is the same as :class:`rpe_d2.data.ImageMapper`.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        patch_size: int,
        augmentations: Sequence[T.Augmentation],
        object_size: float = 128 / 224,
        positive_shift: float = 16 / 224,
        positive_scale: float = 0.25,
        negative_shift: float = 32 / 224,
        negative_scale: float = 1.0,
        pad_value: int = 0,
        **kwargs: Any,
    ):
        """
        Args:
            is_train: whether the mapper is used in training.
            patch_size: side of the patches in pixels.
            augmentations: applied to the patches, without those that resize or crop.
            object_size: side of a canonical object as a fraction of the side of the window.
            positive_shift, negative_shift: shift of the center in x or y, as a fraction of the side
                of the window.
            positive_scale, negative_scale: deviation from the canonical size in octaves.
            pad_value: value of the pixels outside the image.
            kwargs: other arguments of :class:`PixelLabelMapper`.
        """
        if is_train:
            augmentations = [a for a in augmentations if not isinstance(a, _RESIZING)]
        super().__init__(is_train, augmentations=augmentations, **kwargs)
        self.patch_size = patch_size
        self.object_size = object_size
        self.positive_shift, self.positive_scale = positive_shift, positive_scale
        self.negative_shift, self.negative_scale = negative_shift, negative_scale
        self.pad_value = pad_value

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> Dict[str, Any]:
        size = cfg.INPUT.CROP.SIZE
        if len(size) != 2 or size[0] != size[1] or size[0] < 1 or size[0] % 1:
            raise ValueError(
                f"INPUT.CROP.SIZE is {list(size)}; allowed with INPUT.DATASET_MAPPER_NAME "
                f"{cls.__name__}: two equal numbers of pixels"
            )
        return {
            **super().from_config(cfg, is_train),
            "recompute_boxes": False,
            "patch_size": int(size[0]),
            "pad_value": round(float(np.mean(cfg.MODEL.PIXEL_MEAN))),
        }

    def __call__(self, dataset_dict: Dict[str, Any]) -> Dict[str, Any]:
        """
        Raises:
            UnreadableImage: The image or an annotation cannot be read.
        """
        if not self.is_train:
            return super().__call__(dataset_dict)
        dataset_dict = copy.copy(dataset_dict)
        objects = [a for a in dataset_dict.get("annotations", []) if not a.get("iscrowd", 0)]
        boxes = np.array([_corners(a) for a in objects], np.float64).reshape(-1, 4)
        usable = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
        window = None
        if not len(usable) or np.random.rand() < 0.5:
            size = dataset_dict["height"], dataset_dict["width"]
            window = self._negative_window(boxes[usable], *size)
        dataset_dict["annotations"] = []
        if window is None:
            number = np.random.choice(usable)
            window = self._positive_window(boxes[number])
            dataset_dict["annotations"] = [objects[number]]
        dataset_dict.pop("ignore", None)  # unlabeled pixels of the whole image
        return super().__call__({**dataset_dict, _WINDOW: window})

    def augmentations_of(self, dataset_dict: Dict[str, Any]) -> T.AugmentationList:
        if not self.is_train:
            return super().augmentations_of(dataset_dict)
        size = dataset_dict["height"], dataset_dict["width"]
        window = Window(*dataset_dict.pop(_WINDOW))
        return T.AugmentationList([*self._crop(window, *size), *self.augmentations.augs])

    def _positive_window(self, box: np.ndarray) -> Window:
        octaves = np.random.uniform(-self.positive_scale, self.positive_scale)
        side = max(box[2] - box[0], box[3] - box[1]) / self.object_size * 2**octaves
        shift = np.random.uniform(-self.positive_shift, self.positive_shift, 2) * side
        x, y = (box[:2] + box[2:]) / 2 + shift
        return Window(x, y, side)

    def _negative_window(self, boxes: np.ndarray, height: int, width: int) -> Optional[Window]:
        """Returns a random window in which no object of (n, 4) is nearly canonical, or None."""
        largest = max(height, width)
        low = np.log2(min(self.patch_size, largest) / 4)
        sides = 2 ** np.random.uniform(low, np.log2(largest), _NUM_CANDIDATES)
        centers = np.random.uniform((0, 0), (width, height), (_NUM_CANDIDATES, 2))
        objects = (boxes[:, :2] + boxes[:, 2:]) / 2
        lengths = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0)
        shift = np.abs(centers[:, None] - objects).max(axis=2) / sides[:, None]  # (N, n)
        scale = np.abs(np.log2(sides[:, None] * self.object_size / lengths))
        far = (shift >= self.negative_shift) | (scale >= self.negative_scale)
        found = np.flatnonzero(far.all(axis=1))
        return Window(*centers[found[0]], sides[found[0]]) if len(found) else None

    def _crop(self, window: Window, height: int, width: int) -> List[T.Transform]:
        """Returns the transforms that cut out, resize and pad a window.

        Only the part inside the image is resized, with Pillow, which averages when it shrinks.
        """
        spans = [
            self._span(center, window.side, whole)
            for center, whole in ((window.x, width), (window.y, height))
        ]
        (x, inside_x, left, new_width), (y, inside_y, top, new_height) = spans
        right, bottom = (self.patch_size - a - b for a, b in ((left, new_width), (top, new_height)))
        return [
            T.CropTransform(x, y, inside_x, inside_y),
            T.ResizeTransform(inside_y, inside_x, new_height, new_width, Image.BILINEAR),
            T.PadTransform(left, top, right, bottom, pad_value=self.pad_value),
        ]

    def _span(self, center: float, side: float, whole: int) -> Tuple[int, int, int, int]:
        """Returns the start and length of a window inside the image, in pixels of the image, and
        those in pixels of the patch, along one axis.
        """
        start, scale = center - side / 2, self.patch_size / side
        low = int(np.clip(np.floor(start + 0.5), 0, whole - 1))
        high = int(np.clip(np.floor(start + side + 0.5), low + 1, whole))
        first = int(np.clip(round((low - start) * scale), 0, self.patch_size - 1))
        last = int(np.clip(round((high - start) * scale), first + 1, self.patch_size))
        return low, high - low, first, last - first


def _corners(annotation: Dict[str, Any]) -> List[float]:
    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
