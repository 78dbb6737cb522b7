"""Region proposals as inputs of a model, transformed like the image."""

import math
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from rpe_d2.utils.mat_regions import Region

__all__ = ["RegionSettings", "transform_regions"]

# A mask is sampled at least this many times in each direction.
_SAMPLES = 128
# Pixels of masks and of samples that are held at a time (64 MB).
_AT_ONCE = 1 << 26


class RegionSettings(NamedTuple):
    """Number, masks and smallest size of the region proposals that a mapper returns.

    Attributes:
        limit: largest number of proposals of an image.
        mask_size: M, the side of the masks; None for proposals without masks.
        min_box_size: proposals with a shorter side, in pixels of the input, are dropped.
    """

    limit: int = 1000
    mask_size: Optional[int] = 112
    min_box_size: float = 0

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> "RegionSettings":
        """Reads the settings; a configuration without this package's keys gets their defaults."""
        generator = cfg.MODEL.PROPOSAL_GENERATOR
        has_masks = not is_train or generator.get("MASKS_IN_TRAINING", False)
        size = cfg.MODEL.RPE.PROPOSAL_MASK_SIZE if "RPE" in cfg.MODEL else cls().mask_size
        part = "TRAIN" if is_train else "TEST"
        return cls(
            cfg.DATASETS[f"PRECOMPUTED_PROPOSAL_TOPK_{part}"],
            size if has_masks else None,
            generator.MIN_SIZE,
        )


def transform_regions(
    regions: Sequence[Region],
    source_size: Tuple[int, int],
    transforms: T.TransformList,
    size: Tuple[int, int],
    settings: RegionSettings,
) -> Instances:
    """Converts the regions of an image to proposals for its transformed version.

    A mask is read at the place that every cell of its transformed box has in the untransformed
    image. Thousands of masks are thus transformed without transforming whole images.

    Args:
        regions: regions of the untransformed image.
        source_size: (H, W) of the untransformed image.
        transforms: the transforms applied to the image; all are affine.
        size: (H, W) of the transformed image.
        settings: size of the masks and smallest box. The number of regions is not limited here.

    Returns:
        Instances in the order of the regions with ``proposal_boxes``, ``objectness_logits`` (the
        scores) and, with ``mask_size``, ``proposal_masks`` (N, M, M) uint8 in 0-255, relative to
        the boxes. Regions that are empty or outside the transformed image are dropped.

    Raises:
        ValueError: The transforms are not affine.
    """
    rles = [region.rle for region in regions]
    boxes = np.zeros((0, 4))
    if rles:
        boxes = mask_util.toBbox(rles).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
    kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    moved = Boxes(torch.from_numpy(_moved_boxes(transforms, boxes[kept])))
    moved.clip(size)
    sides = moved.tensor[:, 2:] - moved.tensor[:, :2]
    inside = ((sides > 0) & (sides >= settings.min_box_size)).all(dim=1)
    moved, kept = moved[inside], kept[inside.numpy()]
    proposals = Instances(tuple(size))
    proposals.proposal_boxes = moved
    scores = np.array([regions[index].score for index in kept], np.float32)
    proposals.objectness_logits = torch.from_numpy(scores)
    if settings.mask_size is not None:
        to_source = _inverse_of(transforms, source_size)
        masks = _masks_in_boxes(
            [rles[index] for index in kept],
            source_size,
            moved.tensor.numpy(),
            to_source,
            settings.mask_size,
        )
        proposals.proposal_masks = torch.from_numpy(masks)
    return proposals


def _moved_boxes(transforms: T.TransformList, boxes: np.ndarray) -> np.ndarray:
    return transforms.apply_box(boxes).astype(np.float32).reshape(-1, 4)


def _inverse_of(transforms: T.TransformList, size: Tuple[int, int]) -> np.ndarray:
    """Returns the affine map (2, 3) from transformed to untransformed coordinates x, y."""
    height, width = size
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    moved = np.asarray(transforms.apply_coords(corners.copy()), np.float64)
    origin, right, down, opposite = moved
    linear = np.stack([(right - origin) / width, (down - origin) / height], axis=1)
    if not np.allclose(opposite, right + down - origin, atol=1e-3 * (1 + np.abs(moved).max())):
        raise ValueError(
            "region proposals cannot follow the augmentations; allowed: affine ones, such as "
            "flips, crops, rotations and resizing"
        )
    inverse = np.linalg.inv(linear)
    return np.concatenate([inverse, -(inverse @ origin)[:, None]], axis=1)


def _masks_in_boxes(
    rles: List[Dict[str, Any]],
    source_size: Tuple[int, int],
    boxes: np.ndarray,
    to_source: np.ndarray,
    mask_size: int,
) -> np.ndarray:
    """Reads masks in boxes (N, 4) of the transformed image, as (N, M, M) uint8 in 0-255."""
    height, width = source_size
    per_cell = math.ceil(_SAMPLES / mask_size)
    samples = per_cell * mask_size
    at_once = max(1, _AT_ONCE // max(height * width, 16 * samples**2))
    place = (np.arange(samples, dtype=np.float32) + 0.5) / samples
    to_source = to_source.astype(np.float32)
    result = np.zeros((len(rles), mask_size, mask_size), np.uint8)
    for start in range(0, len(rles), at_once):
        part = slice(start, start + at_once)
        # Each mask is stored column by column.
        masks = mask_util.decode(rles[part]).transpose(2, 1, 0)  # (n, W, H)
        low, sides = boxes[part, None, :2], boxes[part, None, 2:] - boxes[part, None, :2]
        x, y = np.moveaxis(low + sides * place[:, None], 2, 0)  # (n, samples) each
        x, y = x[:, None, :], y[:, :, None]
        columns, rows = (
            np.floor(row[0] * x + row[1] * y + row[2]).astype(int) for row in to_source
        )
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        index = np.arange(len(masks))[:, None, None]
        values = masks[index, columns.clip(0, width - 1), rows.clip(0, height - 1)] & inside
        cells = values.reshape(-1, mask_size, per_cell, mask_size, per_cell).mean(axis=(2, 4))
        result[part] = (255 * cells).round().astype(np.uint8)
    return result
