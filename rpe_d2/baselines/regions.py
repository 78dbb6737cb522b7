"""What regions cover of the ground truth, for heads that predict masks inside of them."""

from typing import Callable, List, NamedTuple, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torchvision.ops import roi_align

from rpe_d2.modeling.embedding.labels import instance_masks

# Share of a cell that an object covers from which on the cell is part of the target mask (MNC's and FCIS's releases).
_TARGET_THRESHOLD = 0.4
# IoU with an object's box from which on a region is its.
_FOREGROUND_IOU = 0.5


def check_matching(cfg: CfgNode) -> None:
    """Refuses other matches of regions and objects than :func:`label_regions` makes.

    Raises:
        ValueError: the key at fault, its value and the one allowed.
    """
    heads = cfg.MODEL.ROI_HEADS
    for key, allowed in (("IOU_THRESHOLDS", [_FOREGROUND_IOU]), ("IOU_LABELS", [0, 1])):
        if list(heads[key]) != allowed:
            raise ValueError(
                f"MODEL.ROI_HEADS.{key} is {list(heads[key])}; allowed with {heads.NAME}: {allowed}"
            )


class RegionLabels(NamedTuple):
    """What R boxes of an image cover.

    Attributes:
        classes: (R,) int64 class, K: background.
        iou: (R,) with the object that is covered best.
        boxes: (R, 4) that object's box.
        owner: (R,) its row in ``masks``.
        masks: (n, H, W) bool of all objects.
    """

    classes: torch.Tensor
    iou: torch.Tensor
    boxes: torch.Tensor
    owner: torch.Tensor
    masks: torch.Tensor
    num_classes: int

    def of(self, index: torch.Tensor) -> "RegionLabels":
        parts = (self.classes[index], self.iou[index], self.boxes[index], self.owner[index])
        return RegionLabels(*parts, self.masks, self.num_classes)

    def masks_in(self, boxes: torch.Tensor, size: int) -> torch.Tensor:
        """(F, size, size) float32, 0 or 1: the objects of the foreground inside their boxes (R, 4)."""
        foreground = self.classes < self.num_classes
        if not bool(foreground.any()):
            return boxes.new_zeros(0, size, size)
        owner, boxes = self.owner[foreground], boxes[foreground]
        regions = torch.cat([owner[:, None].to(boxes), boxes], dim=1)
        inside = roi_align(self.masks[:, None].to(boxes), regions, size, 1.0, aligned=True)
        return (inside[:, 0] >= _TARGET_THRESHOLD).float()


@torch.no_grad()
def label_regions(boxes: torch.Tensor, truth: Instances, num_classes: int) -> RegionLabels:
    """Labels of boxes (R, 4); an object is covered from an IoU of 0.5 with its box on."""
    count = len(boxes)
    if len(truth) == 0:
        empty = torch.full((count,), num_classes, dtype=torch.int64, device=boxes.device)
        zeros = boxes.new_zeros(count)
        masks = torch.zeros(0, *truth.image_size, dtype=torch.bool, device=boxes.device)
        return RegionLabels(
            empty, zeros, boxes.detach(), torch.zeros_like(empty), masks, num_classes
        )
    iou, owner = pairwise_iou(truth.gt_boxes, Boxes(boxes.detach())).max(dim=0)
    classes = torch.where(iou >= _FOREGROUND_IOU, truth.gt_classes[owner], num_classes)
    return RegionLabels(
        classes, iou, truth.gt_boxes.tensor[owner], owner, instance_masks(truth), num_classes
    )


def sample_regions(
    boxes: List[torch.Tensor],
    targets: List[Instances],
    num_classes: int,
    append_truth: bool,
    choose: Callable[[RegionLabels], torch.Tensor],
) -> Tuple[List[torch.Tensor], List[RegionLabels]]:
    """Regions to train on; they keep the gradient of the boxes.

    Args:
        boxes: (R_i, 4) of each image.
        targets: the ground truth.
        num_classes: K.
        append_truth: the true boxes are among the candidates.
        choose: from the labels of all candidates of an image to the rows that are taken.

    Returns:
        Boxes and labels of each image.
    """
    sampled, labels, foreground = [], [], 0
    for candidates, truth in zip(boxes, targets):
        if append_truth:
            candidates = torch.cat([candidates, truth.gt_boxes.tensor.to(candidates)])
        label = label_regions(candidates, truth, num_classes)
        index = choose(label)
        sampled.append(candidates[index])
        labels.append(label.of(index))
        foreground += int((label.classes[index] < num_classes).sum())
    count = sum(map(len, sampled))
    storage = get_event_storage()
    storage.put_scalar("roi_head/num_fg_samples", foreground / len(boxes))
    storage.put_scalar("roi_head/num_bg_samples", (count - foreground) / len(boxes))
    return sampled, labels
