"""Dataset mappers for instance segmentation by pixel grouping, and wrappers of mappers."""

import logging
import zlib
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, polygons_to_bitmask
from detectron2.utils.logger import log_first_n

from rpe_d2.ops.coarsen import coarsen_masks
from rpe_d2.utils.coco_annotations import rle_problem
from rpe_d2.utils.readable import UnreadableImage

from .image_mapper import ImageMapper

__all__ = ["CoarseInstances", "CountInstances", "PixelLabelMapper"]


class PixelLabelMapper(ImageMapper):
    """A dataset mapper for models that learn from the label of every pixel.

    In training, an image with "annotations" gets:

    * ``instances``: ``gt_boxes``, ``gt_classes`` (N,) int64 and ``gt_masks``, a ``BitMasks`` of
      (N, H, W) bool, regardless of ``MODEL.MASK_ON`` and ``INPUT.MASK_FORMAT``. An image without
      objects has all three with N = 0. After a crop, boxes are recomputed from the masks. If an
      annotation has no mask, its mask is the filled box.
    * ``ignore_mask``: (H, W) bool tensor, True on crowd regions (``iscrowd: 1``) and on "ignore" of
      the dataset dict, an RLE (such as VOC's void pixels). It is transformed like the image, and
      absent if there is nothing to ignore. Detectron2 drops crowds, so that they would be learned
      as background. Where the mask overlaps an instance, the label of the instance should be used.

    Everything else, and all of testing, is the same as :class:`ImageMapper`.
    """

    @configurable
    def __init__(self, is_train: bool, **kwargs: Any):
        """
        Args:
            is_train: whether the mapper is used in training.
            kwargs: arguments of :class:`ImageMapper`. ``use_instance_mask`` and
                ``instance_mask_format`` have no effect.
        """
        kwargs.update(use_instance_mask=True, instance_mask_format="bitmask")
        super().__init__(is_train, **kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> Dict[str, Any]:
        ret = super().from_config(cfg, is_train)
        # Boxes around turned boxes would be too large.
        turned = cfg.INPUT.CROP.ENABLED or cfg.INPUT.get("ROTATION", 0)
        ret["recompute_boxes"] = bool(is_train and turned)
        return ret

    def _transform_annotations(
        self,
        dataset_dict: Dict[str, Any],
        transforms: T.TransformList,
        image_shape: Tuple[int, int],
    ) -> None:
        _check_rles(dataset_dict)
        size = dataset_dict["height"], dataset_dict["width"]  # size of the untransformed image
        annotations = dataset_dict["annotations"]
        crowds = [a for a in annotations if a.get("iscrowd", 0)]
        objects = [a for a in annotations if not a.get("iscrowd", 0)]

        ignored = [_to_bitmask(a, size) for a in crowds]
        if "ignore" in dataset_dict:
            ignored.append(_to_bitmask({"segmentation": dataset_dict.pop("ignore")}, size))
        if ignored:
            mask = np.any(ignored, axis=0).astype(np.uint8)
            dataset_dict["ignore_mask"] = torch.from_numpy(transforms.apply_segmentation(mask) > 0)

        # Cropping polygons would require shapely, which Detectron2 does not depend on.
        is_cropped = any(isinstance(t, T.CropTransform) for t in transforms.transforms)
        for annotation in objects:
            segmentation = annotation.get("segmentation")
            if isinstance(segmentation, dict) or (segmentation and not is_cropped):
                annotation["segmentation"] = _compressed(segmentation, size)
            else:
                mask = np.asfortranarray(_to_bitmask(annotation, size), dtype=np.uint8)
                annotation["segmentation"] = mask_util.encode(mask)
        if is_cropped:
            objects = _inside_crop(objects, transforms)
        if not objects:
            # Detectron2 leaves out gt_masks here, and then fails if boxes are to be recomputed.
            dataset_dict.pop("annotations")
            instances = Instances(image_shape)
            instances.gt_boxes = Boxes(torch.zeros(0, 4))
            instances.gt_classes = torch.zeros(0, dtype=torch.int64)
            instances.gt_masks = BitMasks(torch.zeros(0, *image_shape, dtype=torch.bool))
            dataset_dict["instances"] = instances
            return
        dataset_dict["annotations"] = objects
        super()._transform_annotations(dataset_dict, transforms, image_shape)


def _inside_crop(
    objects: List[Dict[str, Any]], transforms: T.TransformList
) -> List[Dict[str, Any]]:
    """Returns the objects whose box overlaps a crop, if that is the first transform.

    The others would be decoded, cropped to nothing and left out, which takes most of the time if
    the image has many objects.

    Args:
        objects: annotations with RLE masks.
        transforms: transforms of the image.
    """
    first = next(t for t in transforms.transforms if not isinstance(t, T.NoOpTransform))
    if not objects or not isinstance(first, T.CropTransform):
        return objects
    x, y, width, height = mask_util.toBbox([a["segmentation"] for a in objects]).T
    inside = (x < first.x0 + first.w) & (x + width > first.x0)
    inside &= (y < first.y0 + first.h) & (y + height > first.y0)
    return [annotation for annotation, kept in zip(objects, inside) if kept]


class CountInstances:
    """Wraps a mapper and adds ``num_instances``, without crowds, for evaluations with an oracle."""

    def __init__(self, mapper: Callable[[Dict[str, Any]], Dict[str, Any]]):
        """
        Args:
            mapper: maps a dataset dict to the input of the model.
        """
        self.mapper = mapper

    def __call__(self, dataset_dict: Dict[str, Any]) -> Dict[str, Any]:
        annotations = dataset_dict.get("annotations", [])
        count = sum(not annotation.get("iscrowd", 0) for annotation in annotations)
        return {**self.mapper(dataset_dict), "num_instances": count}


class CoarseInstances:
    """Wraps a mapper and adds the annotated instances with coarse masks, as input of a refinement.

    ``instances`` has ``pred_masks`` (R, H, W) float32 of the untransformed image from
    :func:`rpe_d2.ops.coarsen.coarsen_masks`, ``pred_classes`` (R,) int64, and ``scores`` (R,), all
    1. Crowds are left out. The random offsets depend on nothing but the image's ``image_id``.
    """

    def __init__(
        self, mapper: Callable[[Dict[str, Any]], Dict[str, Any]], factor: int = 4, jitter: int = 2
    ):
        """
        Args:
            mapper: maps a dataset dict to the input of the model.
            factor: side of a mask's cell in pixels.
            jitter: largest offset of a mask in x and in y, in pixels.
        """
        self.mapper = mapper
        self.factor = factor
        self.jitter = jitter

    def __call__(self, dataset_dict: Dict[str, Any]) -> Dict[str, Any]:
        _check_rles(dataset_dict)
        size = dataset_dict["height"], dataset_dict["width"]
        objects = [a for a in dataset_dict.get("annotations", []) if not a.get("iscrowd", 0)]
        masks = np.array([_to_bitmask(a, size) for a in objects], bool).reshape(-1, *size)
        generator = torch.Generator().manual_seed(
            zlib.crc32(str(dataset_dict["image_id"]).encode())
        )
        instances = Instances(size)
        instances.pred_masks = coarsen_masks(
            torch.from_numpy(masks), self.factor, self.jitter, generator
        )
        instances.pred_classes = torch.tensor(
            [a["category_id"] for a in objects], dtype=torch.int64
        )
        instances.scores = torch.ones(len(objects))
        return {**self.mapper(dataset_dict), "instances": instances}


def _check_rles(dataset_dict: Dict[str, Any]) -> None:
    """Checks masks of data sets that are registered elsewhere; ``COCO_JSONS`` are checked before.

    Raises:
        UnreadableImage: An RLE cannot be decoded.
    """
    size = dataset_dict["height"], dataset_dict["width"]
    for annotation in dataset_dict.get("annotations", []):
        mask = annotation.get("segmentation")
        problem = rle_problem(mask, size) if isinstance(mask, dict) else None
        if problem:
            raise UnreadableImage(
                f"{dataset_dict['file_name']}: an annotation has {problem.found};"
                f" allowed: {problem.allowed}"
            )


def _compressed(segmentation: Any, size: Tuple[int, int]) -> Any:
    """Compresses uncompressed RLE, and returns polygons and compressed RLE unchanged."""
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, *size)
    return segmentation


def _to_bitmask(annotation: Dict[str, Any], size: Tuple[int, int]) -> np.ndarray:
    """Decodes the mask (H, W) bool of an annotation. Without a mask, its box is filled."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        log_first_n(
            logging.WARNING,
            "Some annotations have no mask; their filled boxes are used instead.",
            key="message",
            name=__name__,
        )
        x0, y0, x1, y1 = BoxMode.convert(
            annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS
        )
        segmentation = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    if isinstance(segmentation, list):
        return polygons_to_bitmask(segmentation, *size)
    return mask_util.decode(_compressed(segmentation, size)).astype(bool)
