"""Predictions with masks, read from files in COCO's results format."""

import reprlib
from collections import defaultdict
from typing import Any, Collection, Dict, Tuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import Metadata

from rpe_d2.engine.run_classes import class_names
from rpe_d2.utils.coco_annotations import Problem, check_stored_rles, is_polygon, mask_problem
from rpe_d2.utils.errors import one_line
from rpe_d2.utils.json_text import parse_json, read_text
from rpe_d2.visualization import InstanceMasks


class UnusableMask(ValueError):
    """Raised for a mask that cannot be decoded or does not have the size of its image."""


def decode_mask(segmentation: Any, size: Tuple[int, int]) -> np.ndarray:
    """Decodes a mask from polygons or from RLE, compressed or not.

    Args:
        segmentation: "segmentation" of an entry in COCO's results format.
        size: (H, W) of its image.

    Returns:
        The mask (H, W) bool.

    Raises:
        UnusableMask: If it is in another format or has another size.
    """
    problem = mask_problem(segmentation, *size)
    if not problem and isinstance(segmentation, list):
        # pycocotools takes polygons of two corners for boxes.
        polygons = [polygon for polygon in segmentation if is_polygon(polygon)]
        if not polygons:
            found = f"the segmentation {reprlib.repr(segmentation)}"
            problem = Problem(found, "polygons of 3 or more corners")
        segmentation = polygons
    if problem:
        raise UnusableMask(
            f"its mask cannot be decoded: {problem.found}; allowed: {problem.allowed}"
        )
    try:
        if isinstance(segmentation, list):
            segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, *size))
        elif isinstance(segmentation["counts"], list):
            segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
        return mask_util.decode(segmentation).astype(bool)
    except Exception as error:  # pycocotools may raise any error for malformed input
        raise UnusableMask(f"its mask cannot be decoded ({one_line(error)})") from error


class StoredPredictions:
    """The predictions of an evaluation by image."""

    def __init__(self, path: str, metadata: Metadata, image_ids: Collection[Any], min_score: float):
        """
        Args:
            path: file in COCO's results format.
            metadata: metadata of the data set that was evaluated.
            image_ids: image ids of that data set.
            min_score: predictions with a lower score are left out.

        Raises:
            ValueError: If the file is not in COCO's results format with masks, or has other images
                or categories than the data set.
            OSError: If the file cannot be read.
        """
        self._path = path
        try:
            results = parse_json(read_text(path), path)
            self._of_image = defaultdict(list)
            for result in results:
                hash(result["category_id"])  # a number or text, as the data set has it
                if result["score"] >= min_score:
                    item = (result["segmentation"], result["category_id"])
                    self._of_image[result["image_id"]].append(item)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"--predictions {path} is not in COCO's results format with masks ({error!r})"
            ) from error
        check_stored_rles(f"--predictions {path}", [r.get("segmentation") for r in results])
        numbers = range(len(metadata.get("thing_classes", ())))
        self._class_of = metadata.get("thing_dataset_id_to_contiguous_id") or dict(
            zip(numbers, numbers)
        )
        self._metadata = metadata
        for name, used, known in (
            ("image_id", self._of_image, dict.fromkeys(image_ids)),
            (
                "category_id",
                {item[1] for of in self._of_image.values() for item in of},
                self._class_of,
            ),
        ):
            unknown = [repr(number) for number in used if number not in known]
            if unknown:
                raise ValueError(
                    f"--predictions {path} has {name} {unknown[0]}, which the data set does not "
                    f"have; allowed: {', '.join(map(repr, list(known)[:5]))}"
                    f"{', …' if len(known) > 5 else ''}"
                )

    def masks(self, item: Dict[str, Any], size: tuple) -> InstanceMasks:
        """Decodes the predictions of an image.

        Args:
            item: the image's dict in the data set.
            size: (H, W) of the image.

        Returns:
            The masks (R, H, W) with the names of their classes.

        Raises:
            UnusableMask: If a mask cannot be decoded or has another size.
        """
        predictions = self._of_image.get(item["image_id"], [])
        masks = np.zeros((len(predictions), *size), dtype=bool)
        for index, (segmentation, _) in enumerate(predictions):
            try:
                masks[index] = decode_mask(segmentation, size)
            except UnusableMask as error:
                where = f"--predictions {self._path}: an entry of {item['file_name']}"
                raise UnusableMask(f"{where}: {error}") from error
        classes = [self._class_of[category] for _, category in predictions]
        return InstanceMasks(masks, class_names(classes, self._metadata))
