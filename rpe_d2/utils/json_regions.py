"""Reading region proposals from a JSON file in COCO's results format."""

from typing import Any, Dict, List, Sequence, Tuple

import pycocotools.mask as mask_util

from .coco_annotations import are_numbers, is_polygon, mask_problem
from .json_text import parse_json, read_text
from .mat_regions import Region

__all__ = ["JsonRegions"]


class JsonRegions:
    """The regions of a JSON file by image.

    The file is a list of dicts with ``image_id``, ``segmentation`` (polygons, or RLE as text or as
    a list) and perhaps ``score``. Regions without scores are ranked by their order.
    """

    def __init__(self, path: str):
        """
        Args:
            path: the file, compressed by gzip if its name ends with ``.gz``.

        Raises:
            ValueError: The message is one line with the file and what is wrong with it.
            OSError: The file cannot be opened.
        """
        self._path = path
        # By the id of the image as text: score, number of the entry and mask, the best first.
        self._regions: Dict[str, List[Tuple[float, int, Any]]] = {}
        content = parse_json(read_text(path), path)
        if not isinstance(content, list):
            raise ValueError(f"{path} is not a list; allowed: COCO results with masks")
        for number, result in enumerate(content):
            if not isinstance(result, dict) or not {"image_id", "segmentation"} <= set(result):
                raise ValueError(
                    f"{path}: entry {number} has no image_id or no segmentation; allowed: COCO "
                    "results with masks"
                )
            own = self._regions.setdefault(str(result["image_id"]), [])
            score = result.get("score", -len(own))
            if not are_numbers([score]):
                raise ValueError(
                    f"{path}: entry {number} has the score {score!r}; allowed: a number"
                )
            own.append((float(score), number, result["segmentation"]))
        for own in self._regions.values():
            own.sort(key=lambda region: -region[0])

    @property
    def image_ids(self) -> List[str]:
        """The ids of the images as text, in the order of the file."""
        return list(self._regions)

    def of_image(self, image_id: Any, size: Sequence[int], limit: int) -> List[Region]:
        """Returns the best regions of an image, the best first; none if the file has none.

        Args:
            image_id: id of the image.
            size: (H, W) of the image.
            limit: largest number of regions.

        Raises:
            ValueError: A mask cannot be decoded, or has another size than the image.
        """
        return [
            Region(self._rle(number, segmentation, size), score)
            for score, number, segmentation in self._regions.get(str(image_id), [])[:limit]
        ]

    def _rle(self, number: int, segmentation: Any, size: Sequence[int]) -> Dict[str, Any]:
        problem = mask_problem(segmentation, *size)
        if problem:
            raise ValueError(
                f"{self._path}: entry {number} has {problem.found}; allowed: {problem.allowed}"
            )
        if isinstance(segmentation, list):
            polygons = [polygon for polygon in segmentation if is_polygon(polygon)]
            empty = {"size": list(size), "counts": [size[0] * size[1]]}
            parts = mask_util.frPyObjects(polygons or [empty], *size)
            rle = mask_util.merge(parts)
        elif isinstance(segmentation["counts"], list):
            rle = mask_util.frPyObjects(segmentation, *size)
        else:
            rle = segmentation
        counts = rle["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        return {"size": list(size), "counts": text}
