"""Squares whose overlaps are known, as ground truth and as predictions."""

import json
from typing import Any, Callable, Dict, Sequence, Tuple

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

Box = Tuple[int, int, int, int]  # x0, y0, x1, y1

SIZE = (240, 320)
SMALL, MEDIUM, LARGE = (10, 10, 30, 30), (50, 50, 110, 110), (100, 20, 300, 220)
NOWHERE = (200, 230, 210, 240)


def square_mask(box: Box) -> np.ndarray:
    """Returns (H, W) uint8, 1 inside a box."""
    mask = np.zeros(SIZE, dtype=np.uint8, order="F")
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 1
    return mask


def change_data(dataset: str, change: Callable[[Dict[str, Any]], None]) -> None:
    """Rewrites the file of a dataset after ``change(content)`` modified it in place."""
    path = MetadataCatalog.get(dataset).json_file
    with open(path) as file:
        content = json.load(file)
    change(content)
    with open(path, "w") as file:
        json.dump(content, file)


def predictions(
    boxes: Sequence[Box],
    scores: Sequence[float],
    kind: str = "instances",
    size: Tuple[int, int] = SIZE,
) -> Dict[str, Instances]:
    """Returns a model's output of squares.

    Args:
        boxes: the squares.
        scores: their scores.
        kind: "instances", or proposals with "masks" or with "boxes" alone.
        size: (H, W) of the image.
    """
    instances = Instances(size)
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor(scores, dtype=torch.float32)
    if kind == "instances":
        masks = [torch.from_numpy(square_mask(box)).bool() for box in boxes]
        instances.pred_boxes, instances.scores = Boxes(tensor), scores
        instances.pred_classes = torch.zeros(len(boxes), dtype=torch.long)
        instances.pred_masks = (
            torch.stack(masks) if masks else torch.zeros(0, *SIZE, dtype=torch.bool)
        )
        return {"instances": instances}
    instances.proposal_boxes, instances.objectness_logits = Boxes(tensor), scores
    if kind == "masks":
        instances.proposal_masks = torch.full((len(boxes), 112, 112), 255, dtype=torch.uint8)
    return {"proposals": instances}


def upper_part(box: Box, share: float) -> Box:
    """Returns the upper rows of a box, whose IoU with the box is ``share`` up to rounding."""
    x0, y0, x1, y1 = box
    return x0, y0, x1, y0 + round(share * (y1 - y0))
