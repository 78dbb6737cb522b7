"""Proposals by recurrent mean-shift grouping, in place of a region proposal network."""

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from rpe_d2.config import check_config

from ..argument_checks import check_batch, check_choice, check_range, checked_topk
from ..embedding.data_checks import check_object_areas
from ..embedding.grouping import MeanShiftGrouping, PixelGrouping, build_grouping
from ..embedding.head import STRIDES, EmbeddingHead, EmbeddingMaps
from ..embedding.labels import PixelLabels, pixel_labels
from ..embedding.loss import EmbeddingLoss
from ..embedding.mean_shift_layer import MeanShiftLayer
from ..embedding.methods import check_spherical
from ..embedding.parts import check_grouping, fit_to_head
from ..embedding.quality_head import QualityHead, best_match, quality_loss
from ..layers import zero_loss
from ..masks import mask_overlaps, soft_mask_boxes, soft_masks_to_proposals, soft_nms

NMS_TYPES = ("mask", "box")


class RankedMasks(NamedTuple):
    """Groups of one image at all levels and scales, on the grid of the finest level.

    The padding of the batch is cut off.

    Attributes:
        soft_masks: (R, ceil(H / stride), ceil(W / stride)) float32 in 0-1.
        boxes: (R, 4) float32 x0, y0, x1, y1 in pixels, computed on the grid of the mask's own
            level. Boxes of masks that do not reach the threshold are empty.
        foreground: (R,) float32 in 0-1, the foreground probability of the group.
        quality_logits: (R,) float32 logits of the estimated IoU, or None without a quality head.
    """

    soft_masks: torch.Tensor
    boxes: torch.Tensor
    foreground: torch.Tensor
    quality_logits: Optional[torch.Tensor]

    @property
    def scores(self) -> torch.Tensor:
        """Scores (R,) in 0-1, without gradient."""
        if self.quality_logits is None:
            return self.foreground
        return self.foreground * self.quality_logits.detach().sigmoid()


