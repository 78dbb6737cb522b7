"""The mapper of boundary detection: what every annotator drew, moved with the picture."""

from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T

from rpe_d2.ops.thinning import thin
from rpe_d2.utils.mat_files import read_boundary_annotations, size_text
from rpe_d2.utils.readable import UnreadableImage

from .augmentation import additional_augmentations

__all__ = ["BoundaryMapper", "transform_boundaries"]


class BoundaryMapper(DatasetMapper):
    """Detectron2's mapper for models that learn boundaries from several annotators.

    In training, an image gets `boundaries`: (A, H, W) bool, the lines that each of its A annotators drew, one pixel
    wide, moved by the same flips, crops, resizings and turns as the picture. How they are weighed against each other
    is the model's business. A crop may leave no line.

    Testing is as in `detectron2.data.DatasetMapper`: `boundary_file_name` stays, from which the evaluator reads.
    """

    @configurable
    def __init__(self, is_train: bool, **kwargs: Any):
        """
        Args:
            is_train: whether it is used in training.
            kwargs: as for `DatasetMapper`.
        """
        super().__init__(is_train, **kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> Dict[str, Any]:
        ret = super().from_config(cfg, is_train)
        if is_train:
            ret["augmentations"] += additional_augmentations(cfg)
        ret["recompute_boxes"] = False
        return ret

    def __call__(self, dataset_dict: Dict[str, Any]) -> Dict[str, Any]:
        """
        Raises:
            ValueError: in training, the image names no file of boundaries.
            UnreadableImage: in training, the file of boundaries cannot be read, or is of another size.
        """
        if not self.is_train:
            return super().__call__(dataset_dict)
        # Detectron2's mapper shows its transforms to _transform_annotations alone, and that only where there are
        # annotations.
        return super().__call__({**dataset_dict, "annotations": _read_boundaries(dataset_dict)})

    def _transform_annotations(
        self,
        dataset_dict: Dict[str, Any],
        transforms: T.TransformList,
        image_shape: Tuple[int, int],
    ) -> None:
        annotations = dataset_dict.pop("annotations")
        moved = [transform_boundaries(lines, transforms, image_shape) for lines in annotations]
        dataset_dict["boundaries"] = torch.from_numpy(np.stack(moved))


def transform_boundaries(
    lines: np.ndarray, transforms: T.Transform, size: Tuple[int, int]
) -> np.ndarray:
    """Moves lines of one pixel as coordinates, not as a picture, so that they stay lines of one pixel.

    Resized as a picture they would get holes where it becomes smaller, and steps two pixels wide where it becomes
    larger. Here the centre of every marked pixel is moved, and with it points on the way to each marked neighbour,
    dense enough that the largest stretch leaves no hole; a pixel into which one falls is marked. Where pixels are not
    moved by whole ones the result is thinned, as the annotators' own lines are.

    Args:
        lines: (h, w) bool.
        transforms: Detectron2's, what was done to the picture; only coordinates are moved.
        size: (H, W) of the picture after.

    Returns:
        (H, W) bool.
    """
    rows, columns = np.nonzero(lines)
    moved = np.zeros(size, dtype=bool)
    if not rows.size:
        return moved
    centers = np.column_stack([columns, rows]) + 0.5  # x, y in continuous coordinates
    ends = transforms.apply_coords(centers.copy())
    if np.abs(ends - np.floor(ends) - 0.5).max() < 1e-4:
        _mark(moved, ends)
        return moved
    # How far apart the ends of the longest step to a neighbour are now, in pixels of the result.
    first, second = _neighbours(lines)
    stretch = np.abs(ends[first] - ends[second]).max(initial=1.0)
    _mark(moved, ends)
    parts = int(np.ceil(stretch))
    for part in range(1, parts):
        share = part / parts
        between = (1 - share) * centers[first] + share * centers[second]
        _mark(moved, transforms.apply_coords(between))
    return thin(moved)


def _neighbours(lines: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Pairs of marked pixels that touch at a side or a corner, as places in ``np.nonzero(lines)``."""
    number = np.full((lines.shape[0] + 1, lines.shape[1] + 2), -1)
    number[:-1, 1:-1][lines] = np.arange(np.count_nonzero(lines))
    here = number[:-1, 1:-1]
    firsts, seconds = [], []
    for there in (number[:-1, 2:], number[1:, :-2], number[1:, 1:-1], number[1:, 2:]):
        both = (here >= 0) & (there >= 0)
        firsts.append(here[both])
        seconds.append(there[both])
    return np.concatenate(firsts), np.concatenate(seconds)


def _mark(moved: np.ndarray, points: np.ndarray) -> None:
    """Sets the pixels of (H, W) into which points (N, 2) x, y fall; those outside are left out."""
    columns, rows = np.floor(points).astype(int).T
    inside = (rows >= 0) & (rows < moved.shape[0]) & (columns >= 0) & (columns < moved.shape[1])
    moved[rows[inside], columns[inside]] = True


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
