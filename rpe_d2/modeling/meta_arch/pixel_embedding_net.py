"""Instance segmentation by recurrent pixel embeddings."""

import math
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import get_event_storage
from torch.nn import functional as F

from rpe_d2.config import check_config

from ..argument_checks import check_choice, check_range
from ..embedding.data_checks import check_object_areas
from ..embedding.group_head import GROUP_CLASSES, GroupHead, group_class_loss, true_group_loss
from ..embedding.group_masks import masks_of_groups, proposals_of_groups
from ..embedding.grouping import PixelGrouping, drop_background
from ..embedding.head import EmbeddingHead, EmbeddingMaps, ImageMaps
from ..embedding.labels import IGNORED, PixelLabels, pixel_labels
from ..embedding.mean_shift_layer import MeanShiftLayer
from ..embedding.methods import method_of
from ..embedding.oracles import true_groups, with_true_foreground
from ..embedding.parts import AnyLoss, check_grouping, default_grouping, fit_to_head
from ..embedding.pixel_groups import PixelGroups
from ..embedding.quality_head import QualityHead, best_match, quality_loss
from ..embedding.training_pictures import embeddings_per_loop, training_picture
from ..layers import resize_maps, zero_loss
from ..masks import (
    contained_mask_soft_nms,
    masks_on_grid,
)
from ..spn import MaskPropagation, propagation_loss
from .padded_input import PIXEL_MEAN, PIXEL_STD, PaddedInput

REFINEMENTS = ("", "spn")
# Groups with a lower IoU with every object are not used to train the refinement.
_MIN_REFINABLE_IOU = 0.5
# Groups of several scales: scores of those in conflict with a better one are multiplied by the
# first number, and those with a higher IoU with a better one than the second are dropped.
_DECAY = 0.3
_DUPLICATE = 0.6


