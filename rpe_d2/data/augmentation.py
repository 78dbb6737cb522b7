"""Augmentations of training images that Detectron2's configuration does not provide."""

from typing import List, Optional, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

# Transforms of an image that move no pixel.
_COLOR_TRANSFORMS = (T.BlendTransform, T.ColorTransform, T.NoOpTransform)
_BACKGROUND = 0  # class of semantic maps


def resizing_of_tests(cfg: CfgNode) -> T.Augmentation:
    """Returns how images are resized for evaluation and prediction."""
    scale = cfg.INPUT.get("SCALE", 0.0)
    if scale:
        return RandomScale(scale, scale)
    return T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)


def with_own_scale(cfg: CfgNode, augmentations: Sequence[T.Augmentation]) -> List[T.Augmentation]:
    """Adapts Detectron2's own augmentations to this package's keys of sizes.

    ``INPUT.SCALE`` replaces their resizing. With ``INPUT.SCALE_JITTER``, crops of an absolute size
    cover the more of an image the smaller it becomes, so that all inputs have the same size.
    """
    scale = cfg.INPUT.get("SCALE", 0.0)
    found = list(augmentations)
    if scale:
        resize = RandomScale(scale, scale)
        found = [resize if isinstance(a, T.ResizeShortestEdge) else a for a in found]
    if _crops_by_scale(cfg) and found and isinstance(found[0], T.RandomCrop):
        found[0] = RandomScaledCrop(found[0].crop_size, *_jitter(cfg), scale)
        if scale:
            found.remove(resize)
    return found


def leading_augmentations(cfg: CfgNode) -> List[T.Augmentation]:
    """Builds the training augmentations that come before Detectron2's own."""
    context = cfg.INPUT.get("OBJECT_CROP", 0.0)
    if not context:
        return []
    return [RandomObjectCrop(context, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)]


def _crops_by_scale(cfg: CfgNode) -> bool:
    crop = cfg.INPUT.CROP
    return bool(_jitter(cfg)) and crop.ENABLED and crop.TYPE == "absolute"


def _jitter(cfg: CfgNode) -> Sequence[float]:
    scales = cfg.INPUT.get("SCALE_JITTER", [])
    if scales and (len(scales) != 2 or not 0 < scales[0] <= scales[1]):
        raise ValueError(
            f"INPUT.SCALE_JITTER is {list(scales)}; allowed: [] or two factors above 0, the "
            "smaller one first"
        )
    return scales


def additional_augmentations(cfg: CfgNode) -> List[T.Augmentation]:
    """Builds the training augmentations for this package's keys in ``INPUT``.

    They are applied after Detectron2's own, which :func:`with_own_scale` has adapted.

    Raises:
        ValueError: A key is out of range.
    """
    # Projects that have not added this package's keys may use the mapper too.
    read = cfg.INPUT.get
    augmentations: List[T.Augmentation] = []
    scales = _jitter(cfg)
    if scales and not _crops_by_scale(cfg):
        augmentations.append(RandomScale(*scales))
    angle = read("ROTATION", 0.0)
    if angle:
        augmentations.append(T.RandomRotation([-angle, angle], expand=False))
    if read("QUARTER_TURNS"):
        augmentations.append(RandomQuarterTurn())
    jitter = _below_one("COLOR_JITTER", read("COLOR_JITTER", 0.0))
    if jitter:
        low, high = 1 - jitter, 1 + jitter
        augmentations += [
            T.RandomContrast(low, high),
            T.RandomBrightness(low, high),
            T.RandomSaturation(low, high),
        ]
    gamma = _below_one("GAMMA", read("GAMMA", 0.0))
    if gamma:
        augmentations.append(RandomGamma(1 - gamma, 1 + gamma))
    return augmentations


def transform_probabilities(maps: np.ndarray, transforms: T.TransformList) -> np.ndarray:
    """Transforms class probabilities like their image, with bilinear interpolation.

    Transforms of colors have no effect. What enters from outside belongs to the first class, as in
    label maps.

    Args:
        maps: (K, H, W) float32 with the sum 1.
        transforms: the transforms that were applied to the image.

    Returns:
        (K, h, w) float32 with the sum 1.
    """
    for transform in transforms.transforms:
        if not isinstance(transform, _COLOR_TRANSFORMS):
            # One by one, because OpenCV warps at most four channels.
            maps = np.stack([transform.apply_image(one) for one in maps])
    outside = 1 - maps.sum(axis=0)
    return np.concatenate([np.maximum(maps[:1] + outside, 0), maps[1:]])


def _below_one(key: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"INPUT.{key} is {value}; allowed: 0 to below 1")
    return value


class RandomScale(T.Augmentation):
    """Resizes an image by a random factor, the same in both directions."""

    def __init__(self, low: float, high: float):
        """
        Args:
            low, high: the smallest and the largest factor.
        """
        super().__init__()
        self.low, self.high = low, high

    def get_transform(self, image: np.ndarray) -> T.Transform:
        factor = np.random.uniform(self.low, self.high)
        height, width = image.shape[:2]
        new = (max(1, round(side * factor)) for side in (height, width))
        return T.ResizeTransform(height, width, *new)


