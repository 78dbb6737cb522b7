"""Masks of similar boxes vote for a common one (Dai et al., CVPR 2016, section 4)."""

from typing import NamedTuple, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import batched_nms, nonzero_tuple
from detectron2.structures import Boxes, Instances, pairwise_iou

from rpe_d2.modeling.masks import masks_in_boxes
from rpe_d2.modeling.soft_masks import cut_at_half


class MaskVoting(NamedTuple):
    """From all regions of an image to its instances: suppression by class, then a vote of similar boxes' masks.

    Attributes:
        score_threshold, nms_threshold, detections_per_image: as Detectron2's.
        vote_iou: boxes of this IoU vote for each other's mask.
        mask_threshold: where voted masks are cut.
    """

    score_threshold: float
    nms_threshold: float
    detections_per_image: int
    vote_iou: float
    mask_threshold: float

    @classmethod
    def from_config(cls, cfg: CfgNode, key: str, node: CfgNode) -> "MaskVoting":
        """From Detectron2's keys, and ``VOTE_IOU`` and ``MASK_THRESHOLD`` of a node named ``key``."""
        if not 0 < node.MASK_THRESHOLD < 1:
            raise ValueError(
                f"{key}.MASK_THRESHOLD is {node.MASK_THRESHOLD}; allowed: between 0 and 1"
            )
        return cls(
            cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            cfg.TEST.DETECTIONS_PER_IMAGE,
            node.VOTE_IOU,
            node.MASK_THRESHOLD,
        )

    def __call__(
        self, boxes: torch.Tensor, masks: torch.Tensor, scores: torch.Tensor, size: Tuple[int, int]
    ) -> Instances:
        """
        Args:
            boxes: (R, 4).
            masks: (R, m, m) in 0-1, inside the boxes; or (R, K, m, m), one for each class.
            scores: (R, K).
            size: of the image.

        Returns:
            Instances with ``pred_masks`` (D, 1, m, m) as Detectron2 pastes them.
        """
        row, classes = nonzero_tuple(scores > self.score_threshold)
        kept = batched_nms(boxes[row], scores[row, classes], classes, self.nms_threshold)
        kept = kept[: self.detections_per_image]
        row, classes = row[kept], classes[kept]
        voted = vote_masks(boxes, masks, scores, row, classes, self.vote_iou)
        return Instances(
            size,
            pred_boxes=Boxes(boxes[row]),
            scores=scores[row, classes],
            pred_classes=classes,
            pred_masks=cut_at_half(voted, self.mask_threshold),
        )


def vote_masks(
    boxes: torch.Tensor,
    masks: torch.Tensor,
    scores: torch.Tensor,
    chosen: torch.Tensor,
    classes: torch.Tensor,
    iou: float,
) -> torch.Tensor:
    """Averages masks over the regions whose boxes overlap, weighted by their scores for the class.

    Args:
        boxes: (R, 4) of all regions.
        masks: (R, m, m) in 0-1, inside the boxes; or (R, K, m, m), one for each class.
        scores: (R, K) of each class.
        chosen: (D,) rows of the regions that get a voted mask.
        classes: (D,) their classes.
        iou: boxes vote from this overlap on; a chosen one at least for itself.

    Returns:
        (D, m, m) in 0-1, inside the chosen boxes.
    """
    size = masks.shape[-1]
    votes = pairwise_iou(Boxes(boxes[chosen]), Boxes(boxes)) >= iou  # (D, R)
    votes[torch.arange(len(chosen), device=chosen.device), chosen] = True
    target, voter = votes.nonzero(as_tuple=True)
    weight = scores[voter, classes[target]]
    boxes_of_targets, frames = boxes[chosen][target], boxes[voter]
    row = voter if masks.dim() == 3 else voter * masks.shape[1] + classes[target]
    inside = masks_in_boxes(masks.flatten(0, -3), frames, row, boxes_of_targets)
    total = masks.new_zeros(len(chosen), size, size)
    total.index_add_(0, target, inside * weight[:, None, None])
    weights = masks.new_zeros(len(chosen)).index_add_(0, target, weight)
    return total / weights.clamp(min=1e-12)[:, None, None]
