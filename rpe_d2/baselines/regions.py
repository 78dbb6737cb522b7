"""Base class of MNC's and FCIS's RoI heads: labels and samples of regions, and mask voting."""

from abc import ABC, abstractmethod
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import batched_nms, nonzero_tuple
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch.nn import functional as F
from torchvision.ops import roi_align

from rpe_d2.modeling.argument_checks import check_batch, check_range
from rpe_d2.modeling.embedding.labels import instance_masks
from rpe_d2.modeling.masks import masks_in_boxes, rescale_to_half

# A cell of a target mask is foreground if the object covers this fraction of it, as in the releases
# of MNC and FCIS.
_TARGET_THRESHOLD = 0.4
# A region is foreground if its IoU with the box of an object is at least this.
_FOREGROUND_IOU = 0.5


class RegionLabels(NamedTuple):
    """Ground truth of R regions of an image, each matched with the object of the highest IoU.

    Attributes:
        classes: (R,) int64 class of the matched object; ``num_classes`` for background, which is a
            region with an IoU below 0.5.
        iou: (R,) IoU of the region and the box of the matched object; 0 if there are no objects.
        boxes: (R, 4) box of the matched object.
        object_index: (R,) int64 index of the matched object in ``masks``.
        masks: (n, H, W) bool masks of all objects of the image.
        num_classes: number of foreground classes.
    """

    classes: torch.Tensor
    iou: torch.Tensor
    boxes: torch.Tensor
    object_index: torch.Tensor
    masks: torch.Tensor
    num_classes: int

    def select(self, index: torch.Tensor) -> "RegionLabels":
        """Selects the labels of some regions, given by their indices."""
        parts = (self.classes, self.iou, self.boxes, self.object_index)
        return RegionLabels(*(part[index] for part in parts), self.masks, self.num_classes)

    def crop_masks(self, boxes: torch.Tensor, size: int) -> torch.Tensor:
        """Crops the mask of the matched object to each foreground region.

        Args:
            boxes: (R, 4) the regions.
            size: side length of the crops.

        Returns:
            (F, size, size) float32 with values 0 and 1, for the F foreground regions.
        """
        foreground = self.classes < self.num_classes
        if not bool(foreground.any()):
            return boxes.new_zeros(0, size, size)
        index, boxes = self.object_index[foreground], boxes[foreground]
        rois = torch.cat([index[:, None].to(boxes), boxes], dim=1)
        coverage = roi_align(self.masks[:, None].to(boxes), rois, size, 1.0, aligned=True)
        return (coverage[:, 0] >= _TARGET_THRESHOLD).float()


@torch.no_grad()
def label_regions(boxes: torch.Tensor, targets: Instances, num_classes: int) -> RegionLabels:
    """Matches the regions (R, 4) of an image with its objects; foreground has an IoU of 0.5."""
    if len(targets) == 0:
        background = torch.full((len(boxes),), num_classes, device=boxes.device)
        masks = torch.zeros(0, *targets.image_size, dtype=torch.bool, device=boxes.device)
        iou, index = boxes.new_zeros(len(boxes)), torch.zeros_like(background)
        return RegionLabels(background, iou, boxes.detach(), index, masks, num_classes)
    iou, index = pairwise_iou(targets.gt_boxes, Boxes(boxes.detach())).max(dim=0)
    classes = torch.where(iou >= _FOREGROUND_IOU, targets.gt_classes[index], num_classes)
    masks = instance_masks(targets)
    return RegionLabels(classes, iou, targets.gt_boxes.tensor[index], index, masks, num_classes)


class RegionTargets(NamedTuple):
    """Targets of the losses of R regions of a batch, F of which are foreground.

    Attributes:
        classes: (R,) int64 classes, ``num_classes`` for background.
        foreground: (R,) bool.
        masks: (F, m, m) float32 with values 0 and 1.
        deltas: (F, 4) from the regions to the boxes of their objects.
    """

    classes: torch.Tensor
    foreground: torch.Tensor
    masks: torch.Tensor
    deltas: torch.Tensor


