"""Multi-task network cascades (MNC): boxes, masks from boxes and classes from masks."""

from typing import Dict, List, NamedTuple, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, nonzero_tuple
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, Instances
from fvcore.nn.weight_init import c2_xavier_fill
from torch import nn
from torch.nn import functional as F

from rpe_d2.config import check_config
from rpe_d2.modeling.argument_checks import check_choice, check_range
from rpe_d2.modeling.layers import chosen_features
from rpe_d2.ops.roi_warp import roi_warp

from .mnc_rpn import bounded_gradient, check_precision
from .regions import (
    RegionLabels,
    RegionROIHeads,
    box_loss,
    class_loss,
    label_regions,
    select_class,
    to_rois,
)

# A predicted mask is labeled with the class of its object if their IoU is at least this, otherwise
# as background.
_MASK_IOU = 0.5
# Background regions with a lower IoU than this with all objects are easy.
_EASY_IOU = 0.1


class MNCPrediction(NamedTuple):
    """Predictions for R regions.

    Attributes:
        mask_logits: (R, m, m) relative to the boxes.
        class_logits: (R, K + 1) of the boxes, background last.
        seg_class_logits: (R, K + 1) of the boxes together with their masks.
        deltas: (R, 4 K) of the boxes, for each class.
    """

    mask_logits: torch.Tensor
    class_logits: torch.Tensor
    seg_class_logits: torch.Tensor
    deltas: torch.Tensor


