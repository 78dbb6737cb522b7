"""Proposals by recurrent mean-shift grouping, in place of a region proposal network."""

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from rpe_d2.config import check_config

from ..embedding.grouping import PixelGrouping
from ..embedding.head import STRIDES, EmbeddingHead, EmbeddingMaps
from ..embedding.labels import PixelLabels, pixel_labels
from ..embedding.loss import EmbeddingLoss
from ..embedding.mean_shift_layer import MeanShiftLayer
from ..embedding.quality_head import QualityHead, best_iou, quality_loss
from ..masks import (
    mask_overlaps,
    rank_duplicates_last,
    soft_mask_boxes,
    soft_masks_to_proposals,
)

NMS_TYPES = ("mask", "box")


class RankedMasks(NamedTuple):
    """Groups of one image from all levels and bandwidths, on the finest level's grid without the batch's padding.

    Attributes:
        soft_masks: (R, ceil(H / stride), ceil(W / stride)) float32 in 0-1.
        boxes: (R, 4) float32 x0, y0, x1, y1 in pixels, each found on its own level's grid; without an extent where the
            mask nowhere reaches its threshold.
        foreground: (R,) float32 in 0-1: how likely their pixels are foreground.
        quality_logits: (R,) float32 logits of the estimated IoU; None without a ranker.
    """

    soft_masks: torch.Tensor
    boxes: torch.Tensor
    foreground: torch.Tensor
    quality_logits: Optional[torch.Tensor]

    @property
    def scores(self) -> torch.Tensor:
        """(R,) in 0-1, without gradient."""
        if self.quality_logits is None:
            return self.foreground
        return self.foreground * self.quality_logits.detach().sigmoid()


