"""Fully convolutional instance-aware segmentation (Li et al., CVPR 2017): one set of score maps detects and segments."""

from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn
from torch.nn import functional as F

from rpe_d2.config import check_config
from rpe_d2.modeling.soft_masks import cut_at_half

from .mask_voting import MaskVoting
from .position_sensitive import position_sensitive_regions
from .regions import RegionLabels, check_matching, sample_regions


class FCISPrediction(NamedTuple):
    """Of R regions.

    Attributes:
        class_logits: (R, K + 1), background last.
        mask_logits: (R, 2, K + 1, m, m): outside and inside of each class.
        deltas: (R, 4) of the box.
    """

    class_logits: torch.Tensor
    mask_logits: torch.Tensor
    deltas: torch.Tensor


class FCISHead(nn.Module):
    """Score maps of a picture and what they say of regions (section 3)."""

    def __init__(
        self,
        channels: int,
        *,
        stride: int,
        conv_dim: int,
        num_classes: int,
        parts: int,
        cells: int,
    ):
        """
        Args:
            channels, stride: of the features.
            conv_dim: channels of the convolution before the score maps.
            num_classes: K, without background.
            parts: k of the k x k position-sensitive parts of a region.
            cells: of a part, each way: masks have m = k cells.
        """
        super().__init__()
        self.stride = stride
        self.num_classes = num_classes
        self.parts = parts
        self.cells = cells
        self.conv = nn.Conv2d(channels, conv_dim, 1)
        self.scores = nn.Conv2d(conv_dim, 2 * (num_classes + 1) * parts**2, 1)
        self.boxes = nn.Conv2d(conv_dim, 4 * parts**2, 1)
        for layer in (self.conv, self.scores, self.boxes):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def maps(self, features: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Score maps (N, 2 (K + 1) k k, H, W) and maps of box deltas (N, 4 k k, H, W)."""
        x = F.relu(self.conv(features))
        return self.scores(x), self.boxes(x)

    def forward(
        self, maps: Tuple[torch.Tensor, torch.Tensor], boxes: List[torch.Tensor]
    ) -> FCISPrediction:
        """
        Args:
            maps: of a batch.
            boxes: (R_i, 4) of each of its images.
        """
        regions = convert_boxes_to_pooler_format([Boxes(b) for b in boxes])
        scale = 1 / self.stride
        masks = position_sensitive_regions(maps[0], regions, self.parts, self.cells, scale)
        masks = masks.unflatten(1, (2, self.num_classes + 1))
        # A pixel speaks for a class inside or outside of the object; the region's score is the mean over its pixels.
        class_logits = masks.amax(dim=1).mean(dim=(-2, -1))
        deltas = position_sensitive_regions(maps[1], regions, self.parts, 1, scale)
        return FCISPrediction(class_logits, masks, deltas.mean(dim=(-2, -1)))


@ROI_HEADS_REGISTRY.register()
class FCISROIHeads(ROIHeads):
    """Joint detection and segmentation from inside and outside score maps, on one map of any backbone.

    The authors' networks have a ResNet-50 or -101 whose last stage is dilated to stride 16 (``MODEL.RESNETS.RES5_DILATION:
    2``), proposals from res4 and regions from res5; a finer level of an FPN serves small pictures. Regressed boxes are
    scored once more at inference, and masks of similar boxes vote. Boxes are regressed for all classes alike, whatever
    ``MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG`` says.
    """

    @configurable
    def __init__(
        self,
        *,
        in_feature: str,
        head: FCISHead,
        box2box_transform: Box2BoxTransform,
        mask_loss_weight: float,
        voting: MaskVoting,
        **kwargs,
    ):
        """
        Args:
            in_feature: name of the map.
            head: from it to score maps and regions.
            box2box_transform: of the boxes' deltas.
            mask_loss_weight: factor of the masks' loss.
            voting: from all regions of an image to its instances.
            kwargs: of ROIHeads.
        """
        super().__init__(**kwargs)
        self.in_feature = in_feature
        self.head = head
        self.box2box_transform = box2box_transform
        self.mask_loss_weight = mask_loss_weight
        self.voting = voting

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        fcis, names = cfg.MODEL.FCIS, list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
        check_config(cfg, "MODEL.FCIS")
        check_matching(cfg)
        if len(names) != 1:
            raise ValueError(
                f"MODEL.ROI_HEADS.IN_FEATURES is {', '.join(names)}; allowed for FCISROIHeads: one map"
            )
        shape = input_shape[names[0]]
        arguments = super().from_config(cfg)
        arguments.update(
            in_feature=names[0],
            head=FCISHead(
                shape.channels,
                stride=shape.stride,
                conv_dim=fcis.CONV_DIM,
                num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
                parts=fcis.PARTS,
                cells=fcis.CELLS,
            ),
            box2box_transform=Box2BoxTransform(cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS),
            mask_loss_weight=fcis.MASK_LOSS_WEIGHT,
            voting=MaskVoting.from_config(cfg, "MODEL.FCIS", fcis),
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
        maps = self.head.maps(features[self.in_feature])
        boxes = [found.proposal_boxes.tensor.detach() for found in proposals]
        if not self.training:
            return self._inference(maps, boxes, images.image_sizes), {}
        boxes, labels = sample_regions(
            boxes, targets, self.num_classes, self.proposal_append_gt, self._choose
        )
        return proposals, self._losses(self.head(maps, boxes), boxes, labels)

    def forward_with_given_boxes(
        self, features: Dict[str, torch.Tensor], instances: List[Instances]
    ) -> List[Instances]:
        """The same instances (``pred_boxes``, ``pred_classes``) with ``pred_masks``."""
        boxes = [found.pred_boxes.tensor for found in instances]
        masks = self._masks(self.head(self.head.maps(features[self.in_feature]), boxes))
        for found, part in zip(instances, masks.split([len(b) for b in boxes])):
            own = part[torch.arange(len(part), device=part.device), found.pred_classes]
            found.pred_masks = cut_at_half(own, self.voting.mask_threshold)
        return instances

    def _choose(self, label: RegionLabels) -> torch.Tensor:
        rows = subsample_labels(
            label.classes, self.batch_size_per_image, self.positive_fraction, self.num_classes
        )
        return torch.cat(rows)

    def _losses(
        self, prediction: FCISPrediction, boxes: List[torch.Tensor], labels: List[RegionLabels]
    ) -> Dict[str, torch.Tensor]:
        classes = torch.cat([label.classes for label in labels])
        foreground = classes < self.num_classes
        size = prediction.mask_logits.shape[-1]
        wanted = torch.cat([label.masks_in(b, size) for label, b in zip(labels, boxes)])
        logits = prediction.mask_logits[foreground]  # (F, 2, K + 1, m, m)
        logits = logits[torch.arange(len(logits), device=logits.device), :, classes[foreground]]
        true_boxes = torch.cat([label.boxes for label in labels])[foreground]
        deltas = self.box2box_transform.get_deltas(torch.cat(boxes)[foreground], true_boxes)
        count = max(len(classes), 1)
        mask_loss = F.cross_entropy(logits, wanted.long(), reduction="sum")
        return {
            "loss_cls": F.cross_entropy(prediction.class_logits, classes, reduction="sum") / count,
            "loss_mask": self.mask_loss_weight * mask_loss / max(wanted.numel(), 1),
            "loss_box_reg": F.smooth_l1_loss(prediction.deltas[foreground], deltas, reduction="sum")
            / count,
        }

    def _inference(self, maps, boxes: List[torch.Tensor], sizes) -> List[Instances]:
        prediction = self.head(maps, boxes)
        counts = [len(b) for b in boxes]
        # The regressed boxes join the proposals, and all are scored.
        moved = self.box2box_transform.apply_deltas(prediction.deltas, torch.cat(boxes))
        for index, (part, size) in enumerate(zip(moved.split(counts), sizes)):
            regressed = Boxes(part)
            regressed.clip(size)
            regressed = regressed[regressed.nonempty()]
            boxes[index] = torch.cat([boxes[index], regressed.tensor])
        prediction = self.head(maps, boxes)
        counts = [len(b) for b in boxes]
        scores = prediction.class_logits.softmax(dim=1)[:, :-1].split(counts)
        masks = self._masks(prediction).split(counts)
        return [self.voting(*parts) for parts in zip(boxes, masks, scores, sizes)]

    def _masks(self, prediction: FCISPrediction) -> torch.Tensor:
        """(R, K, m, m) in 0-1."""
        return prediction.mask_logits.softmax(dim=1)[:, 1, :-1]