class MNCStages(nn.Module):
    """Predicts a mask for each region and a class for each mask (sections 3.2 and 3.3)."""

    def __init__(
        self,
        channels: int,
        *,
        num_classes: int,
        resolution: int = 14,
        mask_size: int = 28,
        mask_dim: int = 256,
        fc_dim: int = 4096,
    ):
        """
        Args:
            channels: channels of the features of a region.
            num_classes: K, the number of foreground classes.
            resolution: side length of the features, an even number.
            mask_size: m, the side length of the masks.
            mask_dim: hidden units of the mask branch.
            fc_dim: hidden units of each of the two layers for the box and for the masked features.
        """
        super().__init__()
        for name, value in (("mask_size", mask_size), ("mask_dim", mask_dim), ("fc_dim", fc_dim)):
            check_range(name, value, 1)
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
            x: (R, C, resolution, resolution) features of the regions.
        """
        mask_logits = self.mask(x.flatten(1)).unflatten(1, (self.mask_size,) * 2)
        mask = mask_logits.sigmoid().unsqueeze(1)
        if len(x):  # torch cannot interpolate empty batches
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
class MNCROIHeads(RegionROIHeads):
    """The cascade of Dai et al. (CVPR 2016) after an RPN, on a plain backbone or an FPN.

    With three stages the heads predict boxes, masks and classes. With five stages the regressed
    boxes pass the last two stages once more with shared weights (section 3.4); at inference the
    regions of both rounds vote. After :class:`MNCRPN` the losses also reach the proposals.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        num_classes: int,
        in_features: Sequence[str] = ("res4",),
        num_stages: int = 5,
        resolution: int = 14,
        mask_size: int = 28,
        mask_dim: int = 256,
        fc_dim: int = 4096,
        mask_loss_weight: float = 1.0,
        easy_background: float = 0.15,
        accumulate_steps: int = 1,
        **kwargs,
    ):
        """
        Args:
            input_shape: channels and stride of the backbone's feature maps.
            num_classes: number of foreground classes.
            in_features: feature maps that regions are warped from. Of several, a region uses the
                one that fits its size, as in an FPN.
            num_stages: 3 or 5.
            resolution, mask_size, mask_dim, fc_dim: see :class:`MNCStages`.
            mask_loss_weight: weight of the mask loss.
            easy_background: fraction of the sampled background regions whose IoU with all objects
                is below 0.1.
            accumulate_steps: number of batches whose gradients are averaged for one step.
            kwargs: see :class:`rpe_d2.baselines.regions.RegionROIHeads`.
        """
        check_choice("num_stages", num_stages, (3, 5))
        _check_resolution("resolution", resolution)
        check_range("easy_background", easy_background, 0, 1)
        check_range("accumulate_steps", accumulate_steps, 1)
        super().__init__(
            num_classes=num_classes,
            mask_size=mask_size,
            mask_loss_weight=mask_loss_weight,
            **kwargs,
        )
        self.in_features = chosen_features("in_features", in_features, input_shape)
        self.strides = [input_shape[name].stride for name in self.in_features]
        self.stages = MNCStages(
            input_shape[self.in_features[0]].channels,
            num_classes=num_classes,
            resolution=resolution,
            mask_size=mask_size,
            mask_dim=mask_dim,
            fc_dim=fc_dim,
        )
        self.resolution = resolution
        self.num_rounds = (num_stages - 1) // 2
        self.easy_background = easy_background
        self.accumulate_steps = accumulate_steps

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        mnc = cfg.MODEL.MNC
        check_config(cfg, "MODEL.MNC")
        _check_resolution("MODEL.MNC.RESOLUTION", mnc.RESOLUTION)
        if cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG is True; allowed with MNCROIHeads: False"
            )
        if mnc.NUM_STAGES == 5:  # the boxes of its second round have a gradient
            check_precision("MODEL.MNC.NUM_STAGES 5", cfg)
        names = cfg.MODEL.ROI_HEADS.IN_FEATURES
        return {
            **super().from_config(cfg),
            "input_shape": input_shape,
            "in_features": chosen_features("MODEL.ROI_HEADS.IN_FEATURES", names, input_shape),
            "num_stages": mnc.NUM_STAGES,
            "resolution": mnc.RESOLUTION,
            "mask_dim": mnc.MASK_DIM,
            "fc_dim": mnc.FC_DIM,
            "accumulate_steps": cfg.SOLVER.ACCUMULATE_STEPS,
        }

    def region_maps(self, features: Dict[str, torch.Tensor]) -> List[torch.Tensor]:
        return [features[name] for name in self.in_features]

    def region_losses(
        self,
        maps: List[torch.Tensor],
        boxes: List[torch.Tensor],
        labels: List[RegionLabels],
        targets: List[Instances],
    ) -> Dict[str, torch.Tensor]:
        losses: Dict[str, torch.Tensor] = {}
        for number in range(self.num_rounds):
            if number:
                sizes = [truth.image_size for truth in targets]
                boxes = self._regressed_boxes(prediction, boxes, sizes, labels)
                labels = [label_regions(*pair, self.num_classes) for pair in zip(boxes, targets)]
            prediction = self.stages(self._warp(maps, boxes))
            suffix = f"_stage{2 * number + 3}" if number else ""
            for name, loss in self._losses(prediction, boxes, labels).items():
                losses[name + suffix] = loss
        return losses

    def region_predictions(
        self,
        maps: List[torch.Tensor],
        boxes: List[torch.Tensor],
        image_sizes: List[Tuple[int, int]],
    ) -> Tuple[Sequence[torch.Tensor], Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        counts = [len(part) for part in boxes]
        rounds = []
        for number in range(self.num_rounds):
            if number:
                boxes = self._regressed_boxes(prediction, boxes, image_sizes)
            prediction = self.stages(self._warp(maps, boxes))
            masks = prediction.mask_logits.sigmoid().split(counts)
            scores = prediction.seg_class_logits.softmax(dim=1)[:, :-1].split(counts)
            rounds.append((boxes, masks, scores))
        # Both rounds of an image are joined.
        return tuple([torch.cat(parts) for parts in zip(*values)] for values in zip(*rounds))

    def region_masks(self, maps: List[torch.Tensor], boxes: List[torch.Tensor]) -> torch.Tensor:
        return self.stages(self._warp(maps, boxes)).mask_logits.sigmoid()

    def sample_index(self, label: RegionLabels) -> torch.Tensor:
        """Samples foreground, background near objects and easy background of an image."""
        is_easy = (label.iou < _EASY_IOU) & (label.classes == self.num_classes)
        foreground, background = subsample_labels(
            label.classes, self.batch_size_per_image, self.positive_fraction, self.num_classes
        )
        count = min(len(background), self.batch_size_per_image - len(foreground))
        num_easy = min(round(self.easy_background * count), int(is_easy.sum()))
        hard = _shuffled((label.classes == self.num_classes) & ~is_easy)[: count - num_easy]
        easy = _shuffled(is_easy)[: count - len(hard)]
        return torch.cat([foreground, hard, easy])

    def _warp(self, maps: List[torch.Tensor], boxes: List[torch.Tensor]) -> torch.Tensor:
        """Warps the features of the regions at twice the resolution and pools them (section 3.2).

        Returns:
            (R, C, resolution, resolution).
        """
        rois = to_rois(boxes)
        side = 2 * self.resolution
        if len(maps) == 1:
            warped = roi_warp(maps[0], rois, side, 1 / self.strides[0])
            return F.max_pool2d(warped, 2)
        lowest, highest = (
            int(stride).bit_length() - 1 for stride in (self.strides[0], self.strides[-1])
        )
        detached = [Boxes(part.detach()) for part in boxes]
        levels = assign_boxes_to_levels(detached, lowest, highest, 224, 4)
        warped = maps[0].new_zeros(len(rois), maps[0].shape[1], side, side)
        for level, (values, stride) in enumerate(zip(maps, self.strides)):
            index = nonzero_tuple(levels == level)[0]
            warped = warped.index_copy(0, index, roi_warp(values, rois[index], side, 1 / stride))
        return F.max_pool2d(warped, 2)

    def _regressed_boxes(
        self,
        prediction: MNCPrediction,
        boxes: List[torch.Tensor],
        sizes: List[Tuple[int, int]],
        labels: Sequence[RegionLabels] = (),
    ) -> List[torch.Tensor]:
        """Applies the deltas of one class to the boxes, for the next round; with a gradient.

        The class is the true one if there are labels and the region is foreground. Otherwise it is
        the predicted one.
        """
        classes = prediction.class_logits[:, :-1].argmax(dim=1)
        if labels:
            gt_classes = torch.cat([label.classes for label in labels])
            classes = torch.where(gt_classes < self.num_classes, gt_classes, classes)
        deltas = select_class(prediction.deltas.unflatten(1, (self.num_classes, 4)), classes)
        deltas = bounded_gradient(deltas, len(boxes) * self.accumulate_steps)
        moved = self.box2box_transform.apply_deltas(deltas, torch.cat(boxes))
        moved = moved.split([len(part) for part in boxes])
        return [_clip_boxes(part, size) for part, size in zip(moved, sizes)]

    def _losses(
        self, prediction: MNCPrediction, boxes: List[torch.Tensor], labels: List[RegionLabels]
    ) -> Dict[str, torch.Tensor]:
        targets = self.region_targets(boxes, labels)
        classes = targets.classes[targets.foreground]
        mask_logits = prediction.mask_logits[targets.foreground]  # (F, m, m)
        seg_classes = targets.classes.clone()
        matches = _mask_iou(mask_logits.detach() > 0, targets.masks > 0) >= _MASK_IOU
        seg_classes[targets.foreground] = torch.where(matches, classes, self.num_classes)
        deltas = prediction.deltas.unflatten(1, (self.num_classes, 4))[targets.foreground]
        mask_loss = F.binary_cross_entropy_with_logits(mask_logits, targets.masks, reduction="sum")
        return {
            "loss_mask": self.mask_loss_weight * mask_loss / max(targets.masks.numel(), 1),
            "loss_cls": class_loss(prediction.class_logits, targets.classes),
            "loss_seg_cls": class_loss(prediction.seg_class_logits, seg_classes),
            "loss_box_reg": box_loss(select_class(deltas, classes), targets),
        }


def _check_resolution(option: str, resolution: int) -> None:
    if resolution < 2 or resolution % 2:
        raise ValueError(f"{option} is {resolution}; allowed: even numbers, 2 or more")


def _shuffled(mask: torch.Tensor) -> torch.Tensor:
    """Returns the indices at which a mask (R,) is True, in random order."""
    index = nonzero_tuple(mask)[0]
    return index[torch.randperm(len(index), device=index.device)]


def _mask_iou(masks: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Computes the IoU (R,) of pairs of boolean masks (R, m, m)."""
    intersection = (masks & others).flatten(1).sum(dim=1)
    return intersection / (masks | others).flatten(1).sum(dim=1).clamp(min=1)


def _clip_boxes(boxes: torch.Tensor, size: Tuple[int, int]) -> torch.Tensor:
    """Clips boxes (R, 4) to an image (H, W), with sides of at least one pixel.

    Sides at the border of the image have no gradient.
    """
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