@PROPOSAL_GENERATOR_REGISTRY.register()
class MeanShiftProposalGenerator(nn.Module):
    """Groups the pixels of a backbone's maps into class-agnostic object proposals.

    One clustering finds objects of one scale of grouping (Kong & Fowlkes, CVPR 2018). Proposals
    therefore come from several bandwidths and from several levels of pooled features. A learned
    estimate of the IoU scores them, duplicates are suppressed, and the best are kept. Embedding
    head, losses, mean shift, grouping and quality head are those of
    :class:`rpe_d2.modeling.PixelEmbeddingNet`, with one class.

    Pixels are labeled from ``gt_masks`` or, if the data have none, from filled boxes. Objects that
    Detectron2's mappers drop, such as crowds, count as background, as they do for the RPN.
    """

    dataset_mapper_name = "PixelLabelMapper"

    @configurable
    def __init__(
        self,
        input_shape: Optional[Dict[str, ShapeSpec]] = None,
        *,
        embedding_head: Optional[EmbeddingHead] = None,
        num_levels: int = 2,
        embedding_loss: Optional[EmbeddingLoss] = None,
        mean_shift: Optional[MeanShiftLayer] = None,
        grouping: Optional[PixelGrouping] = None,
        use_quality_head: bool = True,
        quality_loss_weight: float = 1.0,
        nms_type: str = "mask",
        nms_threshold: float = 0.7,
        duplicate_threshold: float = 0.9,
        pre_nms_topk: int = 1000,
        post_nms_topk_train: int = 500,
        post_nms_topk_test: int = 300,
        min_box_size: float = 0,
        mask_threshold: float = 0.5,
        tip_threshold: float = 0.2,
        mask_size: int = 112,
        masks_in_training: bool = False,
    ):
        """
        Args:
            input_shape: channels and stride of each output of the backbone. Required if no
                ``embedding_head`` is given.
            embedding_head: head with one class. None means a head of stride 8.
            num_levels: number of maps that are grouped, at the head's stride, twice that stride and
                so on.
            embedding_loss, mean_shift, grouping: the parts that are applied at each level. If None,
                a part is built with default arguments that fit the head: without votes, none are
                trained or shifted.
            use_quality_head: whether groups are ranked by foreground probability times an estimate
                of their mask's IoU. Otherwise they are ranked by the foreground probability.
            quality_loss_weight: weight of the loss of that estimate.
            nms_type: whether overlaps are those of "mask" or "box".
            nms_threshold: IoU with a better proposal above which a score is reduced.
            duplicate_threshold: IoU with a better proposal above which a proposal is dropped.
            pre_nms_topk: number of the best groups of an image that enter non-maximum suppression,
                which bounds time and memory.
            post_nms_topk_train, post_nms_topk_test: number of the best proposals that are kept.
            min_box_size: proposals with a side below this many pixels are dropped.
            mask_threshold: value at or above which a cell belongs to a soft mask.
            tip_threshold: lower value at or above which a cell extends the box, see
                :func:`rpe_d2.modeling.masks.soft_mask_boxes`.
            mask_size: M, the side of the proposals' masks.
            masks_in_training: whether proposals have masks in training as well.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__()
        if embedding_head is None:
            if input_shape is None:
                raise ValueError("input_shape is None; allowed: a dict, or an embedding_head")
            # By keyword, because a dict of LazyConfig would be taken for a cfg if it came first.
            embedding_head = EmbeddingHead(input_shape=input_shape, num_classes=1, stride=8)
        if not isinstance(grouping, (PixelGrouping, type(None))):
            raise ValueError(f"grouping is {grouping!r}; allowed: a PixelGrouping, or None")
        if not isinstance(embedding_loss, (EmbeddingLoss, type(None))):
            raise ValueError(
                f"embedding_loss is a {type(embedding_loss).__name__}; allowed: an EmbeddingLoss, "
                "or None"
            )
        check_range("num_levels", num_levels, 1)
        check_choice("nms_type", nms_type, NMS_TYPES)
        check_range("nms_threshold", nms_threshold, 0, 1)
        check_range("duplicate_threshold", duplicate_threshold, 0, 1)
        check_range("quality_loss_weight", quality_loss_weight, 0)
        check_range("min_box_size", min_box_size, 0)
        check_range("mask_threshold", mask_threshold, 1e-6, 0.99)
        check_range("tip_threshold", tip_threshold, 1e-6, 1)
        check_range("mask_size", mask_size, 1)
        self.embedding_head = embedding_head
        self.num_levels = num_levels
        self.embedding_loss, self.mean_shift = fit_to_head(
            embedding_head, embedding_loss, mean_shift, max_keys=1024
        )
        if grouping is None:
            grouping = MeanShiftGrouping(scales=(0.7, 1.4), max_groups=100)
        check_grouping(grouping, self.embedding_loss)
        if grouping.shift is None:
            grouping.shift = self.mean_shift
        self.grouping = grouping
        self.quality_head = QualityHead(embedding_head.feature_dim) if use_quality_head else None
        self.quality_loss_weight = quality_loss_weight
        self.nms_type = nms_type
        self.nms_threshold = nms_threshold
        self.duplicate_threshold = duplicate_threshold
        self.pre_nms_topk = pre_nms_topk
        self.post_nms_topk = checked_topk(pre_nms_topk, post_nms_topk_train, post_nms_topk_test)
        self.min_box_size = min_box_size
        self.mask_threshold = mask_threshold
        self.tip_threshold = tip_threshold
        self.mask_size = mask_size
        self.masks_in_training = masks_in_training

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> Dict:
        check_config(cfg, "MODEL.RPE", "MODEL.MEAN_SHIFT")
        rpe, proposals = cfg.MODEL.RPE, cfg.MODEL.RPE.PROPOSALS
        check_spherical(cfg, "MeanShiftProposalGenerator")
        check_choice("MODEL.RPE.PROPOSALS.STRIDE", proposals.STRIDE, STRIDES)
        if rpe.GROUPING == "kmeans":
            raise ValueError(
                "MODEL.RPE.GROUPING is 'kmeans', which needs the true number of objects; allowed "
                "with MeanShiftProposalGenerator: mean_shift, components"
            )
        return {
            "embedding_head": EmbeddingHead(
                cfg, input_shape, num_classes=1, stride=proposals.STRIDE
            ),
            "num_levels": proposals.NUM_LEVELS,
            "embedding_loss": EmbeddingLoss(cfg, stride=proposals.STRIDE),
            "mean_shift": MeanShiftLayer(cfg, max_keys=proposals.MAX_KEYS),
            "grouping": build_grouping(
                cfg, scales=proposals.SCALES, max_groups=proposals.MAX_GROUPS
            ),
            "use_quality_head": rpe.QUALITY,
            "quality_loss_weight": rpe.QUALITY_LOSS_WEIGHT,
            "nms_threshold": proposals.NMS_THRESH,
            "duplicate_threshold": proposals.DUPLICATE_THRESH,
            "pre_nms_topk": proposals.PRE_NMS_TOPK,
            "post_nms_topk_train": proposals.POST_NMS_TOPK_TRAIN,
            "post_nms_topk_test": proposals.POST_NMS_TOPK_TEST,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "mask_threshold": rpe.MASK_THRESHOLD,
            "mask_size": rpe.PROPOSAL_MASK_SIZE,
            "masks_in_training": cfg.MODEL.PROPOSAL_GENERATOR.MASKS_IN_TRAINING,
        }

    @classmethod
    def check_object_areas(cls, cfg: CfgNode, areas: Dict[str, np.ndarray]) -> None:
        """Warns of settings with which objects of these areas cannot be found."""
        check_object_areas(cfg, areas, "MODEL.RPE.PROPOSALS.STRIDE", cfg.MODEL.RPE.PROPOSALS.STRIDE)

    def forward(
        self,
        images: ImageList,
        features: Dict[str, torch.Tensor],
        gt_instances: Optional[List[Instances]] = None,
    ) -> Tuple[List[Instances], Dict[str, torch.Tensor]]:
        """Makes proposals and, in training, computes the losses.

        Args:
            images: padded batch; only the image sizes are used.
            features: outputs of the backbone.
            gt_instances: ground truth of each image, in training.

        Returns:
            For each image, proposals in descending order of their scores with ``proposal_boxes``,
            ``objectness_logits`` and, at inference or with ``masks_in_training``,
            ``proposal_masks`` (R, M, M) uint8. The second value is a dict of the losses
            "loss_rpe_…", which is empty at inference.
        """
        check_batch(
            type(self).__name__, len(next(iter(features.values()))), len(images.image_sizes)
        )
        levels = self.embedding_head.levels(features, self.num_levels)
        # Sums over thousands of pixels overflow half precision.
        with torch.autocast(device_type=levels[0].embeddings.device.type, enabled=False):
            ranked = self.rank_groups(levels, images.image_sizes)
            losses = self._losses(levels, ranked, gt_instances) if self.training else {}
            return self._proposals(ranked, levels[0].stride, images.image_sizes), losses

    def rank_groups(
        self, levels: List[EmbeddingMaps], image_sizes: Sequence[Tuple[int, int]]
    ) -> List[RankedMasks]:
        """Groups and scores the pixels of every image, before any suppression.

        Args:
            levels: predictions for a batch, the finest level first.
            image_sizes: (H, W) of each image without padding.
        """
        return [self._rank_image(levels, index, size) for index, size in enumerate(image_sizes)]

    def _rank_image(
        self, levels: List[EmbeddingMaps], index: int, size: Tuple[int, int]
    ) -> RankedMasks:
        masks, boxes, foreground, logits = [], [], [], []
        stride = levels[0].stride
        rows, columns = levels[0].image(index, size).unpadded_size
        for level in levels:
            maps = level.image(index, size)
            groups = self.grouping(maps)
            if self.quality_head is not None:
                logits.append(self.quality_head(maps, groups))
            # Without its padding, because interpolation would move masks away from the border.
            own_rows, own_columns = maps.unpadded_size
            soft_masks = groups.soft_masks[:, :own_rows, :own_columns]
            present, level_boxes = soft_mask_boxes(
                soft_masks, maps.stride, size, self.mask_threshold, self.tip_threshold
            )
            boxes.append(level_boxes * present[:, None])
            if maps.stride > stride and len(soft_masks):
                soft_masks = F.interpolate(
                    soft_masks[None],
                    scale_factor=maps.stride // stride,
                    mode="bilinear",
                    align_corners=False,
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
                'the batch has no "instances" to train on; an image without objects needs an empty '
                'list of "annotations"'
            )
        padded_size = levels[0].padded_size
        labels = [_one_class(pixel_labels(instances, padded_size)) for instances in gt_instances]
        parts = [self.embedding_loss(maps, labels, self.mean_shift) for maps in levels]
        losses = {
            # The prefix keeps the names apart from those of a semantic head in the same model.
            name.replace("loss_", "loss_rpe_"): sum(part[name] for part in parts) / len(parts)
            for name in parts[0]
        }
        if self.quality_head is not None:
            losses["loss_rpe_quality"] = self._quality_loss(ranked, labels, levels[0].stride)
        return losses

    def _quality_loss(
        self, ranked: List[RankedMasks], labels: List[PixelLabels], stride: int
    ) -> torch.Tensor:
        losses = []
        for masks, label in zip(ranked, labels):
            rows, columns = masks.soft_masks.shape[1:]
            instances = label.at_cells(stride)[:rows, :columns]
            iou, _ = best_match(masks.soft_masks, instances, self.mask_threshold)
            losses.append(quality_loss(masks.quality_logits, iou))
        loss = self.quality_loss_weight * sum(losses) / len(losses)
        return loss + zero_loss(self.quality_head)

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
        remaining, scores = soft_nms(
            overlaps, scores[kept], self.nms_threshold, self.duplicate_threshold
        )
        topk = self.post_nms_topk[self.training]
        kept, scores = kept[remaining[:topk]], scores[:topk]
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


def _one_class(labels: PixelLabels) -> PixelLabels:
    return labels._replace(classes=torch.zeros_like(labels.classes))