class RegionROIHeads(ROIHeads, ABC):
    """Base class of RoI heads that predict classes, a box and a mask from the same region.

    Subclasses predict from lists of boxes, one tensor (R_i, 4) per image. At inference the regions
    of an image pass non-maximum suppression for each class, and the masks of similar boxes vote.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        mask_size: int,
        mask_loss_weight: float,
        batch_size_per_image: int = 512,
        positive_fraction: float = 0.25,
        proposal_append_gt: bool = True,
        bbox_reg_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
        vote_iou: float = 0.5,
        mask_threshold: float = 0.4,
    ):
        """
        Args:
            num_classes: K, the number of foreground classes.
            mask_size: side length of the predicted masks.
            mask_loss_weight: weight of the mask loss.
            batch_size_per_image, positive_fraction, proposal_append_gt: see ``ROIHeads``.
            bbox_reg_weights: see ``Box2BoxTransform``.
            score_threshold, nms_threshold, detections_per_image: see ``FastRCNNOutputLayers``.
            vote_iou: boxes with at least this IoU vote for each other's mask.
            mask_threshold: probability at or above which a pixel belongs to a voted mask.
        """
        check_range("num_classes", num_classes, 1)
        check_range("mask_loss_weight", mask_loss_weight, 0)
        check_range("vote_iou", vote_iou, 0, 1)
        check_range("batch_size_per_image", batch_size_per_image, 1)
        check_range("positive_fraction", positive_fraction, 0, 1)
        check_range("score_threshold", score_threshold, 0, 1)
        check_range("nms_threshold", nms_threshold, 0, 1)
        check_range("detections_per_image", detections_per_image, 1)
        if not 0 < mask_threshold < 1:
            raise ValueError(f"mask_threshold is {mask_threshold}; allowed: between 0 and 1")
        super().__init__(
            num_classes=num_classes,
            batch_size_per_image=batch_size_per_image,
            positive_fraction=positive_fraction,
            proposal_matcher=Matcher([_FOREGROUND_IOU], [0, 1]),
            proposal_append_gt=proposal_append_gt,
        )
        self.mask_size = mask_size
        self.mask_loss_weight = mask_loss_weight
        self.box2box_transform = Box2BoxTransform(tuple(bbox_reg_weights))
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image
        self.vote_iou = vote_iou
        self.mask_threshold = mask_threshold

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        heads = cfg.MODEL.ROI_HEADS
        for key, allowed in (("IOU_THRESHOLDS", [_FOREGROUND_IOU]), ("IOU_LABELS", [0, 1])):
            if list(heads[key]) != allowed:
                raise ValueError(
                    f"MODEL.ROI_HEADS.{key} is {list(heads[key])}; "
                    f"allowed with {cls.__name__}: {allowed}"
                )
        return {
            "num_classes": heads.NUM_CLASSES,
            "batch_size_per_image": heads.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": heads.POSITIVE_FRACTION,
            "proposal_append_gt": heads.PROPOSAL_APPEND_GT,
            "bbox_reg_weights": cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS,
            "score_threshold": heads.SCORE_THRESH_TEST,
            "nms_threshold": heads.NMS_THRESH_TEST,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @abstractmethod
    def region_maps(self, features: Dict[str, torch.Tensor]) -> Sequence[torch.Tensor]:
        """Computes the maps that regions are read from, given the backbone's feature maps."""

    @abstractmethod
    def region_losses(
        self,
        maps: Sequence[torch.Tensor],
        boxes: List[torch.Tensor],
        labels: List[RegionLabels],
        targets: List[Instances],
    ) -> Dict[str, torch.Tensor]:
        """Computes the losses of sampled regions.

        Args:
            maps: the result of :meth:`region_maps`.
            boxes: the regions of each image, with the gradient of the proposals.
            labels: the labels of the regions of each image.
            targets: the ground truth of each image.
        """

    @abstractmethod
    def region_predictions(
        self,
        maps: Sequence[torch.Tensor],
        boxes: List[torch.Tensor],
        image_sizes: List[Tuple[int, int]],
    ) -> Tuple[Sequence[torch.Tensor], Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        """Predicts from proposals the regions that take part in the mask voting.

        Returns:
            Boxes (R_i, 4), masks and class probabilities (R_i, K) of each image. Masks are
            (R_i, m, m), or (R_i, K, m, m) with one mask per class, with values in [0, 1].
        """

    @abstractmethod
    def region_masks(self, maps: Sequence[torch.Tensor], boxes: List[torch.Tensor]) -> torch.Tensor:
        """Predicts masks (R, m, m), or (R, K, m, m) with one mask per class, in [0, 1]."""

    def forward(
        self,
        images: ImageList,
        features: Dict[str, torch.Tensor],
        proposals: List[Instances],
        targets: Optional[List[Instances]] = None,
    ) -> Tuple[List[Instances], Dict[str, torch.Tensor]]:
        """
        Args:
            images: the batch; only the image sizes are used.
            features: feature maps of the backbone.
            proposals: proposals of each image with ``proposal_boxes``.
            targets: in training, ground truth with ``gt_boxes``, ``gt_classes`` and ``gt_masks``.

        Returns:
            In training the proposals and a dict of losses. Otherwise the detections of each image
            and an empty dict.
        """
        check_batch(type(self).__name__, len(next(iter(features.values()))), len(proposals))
        maps = self.region_maps(features)
        boxes = [part.proposal_boxes.tensor for part in proposals]
        if self.training:
            boxes, labels = self._sample_regions(boxes, targets)
            return proposals, self.region_losses(maps, boxes, labels, targets)
        predictions = zip(*self.region_predictions(maps, boxes, images.image_sizes))
        sizes = images.image_sizes
        return [self._detections(*parts, size) for parts, size in zip(predictions, sizes)], {}

    def forward_with_given_boxes(
        self, features: Dict[str, torch.Tensor], instances: List[Instances]
    ) -> List[Instances]:
        """Adds ``pred_masks`` to instances with ``pred_boxes`` and ``pred_classes``."""
        boxes = [part.pred_boxes.tensor for part in instances]
        masks = self.region_masks(self.region_maps(features), boxes)
        for part, own in zip(instances, masks.split([len(b) for b in boxes])):
            if own.dim() == 4:
                own = select_class(own, part.pred_classes)
            part.pred_masks = rescale_to_half(own, self.mask_threshold)
        return instances

    # ---- Training

    def _sample_regions(
        self, boxes: List[torch.Tensor], targets: List[Instances]
    ) -> Tuple[List[torch.Tensor], List[RegionLabels]]:
        """Samples regions to train on, which keep the gradient of their boxes, and labels them."""
        sampled, labels = [], []
        for candidates, truth in zip(boxes, targets):
            if self.proposal_append_gt:
                candidates = torch.cat([candidates, truth.gt_boxes.tensor.to(candidates)])
            label = label_regions(candidates, truth, self.num_classes)
            index = self.sample_index(label)
            sampled.append(candidates[index])
            labels.append(label.select(index))
        foreground = sum(int((label.classes < self.num_classes).sum()) for label in labels)
        background = sum(map(len, sampled)) - foreground
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", foreground / len(boxes))
        storage.put_scalar("roi_head/num_bg_samples", background / len(boxes))
        return sampled, labels

    def sample_index(self, label: RegionLabels) -> torch.Tensor:
        """Samples indices of regions of an image, given the labels of all of them."""
        return torch.cat(
            subsample_labels(
                label.classes, self.batch_size_per_image, self.positive_fraction, self.num_classes
            )
        )

    def region_targets(
        self, boxes: List[torch.Tensor], labels: List[RegionLabels]
    ) -> RegionTargets:
        """Computes the targets of the losses; they have no gradient."""
        boxes = [part.detach() for part in boxes]
        classes = torch.cat([label.classes for label in labels])
        foreground = classes < self.num_classes
        masks = [label.crop_masks(part, self.mask_size) for label, part in zip(labels, boxes)]
        gt_boxes = torch.cat([label.boxes for label in labels])[foreground]
        deltas = self.box2box_transform.get_deltas(torch.cat(boxes)[foreground], gt_boxes)
        return RegionTargets(classes, foreground, torch.cat(masks), deltas)

    # ---- Inference

    def _detections(
        self, boxes: torch.Tensor, masks: torch.Tensor, scores: torch.Tensor, size: Tuple[int, int]
    ) -> Instances:
        """Suppresses duplicates among the regions of an image and lets the masks vote.

        Args:
            boxes, masks, scores: see :meth:`region_predictions`.
            size: (H, W) of the image.

        Returns:
            Instances with ``pred_masks`` (D, 1, m, m), which Detectron2 pastes into the image.
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
            pred_masks=rescale_to_half(voted, self.mask_threshold),
        )


def vote_masks(
    boxes: torch.Tensor,
    masks: torch.Tensor,
    scores: torch.Tensor,
    selected: torch.Tensor,
    classes: torch.Tensor,
    iou: float,
) -> torch.Tensor:
    """Averages the masks of regions whose boxes overlap, weighted by their scores for the class.

    This is the mask voting of MNC (Dai et al., CVPR 2016, section 4).

    Args:
        boxes: (R, 4) boxes of all regions.
        masks: (R, m, m), or (R, K, m, m) with one mask per class, in [0, 1], relative to the boxes.
        scores: (R, K) scores of each class.
        selected: (D,) int64 indices of the regions that get a voted mask.
        classes: (D,) int64 their classes.
        iou: a region votes if the IoU of the boxes is at least this. Each selected region votes
            for itself.

    Returns:
        (D, m, m) in [0, 1], relative to the selected boxes.
    """
    size = masks.shape[-1]
    votes = pairwise_iou(Boxes(boxes[selected]), Boxes(boxes)) >= iou  # (D, R)
    votes[torch.arange(len(selected), device=selected.device), selected] = True
    target, voter = votes.nonzero(as_tuple=True)
    weight = scores[voter, classes[target]]
    row = voter if masks.dim() == 3 else voter * masks.shape[1] + classes[target]
    aligned = masks_in_boxes(masks.flatten(0, -3), boxes[voter], row, boxes[selected][target])
    total = masks.new_zeros(len(selected), size, size)
    total.index_add_(0, target, aligned * weight[:, None, None])
    weights = masks.new_zeros(len(selected)).index_add_(0, target, weight)
    return total / weights.clamp(min=1e-12)[:, None, None]


def to_rois(boxes: List[torch.Tensor]) -> torch.Tensor:
    """Joins the boxes (R_i, 4) of the images of a batch to (R, 5), with the image index first."""
    return convert_boxes_to_pooler_format([Boxes(part) for part in boxes])


def select_class(values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Selects the values (R, ...) of one class for each region from (R, K, ...)."""
    return values[torch.arange(len(values), device=values.device), classes]


def class_loss(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Computes the mean cross-entropy of regions; 0 with a gradient if there are none."""
    return F.cross_entropy(logits, classes, reduction="sum") / max(len(classes), 1)


def box_loss(deltas: torch.Tensor, targets: RegionTargets) -> torch.Tensor:
    """Computes the smooth L1 loss of foreground deltas (F, 4), divided by the number of regions."""
    loss = F.smooth_l1_loss(deltas, targets.deltas, reduction="sum")
    return loss / max(len(targets.classes), 1)
