"""Instance segmentation by recurrent pixel embeddings."""

import logging
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import get_event_storage
from torch.nn import functional as F

from rpe_d2.config import check_config
from rpe_d2.ops.sphere import min_margin

from ..embedding.grouping import PixelGrouping, PixelGroups
from ..embedding.head import EmbeddingHead, EmbeddingMaps
from ..embedding.labels import IGNORED, PixelLabels, pixel_labels
from ..embedding.loss import EmbeddingLoss
from ..embedding.mean_shift_layer import MeanShiftLayer
from ..embedding.quality_head import QualityHead, best_match, quality_loss
from ..embedding.training_pictures import loop_embeddings, training_picture
from ..layers import resize_maps
from ..masks import soft_mask_boxes, soft_masks_to_proposals, suppress_overlaps
from ..soft_masks import masks_on_grid, upsample_masks
from ..spn import MaskPropagation, propagation_loss
from .padded_input import PaddedInput

logger = logging.getLogger("rpe_d2")

REFINEMENTS = ("", "spn")
# Groups that cover less of an object (IoU) are not trained to become it.
_REFINABLE_IOU = 0.5


@META_ARCH_REGISTRY.register()
class PixelEmbeddingNet(PaddedInput):
    """Recurrent pixel embedding for instance grouping (Kong & Fowlkes, CVPR 2018).

    Input and output are Detectron2's: a list of dicts with ``image`` (C, H, W) and, in training, ``instances`` and
    optionally ``ignore_mask`` (H, W) bool; ``num_instances`` where the grouping is an oracle. Inference gives
    ``{"instances"}`` with full-resolution boolean ``pred_masks``, their tight ``pred_boxes``, ``scores`` and ``pred_classes``, and on request ``"proposals"`` and
    ``"sem_seg"``.
    """

    dataset_mapper_name = "PixelLabelMapper"
    num_classes_keys = {"thing": "MODEL.RPE.NUM_CLASSES"}
    default_confidence_threshold = 0.1  # its instances hardly overlap

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        embedding_head: EmbeddingHead,
        embedding_loss: EmbeddingLoss,
        mean_shift: MeanShiftLayer,
        grouping: PixelGrouping,
        quality_head: QualityHead,
        quality_loss_weight: float,
        quality_images: int,
        mask_propagation: Optional[MaskPropagation],
        propagation_loss_weight: float,
        detections_per_image: int,
        score_threshold: float,
        mask_threshold: float,
        min_area: float,
        overlap_threshold: float,
        return_proposals: bool,
        proposal_mask_size: int,
        return_sem_seg: bool,
        pixel_mean: Tuple[float, ...],
        pixel_std: Tuple[float, ...],
        input_format: str,
        vis_period: int,
    ):
        """
        Args:
            backbone, embedding_head, embedding_loss, mean_shift, grouping: the parts, in the order of the data flow.
            quality_head: None ranks by class probability alone.
            quality_loss_weight: factor of its loss.
            quality_images: images of a batch on which it and the refinement are trained; 0: all.
            mask_propagation: refines the instances' soft masks; None: they stay.
            propagation_loss_weight: factor of its loss.
            detections_per_image: the best instances kept.
            score_threshold: instances below it are dropped.
            mask_threshold: where soft masks are cut.
            min_area: smallest mask in pixels of the image.
            overlap_threshold: of groups of several scales, see
                :func:`rpe_d2.modeling.masks.suppress_overlaps`.
            return_proposals, proposal_mask_size, return_sem_seg: additional outputs.
            pixel_mean, pixel_std: per channel.
            input_format: channel order of the images, for pictures.
            vis_period: iterations between training pictures; 0: none.
        """
        strides = [embedding_head.stride]
        if mask_propagation is not None:
            strides.append(mask_propagation.stride)
        super().__init__(backbone, pixel_mean, pixel_std, strides)
        self.embedding_head = embedding_head
        self.embedding_loss = embedding_loss
        self.mean_shift = mean_shift
        self.grouping = grouping
        self.quality_head = quality_head
        self.quality_loss_weight = quality_loss_weight
        self.quality_images = quality_images
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
    def from_config(cls, cfg):
        check_config(cfg, "MODEL.RPE", "MODEL.MEAN_SHIFT")
        rpe = cfg.MODEL.RPE
        backbone = build_backbone(cfg)
        head = EmbeddingHead(cfg, backbone.output_shape())
        if rpe.REFINE not in REFINEMENTS:
            raise ValueError(
                f"MODEL.RPE.REFINE is {rpe.REFINE!r}; allowed: {', '.join(map(repr, REFINEMENTS))}"
            )
        refinement = None
        if rpe.REFINE == "spn":
            refinement = MaskPropagation.from_config(cfg, backbone.output_shape())
        return {
            "backbone": backbone,
            "embedding_head": head,
            "embedding_loss": EmbeddingLoss(cfg),
            "mean_shift": MeanShiftLayer(cfg),
            "grouping": PixelGrouping(cfg),
            "quality_head": QualityHead(head.feature_dim) if rpe.QUALITY else None,
            "quality_loss_weight": rpe.QUALITY_LOSS_WEIGHT,
            "quality_images": rpe.QUALITY_IMAGES,
            "mask_propagation": refinement,
            "propagation_loss_weight": cfg.MODEL.SPN.LOSS_WEIGHT,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "score_threshold": rpe.SCORE_THRESH_TEST,
            "mask_threshold": rpe.MASK_THRESHOLD,
            "min_area": rpe.MIN_AREA,
            "overlap_threshold": rpe.OVERLAP_THRESH_TEST,
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
        return ("num_instances",) if cfg.MODEL.RPE.GROUPING == "kmeans" else ()

    @classmethod
    def check_training_data(cls, cfg: CfgNode, max_instances: int) -> None:
        """Warns of settings with which grouping cannot succeed on the training data, and says what would fit."""
        rpe = cfg.MODEL.RPE
        if rpe.NEGATIVE_RADIUS > 0:
            if rpe.GROUPING == "mean_shift" and not (rpe.VOTES or rpe.SPLIT_COMPONENTS):
                logger.warning(
                    "MODEL.RPE.NEGATIVE_RADIUS lets instances that are far apart share an embedding, and nothing tells "
                    "them apart: set MODEL.RPE.VOTES or MODEL.RPE.SPLIT_COMPONENTS True"
                )
            return
        groups = max_instances + (rpe.BACKGROUND == "group")
        if groups < 2:
            return
        needed, exact = min_margin(groups, rpe.EMBEDDING_DIM)
        if needed <= rpe.MARGIN + 1e-9:
            return
        # 2 dim points are known to fit at margin 1/2, and no dimension helps below the simplex's margin.
        dim = max(rpe.EMBEDDING_DIM, -(-groups // 2))
        logger.warning(
            "MODEL.RPE.MARGIN %.3f cannot separate the %d groups of the largest training image in %d dimensions "
            "(smallest margin: %s%.3f). What fits: MODEL.RPE.EMBEDDING_DIM %d with MARGIN %.2f, or "
            "MODEL.RPE.NEGATIVE_RADIUS > 0.",
            rpe.MARGIN,
            groups,
            rpe.EMBEDDING_DIM,
            "" if exact else "at least ",
            needed,
            dim,
            max(rpe.MARGIN, 0.5),
        )

    def forward(self, batched_inputs: List[Dict[str, torch.Tensor]]) -> List[Dict]:
        """Losses in training (a dict of scalars), else :meth:`inference`."""
        if not self.training:
            return self.inference(batched_inputs)
        prediction = self._predict(batched_inputs)
        # Sums over thousands of pixels overflow half precision.
        with torch.autocast(device_type=self.device.type, enabled=False):
            return self._losses(batched_inputs, *prediction)

    def _losses(
        self, batched_inputs, maps: EmbeddingMaps, sizes, gates: Optional[torch.Tensor]
    ) -> Dict[str, torch.Tensor]:
        labels = self._labels(batched_inputs, maps)
        losses = self.embedding_loss(maps, labels, self.mean_shift)
        losses.update(self._group_losses(maps, labels, sizes, gates))
        if self.vis_period > 0:
            storage = get_event_storage()
            if storage.iter % self.vis_period == 0:
                self._put_picture(batched_inputs[0], maps, labels[0], sizes[0], storage)
        return losses

    @torch.no_grad()
    def inference(self, batched_inputs: List[Dict[str, torch.Tensor]]) -> List[Dict]:
        """Instances per image, scaled to its ``height`` and ``width``.

        Images of different sizes are run one by one: what is found in an image does not depend on the padding that
        its neighbours in the batch would bring.
        """
        if len({tuple(item["image"].shape) for item in batched_inputs}) > 1:
            return [self.inference([item])[0] for item in batched_inputs]
        maps, sizes, gates = self._predict(batched_inputs)
        with torch.autocast(device_type=self.device.type, enabled=False):
            return [
                self._output(
                    maps, index, sizes[index], item, None if gates is None else gates[index]
                )
                for index, item in enumerate(batched_inputs)
            ]

    def _output(
        self,
        maps: EmbeddingMaps,
        index: int,
        size: tuple,
        item: Dict,
        gates: Optional[torch.Tensor],
    ) -> Dict:
        groups = self.grouping(maps, index, size, self.mean_shift, item.get("num_instances"))
        scores = self._scores(maps, index, groups)
        if len(self.grouping.scales) > 1:
            kept = suppress_overlaps(
                groups.soft_masks, scores.amax(dim=1), self.overlap_threshold, self.mask_threshold
            )
            groups, scores = PixelGroups(*(part[kept] for part in groups)), scores[kept]
        out_size = (item.get("height", size[0]), item.get("width", size[1]))
        output = {"instances": self._instances(groups, scores, maps.stride, size, out_size, gates)}
        if self.return_proposals:
            masks = groups.soft_masks
            present, boxes = soft_mask_boxes(masks, maps.stride, size, self.mask_threshold)
            output["proposals"] = soft_masks_to_proposals(
                masks[present],
                scores.amax(dim=1)[present],
                boxes[present],
                maps.stride,
                size,
                out_size,
                self.mask_threshold,
                self.proposal_mask_size,
            )
        if self.return_sem_seg:
            logits = F.interpolate(
                maps.logits[index : index + 1],
                scale_factor=maps.stride,
                mode="bilinear",
                align_corners=False,
            )[0]
            output["sem_seg"] = sem_seg_postprocess(logits, size, *out_size)
        return output

    def predict_maps(
        self, batched_inputs: List[Dict[str, torch.Tensor]]
    ) -> Tuple[EmbeddingMaps, List[Tuple[int, int]]]:
        """Embeddings, class scores and votes of the padded batch, and the images' sizes (H, W)."""
        maps, sizes, _ = self._predict(batched_inputs)
        return maps, sizes

    def _predict(self, batched_inputs: List[Dict[str, torch.Tensor]]) -> "_Prediction":
        images = self.padded([self.normalized(item) for item in batched_inputs])
        features = self.backbone(images.tensor)
        gates = None
        if self.mask_propagation is not None:
            gates = self.mask_propagation.gates(features)
        return _Prediction(self.embedding_head(features), images.image_sizes, gates)

    def _labels(self, batched_inputs, maps: EmbeddingMaps) -> List[PixelLabels]:
        padded = [side * maps.stride for side in maps.logits.shape[-2:]]
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
            labels.append(pixel_labels(instances, padded, item.get("ignore_mask")))
        return labels

    def _scores(self, maps: EmbeddingMaps, index: int, groups: PixelGroups) -> torch.Tensor:
        """(R, K) score of each group as each class: class probability x estimated IoU."""
        scores = groups.class_probabilities
        if self.quality_head is None:
            return scores
        quality = self.quality_head(
            maps.features[index], groups.soft_masks, groups.agreement, maps.stride
        )
        return scores * quality.sigmoid()[:, None]

    def _group_losses(
        self,
        maps: EmbeddingMaps,
        labels: List[PixelLabels],
        sizes,
        gates: Optional[torch.Tensor],
    ) -> Dict[str, torch.Tensor]:
        """Losses of what is made of groups: the estimate of their IoU, and their refined masks."""
        parts = {"loss_quality": self.quality_head, "loss_propagation": self.mask_propagation}
        # Parameters take part even where nothing was grouped, as distributed training demands.
        losses = {
            name: sum(parameter.sum() for parameter in part.parameters()) * 0.0
            for name, part in parts.items()
            if part is not None
        }
        if not losses:
            return losses
        count = min(self.quality_images or len(labels), len(labels))
        for index in range(count):
            groups = self.grouping(maps, index, sizes[index], self.mean_shift)
            middle = slice(maps.stride // 2, None, maps.stride)
            iou, instance = best_match(
                groups.soft_masks, labels[index].instances[middle, middle], self.mask_threshold
            )
            if self.quality_head is not None:
                logits = self.quality_head(
                    maps.features[index], groups.soft_masks, groups.agreement, maps.stride
                )
                loss = quality_loss(logits, iou)
                losses["loss_quality"] += self.quality_loss_weight * loss / count
            if gates is not None:
                good = iou >= _REFINABLE_IOU
                loss = self._propagation_loss(
                    groups.soft_masks[good],
                    instance[good],
                    labels[index],
                    gates[index],
                    sizes[index],
                )
                losses["loss_propagation"] += self.propagation_loss_weight * loss / count
        return losses

    def _propagation_loss(
        self,
        soft_masks: torch.Tensor,
        instance: torch.Tensor,
        labels: PixelLabels,
        gates: torch.Tensor,
        size: Tuple[int, int],
    ) -> torch.Tensor:
        found = self._propagated(soft_masks, gates, size)
        label_map = labels.instances[: size[0], : size[1]]
        grid = size, self.mask_propagation.stride
        wanted = masks_on_grid(label_map == instance.view(-1, 1, 1), *grid)  # (R, h, w)
        ignored = masks_on_grid((label_map == IGNORED)[None], *grid)[0]
        return propagation_loss(found, wanted, counted=ignored == 0)

    def _propagated(
        self, soft_masks: torch.Tensor, gates: torch.Tensor, size: Tuple[int, int]
    ) -> torch.Tensor:
        """Soft masks on the grid of the propagation, that of the padded batch cut to the image."""
        soft_masks = resize_maps(soft_masks[None], gates.shape[-2:])[0]
        rows, columns = (-(-side // self.mask_propagation.stride) for side in size)
        return self.mask_propagation(soft_masks[:, :rows, :columns], gates)

    def _instances(
        self, groups, scores, stride, size, out_size, gates: Optional[torch.Tensor]
    ) -> Instances:
        best, classes = scores.max(dim=1)
        order = torch.argsort(best, descending=True, stable=True)[: self.detections_per_image]
        order = order[best[order] >= self.score_threshold]
        soft_masks = groups.soft_masks[order]
        if gates is not None:
            soft_masks = self._propagated(soft_masks, gates, size)
            stride = self.mask_propagation.stride
        masks = upsample_masks(soft_masks, stride, size, out_size, self.mask_threshold)
        # What was large enough on the grid may have been thinned to nothing by the threshold.
        scale = out_size[0] * out_size[1] / (size[0] * size[1])
        large = masks.flatten(1).sum(dim=1) >= max(1.0, self.min_area * scale)
        order, masks = order[large], masks[large]
        instances = Instances(tuple(out_size))
        instances.pred_boxes = BitMasks(masks).get_bounding_boxes().to(masks.device)
        instances.scores = best[order]
        instances.pred_classes = classes[order]
        instances.pred_masks = masks
        return instances

    @torch.no_grad()
    def embeddings_per_loop(
        self, maps: EmbeddingMaps, index: int, size: tuple
    ) -> List[torch.Tensor]:
        """Embedding maps (D, h, w) of one image of a batch before the first and after each inference loop."""
        threshold = self.grouping.foreground_threshold
        return loop_embeddings(maps, index, size, self.mean_shift, threshold)

    @torch.no_grad()
    def _put_picture(self, item, maps: EmbeddingMaps, labels: PixelLabels, size, storage) -> None:
        groups = self.grouping(maps, 0, size, self.mean_shift)
        loops = self.embeddings_per_loop(maps, 0, size)
        picture = training_picture(
            item["image"], self.input_format, maps, labels, groups, size, loops
        )
        storage.put_image("image, ground truth, instances, embeddings of each loop", picture)


class _Prediction(NamedTuple):
    """What the network says of a batch: maps, the images' sizes (H, W), gates (B, 1, K, h, w) of the refinement."""

    maps: EmbeddingMaps
    sizes: List[Tuple[int, int]]
    gates: Optional[torch.Tensor]