@PROPOSAL_GENERATOR_REGISTRY.register()
class MeanShiftProposalGenerator(nn.Module):
    """Groups the pixels of a backbone's maps into class-agnostic object proposals (Kong & Fowlkes, CVPR 2018).

    One clustering is one scale of grouping. Proposals come from several bandwidths and from several levels of pooled
    features; a learned ranker scores them, duplicates are suppressed, and the best remain. Embedding head, losses,
    mean shift, grouping and ranker are those of :class:`rpe_d2.modeling.PixelEmbeddingNet`, with one class.

    Pixels are labelled from ``gt_masks``, or where the data have none from filled boxes. What Detectron2's mappers
    leave out, as crowds, counts as background, as it does for the RPN.
    """

    dataset_mapper_name = "PixelLabelMapper"

    @configurable
    def __init__(
        self,
        *,
        embedding_head: EmbeddingHead,
        num_levels: int,
        embedding_loss: EmbeddingLoss,
        mean_shift: MeanShiftLayer,
        grouping: PixelGrouping,
        quality_head: Optional[QualityHead],
        quality_loss_weight: float,
        nms_type: str,
        nms_threshold: float,
        duplicate_threshold: float,
        pre_nms_topk: int,
        post_nms_topk_train: int,
        post_nms_topk_test: int,
        min_box_size: float,
        mask_threshold: float,
        tip_threshold: float,
        mask_size: int,
        masks_in_training: bool = False,
    ):
        """
        Args:
            embedding_head: with one class.
            num_levels: maps that are grouped: at the head's stride, at twice that, and so on.
            embedding_loss, mean_shift, grouping: the parts that follow, for each level.
            quality_head: ranks the groups; None ranks by foreground probability alone.
            quality_loss_weight: factor of its loss.
            nms_type: overlap of "mask" or "box".
            nms_threshold: IoU with a better proposal above which a proposal's score falls.
            duplicate_threshold: IoU with a better proposal above which one is dropped.
            pre_nms_topk: the best groups of an image that the suppression looks at; bounds its time and memory.
            post_nms_topk_train, post_nms_topk_test: the best proposals of an image that remain.
            min_box_size: proposals with a shorter side, pixels, are dropped.
            mask_threshold: where the soft masks are cut.
            tip_threshold: boxes hold whatever reaches this value, too, since masks are least sure of an object's tips.
            mask_size: M of the proposal masks.
            masks_in_training: there are masks in training, too.
        """
        super().__init__()
        self.embedding_head = embedding_head
        self.num_levels = num_levels
        self.embedding_loss = embedding_loss
        self.mean_shift = mean_shift
        self.grouping = grouping
        self.quality_head = quality_head
        self.quality_loss_weight = quality_loss_weight
        self.nms_type = nms_type
        self.nms_threshold = nms_threshold
        self.duplicate_threshold = duplicate_threshold
        self.pre_nms_topk = pre_nms_topk
        self.post_nms_topk = {True: post_nms_topk_train, False: post_nms_topk_test}
        self.min_box_size = min_box_size
        self.mask_threshold = mask_threshold
        self.tip_threshold = tip_threshold
        self.mask_size = mask_size
        self.masks_in_training = masks_in_training

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        proposals = cfg.MODEL.RPE.PROPOSALS
        if proposals.NMS_TYPE not in NMS_TYPES:
            raise ValueError(
                f"MODEL.RPE.PROPOSALS.NMS_TYPE is {proposals.NMS_TYPE!r}; allowed: {', '.join(NMS_TYPES)}"
            )
        if proposals.STRIDE not in STRIDES:
            raise ValueError(
                f"MODEL.RPE.PROPOSALS.STRIDE is {proposals.STRIDE}; allowed: {', '.join(map(str, STRIDES))}"
            )
        if cfg.MODEL.RPE.GROUPING == "kmeans":
            raise ValueError(
                "MODEL.RPE.GROUPING is 'kmeans', which needs the true number of objects; allowed with "
                "MeanShiftProposalGenerator: mean_shift, components"
            )
        check_config(cfg, "MODEL.RPE", "MODEL.MEAN_SHIFT")
        cfg = _class_agnostic(cfg)
        head = EmbeddingHead(cfg, input_shape)
        return {
            "embedding_head": head,
            "num_levels": proposals.NUM_LEVELS,
            "embedding_loss": EmbeddingLoss(cfg),
            "mean_shift": MeanShiftLayer(cfg),
            "grouping": PixelGrouping(cfg),
            "quality_head": QualityHead(head.feature_dim) if cfg.MODEL.RPE.QUALITY else None,
            "quality_loss_weight": cfg.MODEL.RPE.QUALITY_LOSS_WEIGHT,
            "nms_type": proposals.NMS_TYPE,
            "nms_threshold": proposals.NMS_THRESH,
            "duplicate_threshold": proposals.DUPLICATE_THRESH,
            "pre_nms_topk": proposals.PRE_NMS_TOPK,
            "post_nms_topk_train": proposals.POST_NMS_TOPK_TRAIN,
            "post_nms_topk_test": proposals.POST_NMS_TOPK_TEST,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "mask_threshold": cfg.MODEL.RPE.MASK_THRESHOLD,
            "tip_threshold": proposals.TIP_THRESHOLD,
            "mask_size": cfg.MODEL.RPE.PROPOSAL_MASK_SIZE,
            "masks_in_training": cfg.MODEL.PROPOSAL_GENERATOR.MASKS_IN_TRAINING,
        }

    def forward(
        self,
        images: ImageList,
        features: Dict[str, torch.Tensor],
        gt_instances: Optional[List[Instances]] = None,
    ) -> Tuple[List[Instances], Dict[str, torch.Tensor]]:
        """
        Args:
            images: padded batch; only its images' sizes are used.
            features: the backbone's maps.
            gt_instances: in training, one per image.

        Returns:
            for each image ``proposal_boxes`` and ``objectness_logits`` and, at inference or where they are wanted in
            training, ``proposal_masks`` (R, M, M) uint8, by falling score; and in training the losses, "loss_rpe_…".
        """
        levels = self.embedding_head.levels(features, self.num_levels)
        # Sums over thousands of pixels overflow half precision.
        with torch.autocast(device_type=levels[0].embeddings.device.type, enabled=False):
            ranked = self.rank_groups(levels, images.image_sizes)
            losses = self._losses(levels, ranked, gt_instances) if self.training else {}
            return self._proposals(ranked, levels[0].stride, images.image_sizes), losses

    def rank_groups(
        self, levels: List[EmbeddingMaps], image_sizes: Sequence[Tuple[int, int]]
    ) -> List[RankedMasks]:
        """Groups of every image at every level and bandwidth, with their ranks, before any suppression.

        Args:
            levels: predictions for a batch, the finest first.
            image_sizes: (H, W) of the images without padding.
        """
        return [self._rank_image(levels, index, size) for index, size in enumerate(image_sizes)]

    def _rank_image(
        self, levels: List[EmbeddingMaps], index: int, size: Tuple[int, int]
    ) -> RankedMasks:
        rows, columns = _cells(size, levels[0].stride)
        masks, boxes, foreground, logits = [], [], [], []
        for maps in levels:
            groups = self.grouping(maps, index, size, self.mean_shift)
            if self.quality_head is not None:
                features = maps.features[index]
                logits.append(
                    self.quality_head(features, groups.soft_masks, groups.agreement, maps.stride)
                )
            # Padding is cut off before anything is interpolated: it would draw masks away from the image's border.
            own = _cells(size, maps.stride)
            soft_masks = groups.soft_masks[:, : own[0], : own[1]]
            present, found = soft_mask_boxes(
                soft_masks, maps.stride, size, self.mask_threshold, self.tip_threshold
            )
            boxes.append(found * present[:, None])
            if maps.stride > levels[0].stride and len(soft_masks):
                factor = maps.stride // levels[0].stride
                soft_masks = F.interpolate(
                    soft_masks[None], scale_factor=factor, mode="bilinear", align_corners=False
                )[0]
            masks.append(soft_masks[:, :rows, :columns].reshape(-1, rows, columns))
            foreground.append(groups.class_probabilities.sum(dim=1))
        return RankedMasks(
            torch.cat(masks),
            torch.cat(boxes),
            torch.cat(foreground),
            torch.cat(logits) if logits else None,
        )

    def _losses(
        self,
        levels: List[EmbeddingMaps],
        ranked: List[RankedMasks],
        gt_instances: Optional[List[Instances]],
    ) -> Dict[str, torch.Tensor]:
        if gt_instances is None:
            raise ValueError(
                'the batch has no "instances" to train on; an image without objects needs an empty list of '
                '"annotations"'
            )
        padded = [side * levels[0].stride for side in levels[0].logits.shape[-2:]]
        labels = [_one_class(pixel_labels(instances, padded)) for instances in gt_instances]
        parts = [self.embedding_loss(maps, labels, self.mean_shift) for maps in levels]
        losses = {
            # Not the names of a semantic head, which may stand beside this one.
            name.replace("loss_", "loss_rpe_"): sum(part[name] for part in parts) / len(parts)
            for name in parts[0]
        }
        if self.quality_head is not None:
            losses["loss_rpe_quality"] = self._quality_loss(ranked, labels, levels[0].stride)
        return losses

    def _quality_loss(
        self, ranked: List[RankedMasks], labels: List[PixelLabels], stride: int
    ) -> torch.Tensor:
        middle = slice(stride // 2, None, stride)
        losses = []
        for masks, label in zip(ranked, labels):
            rows, columns = masks.soft_masks.shape[1:]
            instances = label.instances[middle, middle][:rows, :columns]
            iou = best_iou(masks.soft_masks, instances, self.mask_threshold)
            losses.append(quality_loss(masks.quality_logits, iou))
        # Parameters take part even where nothing was grouped, as distributed training demands.
        unused = sum(parameter.sum() for parameter in self.quality_head.parameters()) * 0.0
        return self.quality_loss_weight * sum(losses) / len(losses) + unused

    @torch.no_grad()
    def _proposals(
        self, ranked: List[RankedMasks], stride: int, image_sizes: Sequence[Tuple[int, int]]
    ) -> List[Instances]:
        return [
            self._proposals_of_image(masks, stride, size)
            for masks, size in zip(ranked, image_sizes)
        ]

    def _proposals_of_image(
        self, ranked: RankedMasks, stride: int, size: Tuple[int, int]
    ) -> Instances:
        soft_masks, boxes, scores = ranked.soft_masks, ranked.boxes, ranked.scores
        sides = boxes[:, 2:] - boxes[:, :2]
        kept = torch.nonzero(((sides > 0) & (sides >= self.min_box_size)).all(dim=1)).squeeze(1)
        kept = kept[scores[kept].topk(min(self.pre_nms_topk, len(kept))).indices]
        if self.nms_type == "mask":
            overlaps = mask_overlaps(soft_masks[kept], "union", self.mask_threshold)
        else:
            overlaps = box_iou(boxes[kept], boxes[kept])
        stays, scores = rank_duplicates_last(
            overlaps, scores[kept], self.nms_threshold, self.duplicate_threshold
        )
        topk = self.post_nms_topk[self.training]
        kept, scores = kept[stays[:topk]], scores[:topk]
        return soft_masks_to_proposals(
            soft_masks[kept],
            scores,
            boxes[kept],
            stride,
            size,
            size,
            self.mask_threshold,
            None if self.training and not self.masks_in_training else self.mask_size,
        )


def _class_agnostic(cfg: CfgNode) -> CfgNode:
    """The configuration as the shared parts read it: one class, and the generator's own grid and bandwidths."""
    cfg = cfg.clone()
    cfg.defrost()
    rpe, proposals = cfg.MODEL.RPE, cfg.MODEL.RPE.PROPOSALS
    rpe.NUM_CLASSES = 1
    rpe.STRIDE = proposals.STRIDE
    rpe.MAX_GROUPS = proposals.MAX_GROUPS
    cfg.MODEL.MEAN_SHIFT.TEST_SCALES = proposals.SCALES
    cfg.MODEL.MEAN_SHIFT.MAX_KEYS = proposals.MAX_KEYS
    return cfg


def _cells(size: Tuple[int, int], stride: int) -> Tuple[int, int]:
    """Rows and columns of the grid that hold an image of (H, W) pixels."""
    return tuple(-(-side // stride) for side in size)


def _one_class(labels: PixelLabels) -> PixelLabels:
    return labels._replace(classes=torch.zeros_like(labels.classes))
