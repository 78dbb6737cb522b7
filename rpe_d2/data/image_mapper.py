"""The dataset mapper of models that need no more than Detectron2's, and the base of the others."""

import copy
import logging
from typing import Any, Dict

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.utils.logger import log_first_n

from rpe_d2.utils.image_files import printable
from rpe_d2.utils.images import ImageReader, check_size, reader_arguments
from rpe_d2.utils.label_maps import read_class_indices
from rpe_d2.utils.probability_maps import read_probabilities
from rpe_d2.utils.readable import UnreadableImage

from .augmentation import (
    additional_augmentations,
    leading_augmentations,
    transform_probabilities,
    with_own_scale,
)
from .datasets.coarse_dirs import COARSE_FILE
from .datasets.mask_proposals import MASK_PROPOSALS, read_regions
from .mask_proposals import RegionSettings, transform_regions

__all__ = ["ImageMapper"]


class ImageMapper(DatasetMapper):
    """A dataset mapper that reads images and label maps of all kinds.

    It is the same as :class:`detectron2.data.DatasetMapper` except that

    * images are read by :class:`rpe_d2.utils.images.ImageReader`, which follows
      ``INPUT.INTENSITY``, ``INPUT.CHANNELS`` and ``INPUT.PLANE``. Detectron2 cuts intensities above
      255;
    * images are resized by ``INPUT.SCALE``, if that is set;
    * predictions of another model, ``DATASETS.COARSE_DIRS``, are read as ``coarse_sem_seg``
      (K, H, W) float32, and transformed like the image;
    * region proposals, ``DATASETS.PROPOSAL_MASKS_TRAIN`` and ``_TEST``, become ``proposals``, and
      are transformed like the image; see :func:`rpe_d2.data.mask_proposals.transform_regions`;
    * palette indices of label maps are their labels. Detectron2 takes the brightness of the color;
    * training images also get the augmentations ``INPUT.QUARTER_TURNS`` and ``INPUT.COLOR_JITTER``.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        image_format: str,
        intensity: str = "auto",
        channels: str = "",
        plane: int = -1,
        regions: RegionSettings = RegionSettings(),
        **kwargs: Any,
    ):
        """
        Args:
            is_train: whether the mapper is used in training.
            image_format, intensity, channels, plane: arguments of
                :class:`rpe_d2.utils.images.ImageReader`.
            regions: number and masks of region proposals.
            kwargs: other arguments of :class:`detectron2.data.DatasetMapper`.
        """
        super().__init__(is_train, image_format=image_format, **kwargs)
        self.reader = ImageReader(image_format, intensity, channels, plane)
        self.regions = regions
        log_first_n(
            logging.INFO, f"Images are read with {self.reader.rule}", name=__name__, key="message"
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> Dict[str, Any]:
        ret = super().from_config(cfg, is_train)
        ret["augmentations"] = with_own_scale(cfg, ret["augmentations"])
        if is_train:
            ret["augmentations"] = [*leading_augmentations(cfg), *ret["augmentations"]]
            ret["augmentations"] += additional_augmentations(cfg)
        regions = RegionSettings.from_config(cfg, is_train)
        return {**ret, **reader_arguments(cfg), "regions": regions}

    def __call__(self, dataset_dict: Dict[str, Any]) -> Dict[str, Any]:
        """
        Raises:
            UnreadableImage: The image or its label map cannot be read or has a wrong size.
        """
        dataset_dict = copy.deepcopy(dataset_dict)  # it is modified below
        image = self.reader(dataset_dict["file_name"])
        check_size(dataset_dict, image.shape[:2])
        sem_seg_file = dataset_dict.pop("sem_seg_file_name", None)
        sem_seg = None if sem_seg_file is None else _read_labels(sem_seg_file, dataset_dict)

        coarse_file = dataset_dict.pop(COARSE_FILE, None)
        coarse = None if coarse_file is None else read_probabilities(coarse_file, image.shape[:2])

        source = dataset_dict.pop(MASK_PROPOSALS, None)
        size = image.shape[:2]
        regions = None if source is None else read_regions(source, self.regions.limit, size)

        aug_input = T.AugInput(image, sem_seg=sem_seg)
        try:
            transforms = self.augmentations_of(dataset_dict)(aug_input)
        except ValueError as error:  # no pixels are left of a long and narrow image
            raise UnreadableImage(
                f"{printable(dataset_dict['file_name'])} is {image.shape[1]} x {image.shape[0]} "
                f"pixels, which cannot be resized to the sizes of INPUT ({error})"
            ) from error
        image = aug_input.image  # (H, W, C), resized
        dataset_dict["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype("long"))
        if coarse is not None:
            moved = transform_probabilities(coarse, transforms)
            dataset_dict["coarse_sem_seg"] = torch.from_numpy(moved)
        if regions is not None:
            dataset_dict["proposals"] = transform_regions(
                regions, size, transforms, image.shape[:2], self.regions
            )
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(
                dataset_dict, image.shape[:2], transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image.shape[:2])
        return dataset_dict

    def augmentations_of(self, dataset_dict: Dict[str, Any]) -> T.AugmentationList:
        """Returns the augmentations of an image, here the same for all of them."""
        return self.augmentations


def _read_labels(file_name: str, record: Dict[str, Any]) -> np.ndarray:
    """Reads a label map (H, W) in a number type that Detectron2 can resize.

    This is uint8, or else float32, in which labels below 2^24 are exact.

    Raises:
        UnreadableImage: The map does not have the size of its image.
    """
    labels = read_class_indices(file_name)
    if labels.shape != (record["height"], record["width"]):
        raise UnreadableImage(
            f"{file_name} is {labels.shape[1]} x {labels.shape[0]} pixels; its image "
            f"{record['file_name']} is {record['width']} x {record['height']} (width x height); "
            "allowed: the same"
        )
    is_byte = labels.min(initial=0) >= 0 and labels.max(initial=0) <= 255
    return labels.astype(np.uint8 if is_byte else np.float32)