@META_ARCH_REGISTRY.register()
class PixelEmbeddingNet(PaddedInput):
    """Recurrent pixel embedding for instance grouping (Kong & Fowlkes, CVPR 2018).

    ``MODEL.RPE.LOSS`` replaces the paper's embeddings, loss and grouping by those of another paper.

    The input is Detectron2's list of dicts with ``image`` (C, H, W). Training also needs
    ``instances`` and takes an optional ``ignore_mask`` (H, W) bool. The k-means oracle needs
    ``num_instances``. Inference returns ``{"instances"}`` with boolean ``pred_masks`` in full
    resolution, their tight ``pred_boxes``, ``scores`` and ``pred_classes``, and on request
    ``"proposals"`` and ``"sem_seg"``.
    """

    dataset_mapper_name = "PixelLabelMapper"
    num_classes_keys = {"thing": "MODEL.RPE.NUM_CLASSES"}
    default_confidence_threshold = 0.3  # lower ones may be alternatives to better ones

    @configurable
    def __init__(
        self,
        backbone: Backbone,
        num_classes: Optional[int] = None,
        *,
        embedding_head: Optional[EmbeddingHead] = None,
        embedding_loss: Optional[AnyLoss] = None,
        mean_shift: Optional[MeanShiftLayer] = None,
        grouping: Optional[PixelGrouping] = None,
        use_quality_head: bool = True,
        quality_loss_weight: float = 1.0,
        quality_images: int = 2,
        group_head: Optional[GroupHead] = None,
        group_classes: str = "vote",
        mask_propagation: Optional[MaskPropagation] = None,
        propagation_loss_weight: float = 1.0,
        detections_per_image: int = 100,
        score_threshold: float = 0.0,
        mask_threshold: float = 0.5,
        min_area: float = 16,
        overlap_threshold: float = 0.5,
        return_proposals: bool = False,
        proposal_mask_size: int = 112,
        return_sem_seg: bool = False,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        input_format: str = "BGR",
        vis_period: int = 0,
    ):
        """
        Args:
            backbone: any Detectron2 backbone.
            num_classes: number of classes K. Required if no ``embedding_head`` is given.
            embedding_head, embedding_loss, mean_shift, grouping: the parts in the order in which
                data pass through them. If None, a part is built with default arguments that fit the
                head and the loss: without votes, none are trained or shifted, and with a
                :class:`rpe_d2.modeling.embedding.methods.MethodLoss` there is no mean shift.
            use_quality_head: whether instances are ranked by class probability times an estimate of
                their mask's IoU. Otherwise they are ranked by the class probability.
            quality_loss_weight: weight of the loss of that estimate.
            quality_images: number of images of a batch whose predicted groups train the estimate,
                the group head and the refinement. 0 means all.
            group_head: classifies groups by their features.
            group_classes: class probabilities of an instance: "vote", the mean of its pixels;
                "head", those of the group head; or "product" of both.
            mask_propagation: refines the soft masks of the instances. None disables the refinement.
            propagation_loss_weight: weight of the loss of the refined masks.
            detections_per_image: number of the best instances that are kept.
            score_threshold: instances with a lower score are dropped.
            mask_threshold: value at or above which a pixel belongs to a soft mask.
            min_area: smallest area of a mask in pixels of the image.
            overlap_threshold: threshold of
                :func:`rpe_d2.modeling.masks.contained_mask_soft_nms` for groups of several scales.
            return_proposals, return_sem_seg: whether to return the additional outputs.
            proposal_mask_size: side of the proposals' masks.
            pixel_mean, pixel_std: mean and standard deviation of each channel.
            input_format: channel order of the images, for visualization.
            vis_period: iterations between visualizations in training. 0 disables them.

        Raises:
            ValueError: An argument is out of range.
        """
        if embedding_head is None:
            if num_classes is None:
                raise ValueError("num_classes is None; allowed: a number, or an embedding_head")
            embedding_head = EmbeddingHead(backbone.output_shape(), num_classes)
        if not isinstance(grouping, (PixelGrouping, type(None))):
            raise ValueError(f"grouping is {grouping!r}; allowed: a PixelGrouping, or None")
        check_range("quality_loss_weight", quality_loss_weight, 0)
        check_range("quality_images", quality_images, 0)
        check_choice("group_classes", group_classes, GROUP_CLASSES)
        if group_head is None and group_classes != "vote":
            raise ValueError(f"group_classes is {group_classes}; allowed without group_head: vote")
        if group_head is not None and group_head.num_classes != embedding_head.num_classes:
            raise ValueError(
                f"group_head.num_classes is {group_head.num_classes}; allowed: "
                f"{embedding_head.num_classes}, that of the embedding head"
            )
        check_range("propagation_loss_weight", propagation_loss_weight, 0)
        check_range("detections_per_image", detections_per_image, 1)
        check_range("score_threshold", score_threshold, 0, 1)
        check_range("mask_threshold", mask_threshold, 1e-6, 0.99)
        check_range("min_area", min_area, 0)
        check_range("overlap_threshold", overlap_threshold, 0, 1)
        check_range("proposal_mask_size", proposal_mask_size, 1)
        strides = [embedding_head.stride]
        if mask_propagation is not None:
            strides.append(mask_propagation.stride)
        super().__init__(backbone, pixel_mean, pixel_std, strides)
        self.embedding_head = embedding_head
        self.embedding_loss, self.mean_shift = fit_to_head(
            embedding_head, embedding_loss, mean_shift
        )
        self.grouping = default_grouping(self.embedding_loss) if grouping is None else grouping
        check_grouping(self.grouping, self.embedding_loss)
        if self.grouping.shift is None:
            self.grouping.shift = self.mean_shift
        self.quality_head = QualityHead(embedding_head.feature_dim) if use_quality_head else None
        self.quality_loss_weight = quality_loss_weight
        self.quality_images = quality_images
        self.group_head = group_head
        self.group_classes = group_classes
        self.mask_propagation = mask_propagation
        self.propagation_loss_weight = propagation_loss_weight
        self.detections_per_image = detections_per_image
        self.score_threshold = score_threshold
        self.mask_threshold = mask_threshold
        self.min_area = min_area
        self.overlap_threshold = overlap_threshold
        self.return_proposals = return_proposals
        self.proposal_mask_size = proposal_mask_size
        self.return_sem_seg = return_sem_seg
        self.input_format = input_format
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict:
        check_config(cfg, "MODEL.RPE", "MODEL.MEAN_SHIFT")
        rpe = cfg.MODEL.RPE
        check_choice("MODEL.RPE.REFINE", rpe.REFINE, REFINEMENTS)
        method = method_of(cfg)
        method.report_unused(cfg)
        backbone = build_backbone(cfg)
        head = method.build_head(cfg, backbone.output_shape())
        refinement = None
        group_head = None
        if rpe.GROUP_CLASSES != "vote":
            group_head = GroupHead(head.feature_dim, rpe.NUM_CLASSES, rpe.GROUP_POOLING)
        if rpe.REFINE == "spn":
            refinement = MaskPropagation(cfg, backbone.output_shape())
        return {
            "backbone": backbone,
            "embedding_head": head,
            "embedding_loss": method.build_loss(cfg),
            "mean_shift": method.build_mean_shift(cfg),
            "grouping": method.build_grouping(cfg),
            "use_quality_head": rpe.QUALITY,
            "quality_loss_weight": rpe.QUALITY_LOSS_WEIGHT,
            "quality_images": rpe.QUALITY_IMAGES,
            "group_head": group_head,
            "group_classes": rpe.GROUP_CLASSES,
            "mask_propagation": refinement,
            "propagation_loss_weight": cfg.MODEL.SPN.LOSS_WEIGHT,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "score_threshold": _score_threshold(cfg),
            "mask_threshold": rpe.MASK_THRESHOLD,
            "min_area": rpe.MIN_AREA,
            "return_proposals": rpe.RETURN_PROPOSALS,
            "proposal_mask_size": rpe.PROPOSAL_MASK_SIZE,
            "return_sem_seg": rpe.RETURN_SEM_SEG,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
        }

    @classmethod
    def inference_inputs(cls, cfg: CfgNode) -> Tuple[str, ...]:
        """Names what the model needs at inference besides images."""
        return ("num_instances",) if cfg.MODEL.RPE.GROUPING == "kmeans" else ()

    @classmethod
    def check_training_data(cls, cfg: CfgNode, max_instances: int) -> None:
        """Warns about settings with which grouping cannot succeed, and suggests values that fit."""
        method_of(cfg).check_training_data(cfg, max_instances)

    @classmethod
    def check_object_areas(cls, cfg: CfgNode, areas: Dict[str, np.ndarray]) -> None:
        """Warns of settings with which objects of these areas cannot be found."""
        check_object_areas(cfg, areas, "MODEL.RPE.STRIDE", cfg.MODEL.RPE.STRIDE)

    def forward(self, batched_inputs: List[Dict[str, torch.Tensor]]) -> List[Dict]:
        """Returns a dict of losses in training, and the result of :meth:`inference` otherwise."""
        if not self.training:
            return self.inference(batched_inputs)
        prediction = self._predict(batched_inputs)
        # Sums over thousands of pixels overflow half precision.
        with torch.autocast(device_type=self.device.type, enabled=False):
            return self._losses(batched_inputs, prediction)

    def _losses(
        self, batched_inputs: List[Dict[str, torch.Tensor]], prediction: "_Prediction"
    ) -> Dict[str, torch.Tensor]:
        labels = self._labels(batched_inputs, prediction.maps)
        losses = self.embedding_loss(prediction.maps, labels, self.mean_shift)
        losses.update(self._group_losses(prediction, labels))
        if self.vis_period > 0:
            storage = get_event_storage()
            if storage.iter % self.vis_period == 0:
                maps, _ = prediction.image(0)
                picture = self._training_picture(batched_inputs[0], maps, labels[0])
                title = "image, ground truth, instances, embeddings of each loop"
                storage.put_image(title, picture)
        return losses

    @torch.no_grad()
    def inference(self, batched_inputs: List[Dict[str, torch.Tensor]]) -> List[Dict]:
        """Predicts the instances of each image, scaled to its ``height`` and ``width``.

        Images of different sizes are processed one by one, so that the padding of a batch does not
        change the result.
        """
        if len({tuple(item["image"].shape) for item in batched_inputs}) > 1:
            return [self.inference([item])[0] for item in batched_inputs]
        prediction = self._predict(batched_inputs)
        with torch.autocast(device_type=self.device.type, enabled=False):
            return [
                self._output(item, *prediction.image(index))
                for index, item in enumerate(batched_inputs)
            ]

    @torch.no_grad()
    def oracle_instances(self, item: Dict[str, torch.Tensor]) -> Dict[str, Instances]:
        """Predicts the instances of an image with a perfect grouping and with a perfect foreground.

        Args:
            item: an input with "instances", as in training.

        Returns:
            Instances for "true grouping", where the cells are grouped by their true instances, and
            for "true foreground", where the true foreground is grouped as always.
        """
        prediction = self._predict([item])
        maps, gates = prediction.image(0)
        (labels,) = self._labels([item], prediction.maps)
        outputs = {
            "true grouping": self._output(item, maps, gates, true_groups(maps, labels)[0]),
            "true foreground": self._output(item, with_true_foreground(maps, labels), gates),
        }
        return {name: output["instances"] for name, output in outputs.items()}

    def _output(
        self,
        item: Dict,
        maps: ImageMaps,
        gates: Optional[torch.Tensor],
        groups: Optional[PixelGroups] = None,
    ) -> Dict:
        if groups is None:
            groups = self._groups(maps, item.get("num_instances"))
        scores = self._scores(maps, groups)
        if self.grouping.groups_overlap and len(groups):
            masks = torch.cat([soft >= self.mask_threshold for _, soft in groups.chunks()])
            best = scores.amax(dim=1)
            kept, factors = contained_mask_soft_nms(
                masks,
                best,
                self.overlap_threshold,
                self.mask_threshold,
                decay=_DECAY,
                duplicate_threshold=_DUPLICATE,
            )
            groups, scores = groups.select(kept), scores[kept] * factors[:, None]
        size = maps.image_size
        out_size = (item.get("height", size[0]), item.get("width", size[1]))
        output = {"instances": self._instances(maps, groups, scores, out_size, gates)}
        if self.return_proposals:
            output["proposals"] = proposals_of_groups(
                maps,
                groups,
                scores.amax(dim=1),
                out_size,
                mask_threshold=self.mask_threshold,
                mask_size=self.proposal_mask_size,
            )
        if self.return_sem_seg:
            logits = F.interpolate(
                maps.logits[None], scale_factor=maps.stride, mode="bilinear", align_corners=False
            )[0]
            output["sem_seg"] = sem_seg_postprocess(logits, size, *out_size)
        return output

    def predict_maps(self, batched_inputs: List[Dict[str, torch.Tensor]]) -> List[ImageMaps]:
        """Predicts the embeddings, class logits and votes of each image."""
        prediction = self._predict(batched_inputs)
        return [prediction.image(index)[0] for index in range(len(batched_inputs))]

    def _predict(self, batched_inputs: List[Dict[str, torch.Tensor]]) -> "_Prediction":
        images = self.padded([self.normalized(item) for item in batched_inputs])
        features = self.backbone(images.tensor)
        gates = None
        if self.mask_propagation is not None:
            gates = self.mask_propagation.gates(features)
        return _Prediction(self.embedding_head(features), images.image_sizes, gates)

    def _labels(
        self, batched_inputs: List[Dict[str, torch.Tensor]], maps: EmbeddingMaps
    ) -> List[PixelLabels]:
        num_classes = maps.logits.shape[1] - 1
        labels = []
        for item in batched_inputs:
            if "instances" not in item:
                raise ValueError(
                    f"{item.get('file_name', 'an image')} has no instances to train on; an image "
                    'without objects needs an empty list of "annotations"'
                )
            instances = item["instances"].to(self.device)
            classes = instances.gt_classes
            if len(classes) and int(classes.max()) >= num_classes:
                raise ValueError(
                    f"MODEL.RPE.NUM_CLASSES is {num_classes}; {item.get('file_name', 'an image')} "
                    f"has class {int(classes.max())}, allowed: 0 to {num_classes - 1}"
                )
            labels.append(pixel_labels(instances, maps.padded_size, item.get("ignore_mask")))
        return labels

    def _groups(self, maps: ImageMaps, num_instances: Optional[int] = None) -> PixelGroups:
        groups = self.grouping(maps, num_instances)
        return drop_background(groups) if self.grouping.background_is_group else groups

    def _scores(self, maps: ImageMaps, groups: PixelGroups) -> torch.Tensor:
        """Returns (R, K) class probabilities, times the estimated IoU if a head estimates it."""
        scores = groups.class_probabilities
        if self.group_head is not None:
            classified = self.group_head(maps, groups).softmax(dim=1)[:, :-1]
            scores = classified if self.group_classes == "head" else scores * classified
        if self.quality_head is None:
            return scores
        return scores * self.quality_head(maps, groups).sigmoid()[:, None]

    def _group_losses(
        self, prediction: "_Prediction", labels: List[PixelLabels]
    ) -> Dict[str, torch.Tensor]:
        """Computes the losses of the groups' estimated IoUs, classes and refined masks."""
        parts = {
            "loss_quality": self.quality_head,
            "loss_group": self.group_head,
            "loss_propagation": self.mask_propagation,
        }
        losses = {name: zero_loss(part) for name, part in parts.items() if part is not None}
        if not losses:
            return losses
        count = min(self.quality_images or len(labels), len(labels))
        for index in range(count):
            maps, gates = prediction.image(index)
            groups = self._groups(maps, len(labels[index].classes))
            iou, instance = best_match(
                groups.soft_masks, labels[index].at_cells(maps.stride), self.mask_threshold
            )
            if self.quality_head is not None:
                loss = quality_loss(self.quality_head(maps, groups), iou)
                losses["loss_quality"] += self.quality_loss_weight * loss / count
            if self.group_head is not None:
                logits = self.group_head(maps, groups)
                loss = group_class_loss(logits, iou, instance, labels[index].classes)
                losses["loss_group"] += loss / count
            if gates is not None:
                good = iou >= _MIN_REFINABLE_IOU
                pred = self._propagated(groups.soft_masks[good], gates, maps.image_size)
                loss = self._propagation_loss(pred, instance[good], labels[index], maps.image_size)
                losses["loss_propagation"] += self.propagation_loss_weight * loss / count
        if self.group_head is not None:
            for index, image_labels in enumerate(labels):
                maps, _ = prediction.image(index)
                loss = true_group_loss(self.group_head, maps, image_labels)
                losses["loss_group"] += loss / len(labels)
        return losses

    def _propagation_loss(
        self,
        pred: torch.Tensor,
        instance: torch.Tensor,
        labels: PixelLabels,
        size: Tuple[int, int],
    ) -> torch.Tensor:
        label_map = labels.instances[: size[0], : size[1]]
        grid = size, self.mask_propagation.stride
        target = masks_on_grid(label_map == instance.view(-1, 1, 1), *grid)  # (R, h, w)
        ignored = masks_on_grid((label_map == IGNORED)[None], *grid)[0]
        return propagation_loss(pred, target, counted=ignored == 0)

    def _propagated(
        self, soft_masks: torch.Tensor, gates: torch.Tensor, size: Tuple[int, int]
    ) -> torch.Tensor:
        """Refines soft masks on the grid of the gates, without the padding of the batch."""
        soft_masks = resize_maps(soft_masks[None], gates.shape[-2:])[0]
        rows, columns = (-(-side // self.mask_propagation.stride) for side in size)
        return self.mask_propagation(soft_masks[:, :rows, :columns], gates)

    def _instances(
        self,
        maps: ImageMaps,
        groups: PixelGroups,
        scores: torch.Tensor,
        out_size: Tuple[int, int],
        gates: Optional[torch.Tensor],
    ) -> Instances:
        best, classes = scores.max(dim=1)
        order = torch.argsort(best, descending=True, stable=True)[: self.detections_per_image]
        order = order[best[order] >= self.score_threshold]

        def refined(soft_masks: torch.Tensor) -> torch.Tensor:
            if gates is None:
                return soft_masks
            return self._propagated(soft_masks, gates, maps.image_size)

        # Groups that are large enough on the grid can have small masks after the threshold.
        scale = math.prod(out_size) / math.prod(maps.image_size)
        large, masks = masks_of_groups(
            maps,
            groups,
            order,
            out_size,
            stride=maps.stride if gates is None else self.mask_propagation.stride,
            refine=refined,
            mask_threshold=self.mask_threshold,
            min_area=max(1.0, self.min_area * scale),
        )
        instances = Instances(tuple(out_size))
        instances.pred_boxes = BitMasks(masks).get_bounding_boxes().to(masks.device)
        instances.scores = best[large]
        instances.pred_classes = classes[large]
        instances.pred_masks = masks
        return instances

    @torch.no_grad()
    def embeddings_per_loop(self, maps: ImageMaps) -> List[torch.Tensor]:
        """Returns the embedding maps (D, h, w) before the first and after each inference loop."""
        return embeddings_per_loop(maps, self.mean_shift, self.grouping)

    @torch.no_grad()
    def _training_picture(self, item: Dict, maps: ImageMaps, labels: PixelLabels) -> torch.Tensor:
        return training_picture(
            item["image"],
            self.input_format,
            maps,
            labels,
            self._groups(maps, len(labels.classes)),
            self.embeddings_per_loop(maps),
        )


def _score_threshold(cfg: CfgNode) -> float:
    """Returns the larger of this model's threshold and that of Detectron2's demo."""
    common = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    if common == get_cfg().MODEL.ROI_HEADS.SCORE_THRESH_TEST:  # it has not been set
        common = 0.0
    return max(cfg.MODEL.RPE.SCORE_THRESH_TEST, common)


class _Prediction(NamedTuple):
    """Outputs of the network for a batch.

    Attributes:
        maps: predictions of the embedding head.
        sizes: (H, W) of each image without padding.
        gates: (B, 1, K, h, w) gates of the refinement, or None.
    """

    maps: EmbeddingMaps
    sizes: List[Tuple[int, int]]
    gates: Optional[torch.Tensor]

    def image(self, index: int) -> Tuple[ImageMaps, Optional[torch.Tensor]]:
        """Returns the maps and the gates of one image."""
        gates = None if self.gates is None else self.gates[index]
        return self.maps.image(index, self.sizes[index]), gates
