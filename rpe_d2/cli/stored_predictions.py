"""Predictions with masks from files in COCO's results format."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Collection, Dict, Tuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import Metadata

from rpe_d2.engine.run_classes import class_names
from rpe_d2.utils.errors import one_line
from rpe_d2.visualization import InstanceMasks


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


class StoredPredictions:
    """Predictions of an evaluation, by image."""

    def __init__(self, path: str, metadata: Metadata, image_ids: Collection[Any], min_score: float):
        """
        Args:
            path: of a file in COCO's results format.
            metadata: of the data set whose predictions they are.
            image_ids: of that data set.
            min_score: predictions below are left out.

        Raises:
            ValueError, OSError: the file is not in COCO's results format with masks, or is of other
                images or categories.
        """
        self._path = path
        try:
            results = json.loads(Path(path).read_text())
            self._of_image = defaultdict(list)
            for result in results:
                if result["score"] >= min_score:
                    item = (result["segmentation"], int(result["category_id"]))
                    self._of_image[result["image_id"]].append(item)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"--predictions {path} is not in COCO's results format with masks ({error!r})"
            ) from error
        numbers = range(len(metadata.get("thing_classes", ())))
        self._class_of = metadata.get("thing_dataset_id_to_contiguous_id") or dict(
            zip(numbers, numbers)
        )
        self._metadata = metadata
        for what, found, known in (
            ("image_id", self._of_image, dict.fromkeys(image_ids)),
            (
                "category_id",
                {item[1] for of in self._of_image.values() for item in of},
                self._class_of,
            ),
        ):
            unknown = [str(number) for number in found if number not in known]
            if unknown:
                raise ValueError(
                    f"--predictions {path} has {what} {unknown[0]}, which the data set does not have; allowed: "
                    f"{', '.join(map(str, list(known)[:5]))}{', …' if len(known) > 5 else ''}"
                )

    def masks(self, item: Dict[str, Any], size: tuple) -> InstanceMasks:
        """Of an item of the data set; ``size`` is (H, W).

        Raises:
            UnusableMask: one does not decode, or is of another size.
        """
        found = self._of_image.get(item["image_id"], [])
        masks = np.zeros((len(found), *size), dtype=bool)
        for index, (segmentation, _) in enumerate(found):
            try:
                masks[index] = decode_mask(segmentation, size)
            except UnusableMask as error:
                where = f"--predictions {self._path}: an entry of {item['file_name']}"
                raise UnusableMask(f"{where}: {error}") from error
        classes = [self._class_of[category] for _, category in found]
        return InstanceMasks(masks, class_names(classes, self._metadata))
