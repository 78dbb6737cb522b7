"""The dataset mapper of networks that are trained on small patches of every picture."""

from typing import Any, Dict, Optional, Sequence, Tuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable

from .image_mapper import ImageMapper

__all__ = ["PatchMapper"]

_MAPS = "coarse_sem_seg"


class PatchMapper(ImageMapper):
    """A dataset mapper that cuts several patches out of a picture (Liu et al., NIPS 2017, sec. 5).

    In training, the result has ``patches``, a list of dicts with

    * ``image``: (C, H, W) uint8, by bilinear interpolation,
    * ``sem_seg``: (H, W) int64, by nearest-neighbor interpolation,
    * ``coarse_sem_seg``: (K, H, W) float32, if the data set has predictions of another model, by
      bilinear interpolation.

    The patches have the same random flip. Every patch has its own angle, scale and position. Where
    it extends beyond the picture, its label is the ignored one, and the picture and the predictions
    repeat their last pixels. A patch has at least two classes: others are rejected, up to a number
    of tries. Then the last one is used, since some pictures have a single class.

    ``INPUT.CROP.SIZE`` is the size of a patch in pixels, with ``INPUT.CROP.TYPE`` absolute;
    ``INPUT.ROTATION`` and ``INPUT.SCALE_JITTER`` limit the angles and scales. A batch has
    ``SOLVER.IMS_PER_BATCH`` pictures, each with all of its patches.

    In testing, it is the same as :class:`ImageMapper`.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        size: Sequence[int] = (128, 128),
        num_patches: int = 10,
        rotation: float = 15.0,
        scales: Sequence[float] = (0.9, 1.1),
        max_tries: int = 10,
        ignored_label: int = 255,
        **kwargs: Any,
    ):
        """
        Args:
            is_train: whether the mapper is used in training.
            size: height and width of a patch in pixels.
            num_patches: number of patches of a picture.
            rotation: largest angle in degrees.
            scales: the smallest and the largest scale.
            max_tries: largest number of random patches to find one with two classes.
            ignored_label: label of pixels whose class is not known.
            kwargs: arguments of :class:`ImageMapper`.
        """
        super().__init__(is_train, **kwargs)
        for name, value in (("num_patches", num_patches), ("max_tries", max_tries)):
            if value < 1:
                raise ValueError(f"{name} is {value}; allowed: 1 or more")
        self.size = tuple(size)
        self.num_patches = num_patches
        self.rotation = rotation
        self.scales = tuple(scales)
        self.max_tries = max_tries
        self.ignored_label = ignored_label

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> Dict[str, Any]:
        crop = cfg.INPUT.CROP
        if is_train and not (crop.ENABLED and crop.TYPE == "absolute"):
            raise ValueError(
                f"INPUT.CROP.ENABLED is {crop.ENABLED} and INPUT.CROP.TYPE is {crop.TYPE!r}; "
                "allowed with PatchMapper: True and 'absolute'"
            )
        whole = cfg.clone()
        whole.defrost()
        whole.INPUT.CROP.ENABLED = False
        whole.INPUT.ROTATION, whole.INPUT.SCALE_JITTER = 0.0, []
        return {
            **super().from_config(whole, is_train),
            "size": crop.SIZE,
            "rotation": cfg.INPUT.ROTATION,
            "scales": cfg.INPUT.SCALE_JITTER or (1.0, 1.0),
            "ignored_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def __call__(self, dataset_dict: Dict[str, Any]) -> Dict[str, Any]:
        """
        Raises:
            ValueError: In training, the picture has no label map.
            UnreadableImage: A file cannot be read or has a wrong size.
        """
        item = super().__call__(dataset_dict)
        if not self.is_train:
            return item
        if "sem_seg" not in item:
            raise ValueError(
                f"{dataset_dict['file_name']} has no label map; allowed with PatchMapper: data "
                "sets with semantic maps"
            )
        image, labels = item.pop("image").numpy(), item.pop("sem_seg").numpy().astype(np.float32)
        maps = item.pop(_MAPS).numpy() if _MAPS in item else None
        patches = [self._patch(image, labels, maps) for _ in range(self.num_patches)]
        return {**item, "patches": patches}

    def _patch(
        self, image: np.ndarray, labels: np.ndarray, maps: Optional[np.ndarray]
    ) -> Dict[str, torch.Tensor]:
        """Cuts a random patch out of an image (C, H, W), its labels (H, W) and its maps."""
        for _ in range(self.max_tries):
            matrix = self._placement(labels.shape)
            target = self._cut(labels, matrix, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT)
            if (np.unique(target) != self.ignored_label).sum() >= 2:
                break
        patch = {"image": self._smooth(image, matrix), "sem_seg": target.astype(np.int64)}
        if maps is not None:
            patch[_MAPS] = self._smooth(maps, matrix)
        return {name: torch.from_numpy(array) for name, array in patch.items()}

    def _placement(self, shape: Tuple[int, int]) -> np.ndarray:
        """Returns a random (2, 3) matrix from x, y of pixels of a patch to those of the picture.

        Without rotation, the patch is inside the picture if that is large enough.
        """
        angle = np.deg2rad(np.random.uniform(-self.rotation, self.rotation))
        scale = np.random.uniform(*self.scales)
        center = []
        for side, whole in zip(self.size, shape):
            half = min(side / scale, whole) / 2
            center.append(np.random.uniform(half, whole - half) - 0.5)
        cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
        linear = np.array([[cos, -sin], [sin, cos]])
        middle = (np.array(self.size[::-1]) - 1) / 2
        offset = np.array(center[::-1]) - linear @ middle
        return np.column_stack([linear, offset])

    def _smooth(self, maps: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Cuts a patch out of maps (N, H, W) by bilinear interpolation."""
        parts = [self._cut(one, matrix, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE) for one in maps]
        return np.stack(parts)

    def _cut(
        self, array: np.ndarray, matrix: np.ndarray, interpolation: int, border: int
    ) -> np.ndarray:
        """Cuts a patch out of an array.

        Args:
            array: (H, W) uint8 or float32.
            matrix: (2, 3), from x, y of pixels of the patch to those of the array.
            interpolation: method of OpenCV.
            border: OpenCV's rule for pixels outside; a constant is the ignored label.

        Returns:
            An array of the type of ``array`` and the size of the patch.
        """
        return cv2.warpAffine(
            array,
            matrix,
            self.size[::-1],
            flags=interpolation | cv2.WARP_INVERSE_MAP,
            borderMode=border,
            borderValue=self.ignored_label,
        )
