"""Multi-task network cascades (Dai et al., CVPR 2016): masks from boxes, classes from masks, differentiable boxes."""

from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, nonzero_tuple
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import assign_boxes_to_levels, convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, ImageList, Instances
from fvcore.nn.weight_init import c2_xavier_fill
from torch import nn
from torch.nn import functional as F

from rpe_d2.config import check_config
from rpe_d2.modeling.soft_masks import cut_at_half
from rpe_d2.ops.roi_warp import roi_warp

from .mask_voting import MaskVoting
from .mnc_rpn import bounded_gradient, check_precision
from .regions import RegionLabels, check_matching, label_regions, sample_regions

# What a predicted mask must cover of the true one to be labelled with its class.
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
        voting: MaskVoting,
        accumulate_steps: int = 1,
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
            voting: from all regions of an image to its instances.
            accumulate_steps: batches whose gradients are averaged for one step.
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
        self.voting = voting
        self.accumulate_steps = accumulate_steps

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        mnc, heads = cfg.MODEL.MNC, cfg.MODEL.ROI_HEADS
        check_config(cfg, "MODEL.MNC")
        check_matching(cfg)
        if mnc.NUM_STAGES not in (3, 5):
            raise ValueError(f"MODEL.MNC.NUM_STAGES is {mnc.NUM_STAGES}; allowed: 3 or 5")
        if mnc.RESOLUTION < 2 or mnc.RESOLUTION % 2:
            raise ValueError(f"MODEL.MNC.RESOLUTION is {mnc.RESOLUTION}; allowed: even numbers")
        if cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG is True; allowed with MNCROIHeads: False"
            )
        if mnc.NUM_STAGES == 5:  # its second round's boxes have gradient
            check_precision("MODEL.MNC.NUM_STAGES 5", cfg)
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
            voting=MaskVoting.from_config(cfg, "MODEL.MNC", mnc),
            accumulate_steps=cfg.SOLVER.ACCUMULATE_STEPS,
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
        boxes, labels = sample_regions(
            boxes, targets, self.num_classes, self.proposal_append_gt, self._choose
        )
        losses: Dict[str, torch.Tensor] = {}
        prediction = None
        for number in range(self.num_rounds):
            if number:
                boxes = self._regressed(prediction, boxes, images.image_sizes, labels)
                labels = [label_regions(*pair, self.num_classes) for pair in zip(boxes, targets)]
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
            found.pred_masks = cut_at_half(part, self.voting.mask_threshold)
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

    def _choose(self, label: RegionLabels) -> torch.Tensor:
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
        labels: Optional[List[RegionLabels]] = None,
    ) -> List[torch.Tensor]:
        """Boxes for the next round: moved as their class says, the true one where there is one; with gradient."""
        classes = prediction.class_logits[:, :-1].argmax(dim=1)
        if labels is not None:
            true = torch.cat([label.classes for label in labels])
            classes = torch.where(true < self.num_classes, true, classes)
        deltas = prediction.deltas.unflatten(1, (self.num_classes, 4))
        deltas = bounded_gradient(
            deltas[torch.arange(len(classes), device=classes.device), classes],
            len(boxes) * self.accumulate_steps,
        )
        moved = self.box2box_transform.apply_deltas(deltas, torch.cat(boxes))
        return [
            _clipped(part, size) for part, size in zip(moved.split([len(b) for b in boxes]), sizes)
        ]

    # ---- Losses

    def _losses(
        self, prediction: MNCPrediction, boxes: List[torch.Tensor], labels: List[RegionLabels]
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
        rounds, prediction = [], None
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
            found.append(self.voting(*(torch.cat(values) for values in zip(*parts)), size))
        return found


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