class RandomScaledCrop(T.Augmentation):
    """Crops an image and resizes the crop by a random factor, to nearly the same size."""

    def __init__(self, size: Sequence[int], low: float, high: float, scale: float = 0.0):
        """
        Args:
            size: height and width of the crop in pixels of the image, for a factor of 1. Where the
                image is smaller, the crop is, too.
            low, high: the smallest and the largest factor.
            scale: multiplies the factors by which crops are resized. 0: crops are not resized,
                because another augmentation resizes them to the same size.
        """
        super().__init__()
        self.size, self.low, self.high, self.scale = tuple(size), low, high, scale

    def get_transform(self, image: np.ndarray) -> T.Transform:
        factor = np.random.uniform(self.low, self.high)
        height, width = (
            min(max(1, round(side / factor)), whole)
            for side, whole in zip(self.size, image.shape[:2])
        )
        y = np.random.randint(image.shape[0] - height + 1)
        x = np.random.randint(image.shape[1] - width + 1)
        crop = T.CropTransform(x, y, width, height)
        if not self.scale:
            return crop
        new = (max(1, round(side * factor * self.scale)) for side in (height, width))
        return T.TransformList([crop, T.ResizeTransform(height, width, *new)])


class RandomObjectCrop(T.Augmentation):
    """Crops an image with a semantic label map to one of its objects, chosen at random.

    This is the first stage of training of DeconvNet (Noh et al., ICCV 2015, section 4.2). Objects
    are connected regions of one class. All other classes in the crop become background, class 0.
    Maps without an object are not cropped.
    """

    def __init__(self, context: float = 1.2, ignore_value: int = 255, min_area: int = 25):
        """
        Args:
            context: side of the square crop, as a multiple of the longer side of the object.
            ignore_value: label of pixels that stay ignored.
            min_area: smallest area of an object in pixels.
        """
        super().__init__()
        self.context, self.ignore_value, self.min_area = context, ignore_value, min_area

    def get_transform(self, image: np.ndarray, sem_seg: Optional[np.ndarray]) -> T.Transform:
        from skimage.measure import label, regionprops  # slow to import

        if sem_seg is None:
            return T.NoOpTransform()
        classes = np.where(sem_seg == self.ignore_value, _BACKGROUND, sem_seg).astype(np.int64)
        regions = regionprops(label(classes, background=_BACKGROUND, connectivity=1))
        objects = [region for region in regions if region.area >= self.min_area]
        if not objects:
            return T.NoOpTransform()
        chosen = objects[np.random.randint(len(objects))]
        top, left, bottom, right = chosen.bbox
        side = max(1, round(self.context * max(bottom - top, right - left)))
        starts, sizes = [], []
        for low, high, whole in zip((top, left), (bottom, right), image.shape[:2]):
            size = min(side, whole)
            starts.append(min(max((low + high - size) // 2, 0), whole - size))
            sizes.append(size)
        row, column = chosen.coords[0]
        return ObjectCropTransform(
            *(starts[1], starts[0], sizes[1], sizes[0]),
            keep=(classes[row, column], self.ignore_value),
        )


class ObjectCropTransform(T.CropTransform):
    """A crop in whose label map only some labels are kept; the others become background."""

    def __init__(self, x0: int, y0: int, w: int, h: int, keep: Sequence[int]):
        """
        Args:
            x0, y0, w, h: left, top, width and height of the crop in pixels.
            keep: labels that are kept.
        """
        super().__init__(x0, y0, w, h)
        self.keep = list(keep)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        cropped = super().apply_segmentation(segmentation)
        return np.where(np.isin(cropped, self.keep), cropped, _BACKGROUND).astype(cropped.dtype)


class RandomGamma(T.Augmentation):
    """Raises the intensities of an 8-bit image, scaled to 0-1, to a random power."""

    def __init__(self, low: float, high: float):
        """
        Args:
            low, high: the smallest and the largest exponent.
        """
        super().__init__()
        self.low, self.high = low, high

    def get_transform(self, image: np.ndarray) -> T.Transform:
        exponent = np.random.uniform(self.low, self.high)
        table = (255 * (np.arange(256) / 255) ** exponent).round().astype(np.uint8)
        return T.ColorTransform(lambda pixels: table[pixels])


class RandomQuarterTurn(T.Augmentation):
    """Rotates by 0, 90, 180 or 270 degrees; with a random flip, all symmetries of the square."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return QuarterTurnTransform(np.random.randint(4), *image.shape[:2])


class QuarterTurnTransform(T.Transform):
    """Rotates an image counterclockwise by multiples of 90 degrees, without interpolation."""

    def __init__(self, quarters: int, height: int, width: int):
        """
        Args:
            quarters: number of quarter turns, 0 to 3.
            height: height of the input image in pixels.
            width: width of the input image in pixels.
        """
        super().__init__()
        self.quarters = quarters
        self.height, self.width = height, width

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(image, self.quarters))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Transforms (N, 2) x, y in continuous pixel coordinates."""
        x, y = coords[:, 0], coords[:, 1]
        turned = {
            0: (x, y),
            1: (y, self.width - x),
            2: (self.width - x, self.height - y),
            3: (self.height - y, x),
        }[self.quarters]
        return np.stack(turned, axis=1)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation)

    def inverse(self) -> "QuarterTurnTransform":
        size = (self.width, self.height) if self.quarters % 2 else (self.height, self.width)
        return QuarterTurnTransform(-self.quarters % 4, *size)
