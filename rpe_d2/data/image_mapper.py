"""Detectron2's dataset mapper with this package's readers of images and label maps."""

import copy
from typing import Any, Dict, Optional

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError

from rpe_d2.utils.images import ImageReader
from rpe_d2.utils.label_maps import read_label_map

from .augmentation import additional_augmentations

__all__ = ["ImageMapper"]


class ImageMapper(DatasetMapper):
    """A :class:`detectron2.data.DatasetMapper` for images of any bit depth and number of channels.

    Images are read by :class:`rpe_d2.utils.images.ImageReader`. Label maps are read as indices,
    even those with a palette. In training, this package's augmentations are applied after
    Detectron2's.
    """

    @configurable
    def __init__(self, is_train: bool, *, reader: Optional[ImageReader] = None, **kwargs: Any):
        """
        Args:
            is_train: whether the mapper is used in training.
            reader: reads the images. If None, the default rules and ``image_format`` are used.
            kwargs: arguments of :class:`detectron2.data.DatasetMapper`.
        """
        super().__init__(is_train, **kwargs)
        self.reader = reader or ImageReader(self.image_format)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> Dict[str, Any]:
        ret = super().from_config(cfg, is_train)
        if is_train:
            ret["augmentations"] += additional_augmentations(cfg)
        ret["reader"] = ImageReader.from_cfg(cfg)
        return ret

    def __call__(self, dataset_dict: Dict[str, Any]) -> Dict[str, Any]:
        """Maps a dict of a data set to the input of a model, as Detectron2's mapper does.

        Raises:
            UnreadableImage: The image or its label map has several planes or channels, and none are
                chosen.
            OSError, SyntaxError, SizeMismatchError: A file cannot be read, or the size of the image
                differs from that of its annotations.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        image, orientation = self.reader.read(dataset_dict["file_name"])
        _check_size(dataset_dict, image, orientation)
        label_file = dataset_dict.pop("sem_seg_file_name", None)
        labels = None
        if label_file is not None:
            labels = read_label_map(label_file, dtype=np.int32)
            if labels.min(initial=0) >= 0 and labels.max(initial=0) < 256:
                labels = labels.astype(np.uint8)  # Detectron2 resizes uint8 with Pillow

        augmented = T.AugInput(image, sem_seg=labels)
        transforms = self.augmentations(augmented)
        image_shape = augmented.image.shape[:2]
        channels_first = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        dataset_dict["image"] = torch.as_tensor(channels_first)
        if labels is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(augmented.sem_seg.astype(np.int64))
        if self.proposal_topk is not None:
            utils.transform_proposals(
                dataset_dict, image_shape, transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image_shape)
        return dataset_dict


def _check_size(dataset_dict: Dict[str, Any], image: np.ndarray, orientation: int) -> None:
    """Checks the image size that the annotations expect, and fills it in if it is missing.

    Raises:
        SizeMismatchError: The sizes differ.
    """
    try:
        utils.check_image_size(dataset_dict, image)
    except SizeMismatchError as error:
        height, width = image.shape[:2]
        if orientation < 2:
            raise
        raise SizeMismatchError(
            f"{dataset_dict['file_name']}: its EXIF orientation {orientation} makes it "
            f"{width} x {height}; its annotations are for {dataset_dict.get('width')} x "
            f"{dataset_dict.get('height')} (width x height)"
        ) from error
