"""The dataset mapper of contour detection (BSDS), which loads the contours of all annotators."""

from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from rpe_d2.ops.thinning import thin
from rpe_d2.utils.mat_files import read_boundary_annotations, size_text
from rpe_d2.utils.readable import UnreadableImage

from .image_mapper import ImageMapper

__all__ = ["BoundaryMapper", "transform_boundaries"]


class BoundaryMapper(ImageMapper):
    """A dataset mapper for models that learn contours from several annotators.

    In training, an image gets ``boundaries``, an (A, H, W) bool tensor of the contours that its A
    annotators drew. They are one pixel wide and transformed like the image. Combining the
    annotators is left to the model. After a crop there may be no contour at all.

    In testing, it is the same as :class:`ImageMapper`. ``boundary_file_name`` remains in the dict
    for the evaluator.
    """

    @configurable
    def __init__(self, is_train: bool, **kwargs: Any):
        """
        Args:
            is_train: whether the mapper is used in training.
            kwargs: arguments of :class:`ImageMapper`.
        """
        super().__init__(is_train, **kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> Dict[str, Any]:
        ret = super().from_config(cfg, is_train)
        ret["recompute_boxes"] = False
        return ret

    def __call__(self, dataset_dict: Dict[str, Any]) -> Dict[str, Any]:
        """
        Raises:
            ValueError: In training, the image has no ``boundary_file_name``.
            UnreadableImage: In training, the contour file cannot be read or has a wrong size.
        """
        if not self.is_train:
            return super().__call__(dataset_dict)
        # Detectron2's mapper passes its transforms to _transform_annotations alone, which it calls
        # only if there are annotations.
        return super().__call__({**dataset_dict, "annotations": _read_boundaries(dataset_dict)})

    def _transform_annotations(
        self,
        dataset_dict: Dict[str, Any],
        transforms: T.TransformList,
        image_shape: Tuple[int, int],
    ) -> None:
        annotations = dataset_dict.pop("annotations")
        transformed = [transform_boundaries(a, transforms, image_shape) for a in annotations]
        dataset_dict["boundaries"] = torch.from_numpy(np.stack(transformed))


def transform_boundaries(
    lines: np.ndarray, transforms: T.Transform, size: Tuple[int, int]
) -> np.ndarray:
    """Transforms contours as coordinates, not as an image, so that they stay one pixel wide.

    If contours were resampled as an image, they would have gaps after shrinking and steps two
    pixels wide after enlarging. This function transforms the center of every contour pixel, and
    points on the segment to each neighboring contour pixel, which are dense enough to leave no
    gaps. Every pixel that contains a transformed point is marked. The result is thinned unless all
    pixels move by whole pixels, since the annotators' own contours are thin.

    Args:
        lines: (h, w) bool.
        transforms: the transforms applied to the image. Only ``apply_coords`` is called.
        size: (H, W) of the transformed image.

    Returns:
        (H, W) bool.
    """
    rows, columns = np.nonzero(lines)
    transformed = np.zeros(size, dtype=bool)
    if not rows.size:
        return transformed
    centers = np.column_stack([columns, rows]) + 0.5  # x, y in continuous coordinates
    ends = transforms.apply_coords(centers.copy())
    if np.abs(ends - np.floor(ends) - 0.5).max() < 1e-4:
        _mark(transformed, ends)
        return transformed
    # The largest distance between two transformed neighbors, in pixels of the result.
    first, second = _neighbors(lines)
    stretch = np.abs(ends[first] - ends[second]).max(initial=1.0)
    _mark(transformed, ends)
    parts = int(np.ceil(stretch))
    for part in range(1, parts):
        weight = part / parts
        between = (1 - weight) * centers[first] + weight * centers[second]
        _mark(transformed, transforms.apply_coords(between))
    return thin(transformed)


def _neighbors(lines: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Returns the pairs of 8-connected contour pixels, as indices into ``np.nonzero(lines)``."""
    number = np.full((lines.shape[0] + 1, lines.shape[1] + 2), -1)
    number[:-1, 1:-1][lines] = np.arange(np.count_nonzero(lines))
    here = number[:-1, 1:-1]
    firsts, seconds = [], []
    for there in (number[:-1, 2:], number[1:, :-2], number[1:, 1:-1], number[1:, 2:]):
        both = (here >= 0) & (there >= 0)
        firsts.append(here[both])
        seconds.append(there[both])
    return np.concatenate(firsts), np.concatenate(seconds)


def _mark(lines: np.ndarray, points: np.ndarray) -> None:
    """Sets the pixels of (H, W) that contain points (N, 2) x, y. Points outside are ignored."""
    columns, rows = np.floor(points).astype(int).T
    inside = (rows >= 0) & (rows < lines.shape[0]) & (columns >= 0) & (columns < lines.shape[1])
    lines[rows[inside], columns[inside]] = True


def _read_boundaries(dataset_dict: Dict[str, Any]) -> List[np.ndarray]:
    name = dataset_dict["file_name"]
    path = dataset_dict.get("boundary_file_name")
    if path is None:
        raise ValueError(f"{name} has no boundary_file_name, the .mat file of its human boundaries")
    try:
        annotations = read_boundary_annotations(path)
    except (ValueError, OSError) as error:
        raise UnreadableImage(" ".join(str(error).split())) from error
    size = dataset_dict["height"], dataset_dict["width"]
    if annotations[0].shape != size:
        raise UnreadableImage(
            f"{path}: the boundaries are {size_text(annotations[0].shape)} and {name} is "
            f"{size_text(size)} (height x width)"
        )
    return annotations
