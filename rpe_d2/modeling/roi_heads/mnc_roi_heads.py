"""Multi-task network cascades (Dai et al., CVPR 2016): masks from boxes, classes from masks, differentiable boxes."""

from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, batched_nms, nonzero_tuple
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import assign_boxes_to_levels, convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from fvcore.nn.weight_init import c2_xavier_fill
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from rpe_d2.ops.roi_warp import roi_warp

from ..pixel_labels import instance_masks
from ..proposal_generator.mnc_rpn import bounded_gradient
from .mask_voting import vote_masks

# Of a target mask inside its box, and what a predicted mask must cover of it to be labelled with its class.
_TARGET_THRESHOLD = 0.4
_MASK_IOU = 0.5


class MNCPrediction(NamedTuple):
    """Of R regions.

    Attributes:
        mask_logits: (R, m, m) inside the box.
        class_logits: (R, K + 1) of the box, background last.
        seg_class_logits: (R, K + 1) of the box together with its mask.
        deltas: (R, 4 K) of the box, for each class.
    """

    mask_logits: torch.Tensor
    class_logits: torch.Tensor
    seg_class_logits: torch.Tensor
    deltas: torch.Tensor


class MNCStages(nn.Module):
    """A mask for each region, then a class for each mask (sections 3.2 and 3.3)."""

    def __init__(
        self,
        channels: int,
        *,
        resolution: int,
        mask_size: int,
        mask_dim: int,
        fc_dim: int,
        num_classes: int,
    ):
        """
        Args:
            channels: of a region's features.
            resolution: their side, even.
            mask_size: m.
            mask_dim: hidden units of the mask.
            fc_dim: hidden units of each of the two layers, for the box and for the masked features.
            num_classes: K, without background.
        """
        super().__init__()
        self.mask_size = mask_size
        self.mask = nn.Sequential(
            nn.Linear(channels * resolution**2, mask_dim),
            nn.ReLU(),
            nn.Linear(mask_dim, mask_size**2),
        )
        pooled = channels * (resolution // 2) ** 2
        self.box_layers = _two_layers(pooled, fc_dim)
        self.mask_layers = _two_layers(pooled, fc_dim)
        self.cls_score = nn.Linear(2 * fc_dim, num_classes + 1)
        self.seg_cls_score = nn.Linear(2 * fc_dim, num_classes + 1)
        self.bbox_pred = nn.Linear(2 * fc_dim, 4 * num_classes)
        c2_xavier_fill(self.mask[0])
        for layer, deviation in (
            (self.mask[2], 0.01),
            (self.cls_score, 0.01),
            (self.seg_cls_score, 0.01),
            (self.bbox_pred, 0.001),
        ):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> MNCPrediction:
        """
        Args:
            x: (R, C, resolution, resolution).
        """
        mask_logits = self.mask(x.flatten(1)).unflatten(1, (self.mask_size,) * 2)
        mask = mask_logits.sigmoid().unsqueeze(1)
        if len(x):  # torch interpolates no empty batches
            mask = F.interpolate(mask, x.shape[-2:], mode="bilinear", align_corners=False)
            masked = x * mask
        else:
            masked = x
        joint = torch.cat(
            [
                self.box_layers(F.max_pool2d(x, 2).flatten(1)),
                self.mask_layers(F.max_pool2d(masked, 2).flatten(1)),
            ],
            dim=1,
        )
        return MNCPrediction(
            mask_logits, self.cls_score(joint), self.seg_cls_score(joint), self.bbox_pred(joint)
        )


@ROI_HEADS_REGISTRY.register()
class MNCROIHeads(ROIHeads):
    """The cascade on any backbone, plain or FPN, after an RPN; with MNCRPN its losses reach the proposals, too.

    Three stages: boxes, masks, classes. Five: the boxes that the third regresses go through the same two once more,
    with shared weights (section 3.4), at inference together with those of the first round. Masks of similar boxes vote.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: List[str],
        strides: List[int],
        stages: MNCStages,
        resolution: int,
        num_stages: int,
        box2box_transform: Box2BoxTransform,
        mask_loss_weight: float,
        easy_background: float,
        score_threshold: float,
        nms_threshold: float,
        detections_per_image: int,
        vote_iou: float,
        mask_threshold: float,
        **kwargs,
    ):
        """
        Args:
            in_features, strides: maps that regions are warped from; of several each region takes that of its size.
            stages: from a region's features to masks, classes and boxes.
            resolution: of these features.
            num_stages: 3 or 5.
            box2box_transform: of the boxes' deltas.
            mask_loss_weight: factor of the masks' loss.
            easy_background: share of the background regions sampled with an IoU below 0.1 with all objects.
            score_threshold, nms_threshold, detections_per_image: of the instances found.
            vote_iou: boxes of this IoU vote for each other's mask.
            mask_threshold: where voted masks are cut.
            kwargs: of ROIHeads.
        """
        super().__init__(**kwargs)
        self.in_features = in_features
        self.strides = strides
        self.stages = stages
        self.resolution = resolution
        self.num_rounds = (num_stages - 1) // 2
        self.box2box_transform = box2box_transform
        self.mask_loss_weight = mask_loss_weight
        self.easy_background = easy_background
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image
        self.vote_iou = vote_iou
        self.mask_threshold = mask_threshold

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        mnc, heads = cfg.MODEL.MNC, cfg.MODEL.ROI_HEADS
        if mnc.NUM_STAGES not in (3, 5):
            raise ValueError(f"MODEL.MNC.NUM_STAGES is {mnc.NUM_STAGES}; allowed: 3 or 5")
        if mnc.RESOLUTION < 2 or mnc.RESOLUTION % 2:
            raise ValueError(f"MODEL.MNC.RESOLUTION is {mnc.RESOLUTION}; allowed: even numbers")
        if not 0 <= mnc.EASY_BACKGROUND <= 1:
            raise ValueError(f"MODEL.MNC.EASY_BACKGROUND is {mnc.EASY_BACKGROUND}; allowed: 0 to 1")
        if not 0 < mnc.MASK_THRESHOLD < 1:
            raise ValueError(
                f"MODEL.MNC.MASK_THRESHOLD is {mnc.MASK_THRESHOLD}; allowed: between 0 and 1"
            )
        shapes = [input_shape[name] for name in heads.IN_FEATURES]
        arguments = super().from_config(cfg)
        arguments.update(
            in_features=list(heads.IN_FEATURES),
            strides=[shape.stride for shape in shapes],
            stages=MNCStages(
                shapes[0].channels,
                resolution=mnc.RESOLUTION,
                mask_size=mnc.MASK_SIZE,
                mask_dim=mnc.MASK_DIM,
                fc_dim=mnc.FC_DIM,
                num_classes=heads.NUM_CLASSES,
            ),
            resolution=mnc.RESOLUTION,
            num_stages=mnc.NUM_STAGES,
            box2box_transform=Box2BoxTransform(cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS),
            mask_loss_weight=mnc.MASK_LOSS_WEIGHT,
            easy_background=mnc.EASY_BACKGROUND,
            score_threshold=heads.SCORE_THRESH_TEST,
            nms_threshold=heads.NMS_THRESH_TEST,
            detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
            vote_iou=mnc.VOTE_IOU,
            mask_threshold=mnc.MASK_THRESHOLD,
        )
        return arguments

    def forward(
        self,
        images: ImageList,
        features: Dict[str, torch.Tensor],
        proposals: List[Instances],
        targets: Optional[List[Instances]] = None,
    ) -> Tuple[List[Instances], Dict[str, torch.Tensor]]:
        """
        Args:
            images: of the batch, for their sizes.
            features: the backbone's maps.
            proposals: with ``proposal_boxes``.
            targets: in training, with ``gt_boxes``, ``gt_classes`` and ``gt_masks``.

        Returns:
            In training the proposals and the losses; else what was found and {}.
        """
        maps = [features[name] for name in self.in_features]
        boxes = [found.proposal_boxes.tensor for found in proposals]
        if not self.training:
            return self._inference(maps, boxes, images.image_sizes), {}
        boxes, labels = self._sample(boxes, targets)
        losses: Dict[str, torch.Tensor] = {}
        for number in range(self.num_rounds):
            if number:
                boxes = self._regressed(prediction, boxes, images.image_sizes, labels)
                labels = [_label(*pair, self.num_classes) for pair in zip(boxes, targets)]
            prediction = self.stages(self._warp(maps, boxes))
            suffix = f"_stage{2 * number + 3}" if number else ""
            for name, loss in self._losses(prediction, boxes, labels).items():
                losses[name + suffix] = loss
        return proposals, losses

    def forward_with_given_boxes(
        self, features: Dict[str, torch.Tensor], instances: List[Instances]
    ) -> List[Instances]:
        """The same instances (``pred_boxes``, ``pred_classes``) with ``pred_masks``."""
        maps = [features[name] for name in self.in_features]
        boxes = [found.pred_boxes.tensor for found in instances]
        masks = self.stages(self._warp(maps, boxes)).mask_logits.sigmoid()
        for found, part in zip(instances, masks.split([len(b) for b in boxes])):
            found.pred_masks = self._for_pasting(part)
        return instances

    # ---- Regions

    def _warp(self, maps: List[torch.Tensor], boxes: List[torch.Tensor]) -> torch.Tensor:
        """(R, C, resolution, resolution): warped twice as fine, then the larger values (section 3.2)."""
        regions = convert_boxes_to_pooler_format([Boxes(b) for b in boxes])
        side = 2 * self.resolution
        if len(maps) == 1:
            warped = roi_warp(maps[0], regions, side, 1 / self.strides[0])
            return F.max_pool2d(warped, 2)
        lowest, highest = (
            int(stride).bit_length() - 1 for stride in (self.strides[0], self.strides[-1])
        )
        detached = [Boxes(b.detach()) for b in boxes]
        levels = assign_boxes_to_levels(detached, lowest, highest, 224, 4)
        warped = maps[0].new_zeros(len(regions), maps[0].shape[1], side, side)
        for level, (values, stride) in enumerate(zip(maps, self.strides)):
            index = nonzero_tuple(levels == level)[0]
            warped = warped.index_copy(0, index, roi_warp(values, regions[index], side, 1 / stride))
        return F.max_pool2d(warped, 2)

    def _sample(
        self, boxes: List[torch.Tensor], targets: List[Instances]
    ) -> Tuple[List[torch.Tensor], List["_Labels"]]:
        """Regions to train on; they keep the gradient of the proposals."""
        sampled, labels, foreground = [], [], 0
        for candidates, truth in zip(boxes, targets):
            if self.proposal_append_gt:
                candidates = torch.cat([candidates, truth.gt_boxes.tensor.to(candidates)])
            label = _label(candidates, truth, self.num_classes)
            index = self._choose(label)
            sampled.append(candidates[index])
            labels.append(label.of(index))
            foreground += int((label.classes[index] < self.num_classes).sum())
        count = sum(map(len, sampled))
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", foreground / len(boxes))
        storage.put_scalar("roi_head/num_bg_samples", (count - foreground) / len(boxes))
        return sampled, labels

    def _choose(self, label: "_Labels") -> torch.Tensor:
        """Rows of foreground, of background near objects and of background far from all of them."""
        easy = (label.iou < 0.1) & (label.classes == self.num_classes)
        foreground, background = subsample_labels(
            label.classes, self.batch_size_per_image, self.positive_fraction, self.num_classes
        )
        wanted = min(len(background), self.batch_size_per_image - len(foreground))
        num_easy = min(round(self.easy_background * wanted), int(easy.sum()))
        hard = nonzero_tuple((label.classes == self.num_classes) & ~easy)[0]
        hard = hard[torch.randperm(len(hard), device=hard.device)[: wanted - num_easy]]
        easy = nonzero_tuple(easy)[0]
        easy = easy[torch.randperm(len(easy), device=easy.device)[: wanted - len(hard)]]
        return torch.cat([foreground, hard, easy])

    def _regressed(
        self,
        prediction: MNCPrediction,
        boxes: List[torch.Tensor],
        sizes: List[Tuple[int, int]],
        labels: Optional[List["_Labels"]] = None,
    ) -> List[torch.Tensor]:
        """Boxes for the next round: moved as their class says, the true one where there is one; with gradient."""
        classes = prediction.class_logits[:, :-1].argmax(dim=1)
        if labels is not None:
            true = torch.cat([label.classes for label in labels])
            classes = torch.where(true < self.num_classes, true, classes)
        deltas = prediction.deltas.unflatten(1, (self.num_classes, 4))
        deltas = bounded_gradient(
            deltas[torch.arange(len(classes), device=classes.device), classes]
        )
        moved = self.box2box_transform.apply_deltas(deltas, torch.cat(boxes))
        return [
            _clipped(part, size) for part, size in zip(moved.split([len(b) for b in boxes]), sizes)
        ]

    # ---- Losses

    def _losses(
        self, prediction: MNCPrediction, boxes: List[torch.Tensor], labels: List["_Labels"]
    ) -> Dict[str, torch.Tensor]:
        classes = torch.cat([label.classes for label in labels])
        foreground = classes < self.num_classes
        wanted = torch.cat(
            [label.masks_in(b.detach(), self.stages.mask_size) for label, b in zip(labels, boxes)]
        )  # (F, m, m) of the foreground
        mask_logits = prediction.mask_logits[foreground]
        seg_classes = classes.clone()
        covered = _mask_iou(mask_logits.detach() > 0, wanted > 0) >= _MASK_IOU
        seg_classes[foreground] = torch.where(covered, classes[foreground], self.num_classes)
        count = max(len(classes), 1)
        proposal_boxes = torch.cat(boxes).detach()[foreground]
        true_boxes = torch.cat([label.boxes for label in labels])[foreground]
        deltas = prediction.deltas.unflatten(1, (self.num_classes, 4))[foreground]
        deltas = deltas[torch.arange(len(deltas), device=deltas.device), classes[foreground]]
        wanted_deltas = self.box2box_transform.get_deltas(proposal_boxes, true_boxes)
        mask_loss = F.binary_cross_entropy_with_logits(mask_logits, wanted, reduction="sum")
        return {
            "loss_mask": self.mask_loss_weight * mask_loss / max(wanted.numel(), 1),
            "loss_cls": F.cross_entropy(prediction.class_logits, classes, reduction="sum") / count,
            "loss_seg_cls": F.cross_entropy(
                prediction.seg_class_logits, seg_classes, reduction="sum"
            )
            / count,
            "loss_box_reg": F.smooth_l1_loss(deltas, wanted_deltas, reduction="sum") / count,
        }

    # ---- Inference

    def _inference(
        self,
        maps: List[torch.Tensor],
        boxes: List[torch.Tensor],
        sizes: List[Tuple[int, int]],
    ) -> List[Instances]:
        rounds = []
        for number in range(self.num_rounds):
            if number:
                boxes = self._regressed(prediction, boxes, sizes)
            prediction = self.stages(self._warp(maps, boxes))
            counts = [len(b) for b in boxes]
            masks = prediction.mask_logits.sigmoid().split(counts)
            scores = prediction.seg_class_logits.softmax(dim=1)[:, :-1].split(counts)
            rounds.append(list(zip(boxes, masks, scores)))
        found = []
        for size, parts in zip(sizes, zip(*rounds)):
            found.append(self._instances(*(torch.cat(values) for values in zip(*parts)), size))
        return found

    def _instances(
        self, boxes: torch.Tensor, masks: torch.Tensor, scores: torch.Tensor, size: Tuple[int, int]
    ) -> Instances:
        row, classes = nonzero_tuple(scores > self.score_threshold)
        kept = batched_nms(boxes[row], scores[row, classes], classes, self.nms_threshold)
        row, classes = (
            row[kept][: self.detections_per_image],
            classes[kept][: self.detections_per_image],
        )
        voted = vote_masks(boxes, masks, scores, row, classes, self.vote_iou)
        return Instances(
            size,
            pred_boxes=Boxes(boxes[row]),
            scores=scores[row, classes],
            pred_classes=classes,
            pred_masks=self._for_pasting(voted),
        )

    def _for_pasting(self, masks: torch.Tensor) -> torch.Tensor:
        """(R, 1, m, m) that are 0.5 where the masks (R, m, m) are at their threshold: there Detectron2 cuts them."""
        low = masks * (0.5 / self.mask_threshold)
        high = 1 - (1 - masks) * (0.5 / (1 - self.mask_threshold))
        return torch.where(masks < self.mask_threshold, low, high).unsqueeze(1)


class _Labels(NamedTuple):
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

    def of(self, index: torch.Tensor) -> "_Labels":
        parts = (self.classes[index], self.iou[index], self.boxes[index], self.owner[index])
        return _Labels(*parts, self.masks, self.num_classes)

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
def _label(boxes: torch.Tensor, truth: Instances, num_classes: int) -> _Labels:
    """An object is covered from an IoU of 0.5 on."""
    count = len(boxes)
    if len(truth) == 0:
        empty = torch.full((count,), num_classes, dtype=torch.int64, device=boxes.device)
        zeros = boxes.new_zeros(count)
        masks = torch.zeros(0, *truth.image_size, dtype=torch.bool, device=boxes.device)
        return _Labels(empty, zeros, boxes.detach(), torch.zeros_like(empty), masks, num_classes)
    iou, owner = pairwise_iou(truth.gt_boxes, Boxes(boxes.detach())).max(dim=0)
    classes = torch.where(iou >= 0.5, truth.gt_classes[owner], num_classes)
    return _Labels(
        classes, iou, truth.gt_boxes.tensor[owner], owner, instance_masks(truth), num_classes
    )


def _mask_iou(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(R,) of masks (R, m, m) bool in pairs."""
    common = (one & other).flatten(1).sum(dim=1)
    return common / (one | other).flatten(1).sum(dim=1).clamp(min=1)


def _clipped(boxes: torch.Tensor, size: Tuple[int, int]) -> torch.Tensor:
    """Boxes inside an image, at least a pixel wide and high; sides at the border have no gradient."""
    height, width = size
    x0, y0, x1, y1 = boxes.unbind(1)
    x0, y0 = x0.clamp(0, width - 1), y0.clamp(0, height - 1)
    x1 = torch.maximum(x1.clamp(0, width), x0 + 1)
    y1 = torch.maximum(y1.clamp(0, height), y0 + 1)
    return torch.stack([x0, y0, x1, y1], dim=1)


def _two_layers(channels: int, dim: int) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(channels, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
    c2_xavier_fill(layers[0])
    c2_xavier_fill(layers[2])
    return layers
