"""Simultaneous detection and segmentation (Hariharan et al., ECCV 2014): box and region, classified together."""

from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import (
    FastRCNNOutputLayers,
    StandardROIHeads,
    build_box_head,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import Boxes, Instances
from torch import nn

from rpe_d2.modeling.layers import resize_maps
from rpe_d2.modeling.masks import masks_in_boxes


class RegionRefinement(nn.Module):
    """From a region's features and its mask to the mask of an object of a class (section 5).

    Two classifiers of each class, both logistic: the first predicts a coarse mask from the features, the second decides
    for each cell of the fine one from the coarse mask there and whether the cell belongs to the region. The paper's
    second one decides for superpixels; cells need none.
    """

    def __init__(self, dim: int, *, num_classes: int, coarse_size: int, mask_size: int):
        """
        Args:
            dim: of the features.
            num_classes: K.
            coarse_size: side of the coarse masks.
            mask_size: M, side of the masks.
        """
        super().__init__()
        self.num_classes = num_classes
        self.coarse_size = coarse_size
        self.mask_size = mask_size
        self.coarse = nn.Linear(dim, num_classes * coarse_size**2)
        nn.init.normal_(self.coarse.weight, std=0.001)
        nn.init.zeros_(self.coarse.bias)
        # For the coarse mask's logit, the region and always: it starts as the coarse mask.
        self.combination = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]).repeat(num_classes, 1))

    def forward(
        self, x: torch.Tensor, classes: torch.Tensor, regions: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            x: (R, dim).
            classes: (R,) int64.
            regions: (R, m, m) in 0-1, inside the boxes.

        Returns:
            Logits (R, 1, coarse_size, coarse_size) of the coarse masks and (R, 1, M, M) of the combined ones.
        """
        side = self.coarse_size
        coarse = self.coarse(x).unflatten(1, (self.num_classes, side, side))
        coarse = coarse[torch.arange(len(x), device=x.device), classes].unsqueeze(1)
        size = (self.mask_size, self.mask_size)
        seen = resize_maps(regions.unsqueeze(1).to(x), size)
        # Each (R, 1, 1, 1): the same for all cells.
        on_coarse, on_region, bias = self.combination[classes][:, :, None, None, None].unbind(1)
        return coarse, on_coarse * resize_maps(coarse, size) + on_region * seen + bias


@ROI_HEADS_REGISTRY.register()
class SDSROIHeads(StandardROIHeads):
    """Two pathways: features of the box, and the same with the background of the region masked; then refined masks.

    Each pathway is a box head of ``MODEL.ROI_BOX_HEAD`` with weights of its own, trained together (the paper's network
    C); classes, and the boxes' regression, come from both. The winners' masks are predicted from the same features,
    pooled once more in the final boxes, and combined with the region (:class:`RegionRefinement`).

    The region is where the proposal is:

    * ``MODEL.PROPOSAL_GENERATOR.MASKS_IN_TRAINING: True``: the proposals' masks, in training as at inference; the
      generator has to make them (MeanShiftProposalGenerator or DeepMask, not RPN). It is one key for both, as a head that was
      trained on whole boxes would not know what to do with masks. True boxes that join the proposals (``MODEL.ROI_HEADS.
      PROPOSAL_APPEND_GT``) come with their whole box as region: true masks would tell the head what it is to predict.
    * ``False``: the whole box, also where proposals have masks; both pathways then see the same.

    Not as in the paper: features, not pixels, are masked, as in MNC, so that an image passes the backbone once; softmax
    for support vector machines; proposals are matched, regressed and suppressed by their boxes, as Detectron2 does.
    """

    @configurable
    def __init__(
        self,
        *,
        region_head: nn.Module,
        refinement: Optional[RegionRefinement],
        use_masks: bool,
        vis_period: int = 0,
        **kwargs: Any,
    ):
        """
        Args:
            region_head: like ``box_head``, on masked features.
            refinement: predicts masks; None: there are none.
            use_masks: regions are the proposals' masks.
            vis_period: steps between pictures of masks; 0: none.
            kwargs: of StandardROIHeads; ``box_predictor`` takes what both heads give.
        """
        super().__init__(**kwargs)
        self.region_head = region_head
        self.refinement = refinement
        self.use_masks = use_masks
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        sds, heads = cfg.MODEL.SDS, cfg.MODEL.ROI_HEADS
        for key in ("COARSE_SIZE", "MASK_SIZE"):
            if sds[key] < 1:
                raise ValueError(f"MODEL.SDS.{key} is {sds[key]}; allowed: 1 or more")
        if cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES is True; allowed with SDSROIHeads: False"
            )
        arguments = super().from_config(cfg, input_shape)
        refinement = None
        if cfg.MODEL.MASK_ON:
            refinement = RegionRefinement(
                arguments["box_predictor"].cls_score.in_features,
                num_classes=heads.NUM_CLASSES,
                coarse_size=sds.COARSE_SIZE,
                mask_size=sds.MASK_SIZE,
            )
        arguments.update(
            refinement=refinement,
            use_masks=cfg.MODEL.PROPOSAL_GENERATOR.MASKS_IN_TRAINING,
            vis_period=cfg.VIS_PERIOD,
        )
        return arguments

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> Dict[str, Any]:
        arguments = super()._init_box_head(cfg, input_shape)
        side = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        channels = input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
        region_head = build_box_head(cfg, ShapeSpec(channels=channels, height=side, width=side))
        shape = region_head.output_shape
        dim = shape.channels * (shape.height or 1) * (shape.width or 1)
        return {
            **arguments,
            "region_head": region_head,
            "box_predictor": FastRCNNOutputLayers(cfg, ShapeSpec(channels=2 * dim)),
        }

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> Dict[str, Any]:
        return {}  # in place of it stands the refinement

    def label_and_sample_proposals(
        self, proposals: List[Instances], targets: List[Instances]
    ) -> List[Instances]:
        if self.use_masks:
            _check_masks(proposals)
            targets = [_with_whole_box(*pair) for pair in zip(targets, proposals)]
        return super().label_and_sample_proposals(proposals, targets)

    def _forward_box(
        self, features: Dict[str, torch.Tensor], proposals: List[Instances]
    ) -> Union[Dict[str, torch.Tensor], List[Instances]]:
        if self.use_masks:
            _check_masks(proposals)
        boxes = [p.proposal_boxes for p in proposals]
        predictions = self.box_predictor(self._features(features, boxes, self._regions(proposals)))
        if self.training:
            return self.box_predictor.losses(predictions, proposals)
        found, rows = self.box_predictor.inference(predictions, proposals)
        if self.use_masks:
            for instances, source, index in zip(found, proposals, rows):
                # The region stays where it is in the picture while the box moves.
                instances.proposal_masks = masks_in_boxes(
                    source.proposal_masks.float() / 255,
                    source.proposal_boxes.tensor[index],
                    index,
                    instances.pred_boxes.tensor,
                )
        return found

    def _forward_mask(
        self, features: Dict[str, torch.Tensor], instances: List[Instances]
    ) -> Union[Dict[str, torch.Tensor], List[Instances]]:
        if self.refinement is None:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        boxes = [i.proposal_boxes if self.training else i.pred_boxes for i in instances]
        classes = torch.cat([i.gt_classes if self.training else i.pred_classes for i in instances])
        regions = self._regions(instances)
        x = self._features(features, boxes, regions)
        coarse, refined = self.refinement(x, classes, regions)
        if self.training:
            # Accuracies in the log are those of the refined masks.
            return {
                "loss_mask_coarse": mask_rcnn_loss(coarse, instances),
                "loss_mask": mask_rcnn_loss(refined, instances, self.vis_period),
            }
        mask_rcnn_inference(refined, instances)
        for found in instances:
            if found.has("proposal_masks"):
                found.remove("proposal_masks")
        return instances

    def _regions(self, instances: List[Instances]) -> torch.Tensor:
        """(R, m, m) in 0-1 inside the boxes: masks, or the whole box where there are none."""
        if self.use_masks and all(i.has("proposal_masks") for i in instances):
            masks = torch.cat([i.proposal_masks for i in instances])
            return masks / 255 if masks.dtype == torch.uint8 else masks
        count = sum(map(len, instances))
        return torch.ones(count, 1, 1, device=self.box_predictor.cls_score.weight.device)

    def _features(
        self, features: Dict[str, torch.Tensor], boxes: List[Boxes], regions: torch.Tensor
    ) -> torch.Tensor:
        """(R, dim) of both pathways."""
        x = self.box_pooler([features[name] for name in self.box_in_features], boxes)
        masked = x * resize_maps(regions.unsqueeze(1).to(x), x.shape[-2:])  # (R, C, h, w)
        parts = self.box_head(x), self.region_head(masked)
        return torch.cat([part.flatten(1) for part in parts], dim=1)


def _check_masks(proposals: List[Instances]) -> None:
    if not all(p.has("proposal_masks") for p in proposals):
        raise ValueError(
            "MODEL.PROPOSAL_GENERATOR.MASKS_IN_TRAINING is True, and MODEL.PROPOSAL_GENERATOR.NAME makes boxes without "
            "masks; allowed: a generator of masks, as MeanShiftProposalGenerator and DeepMask, or False"
        )


def _with_whole_box(target: Instances, proposals: Instances) -> Instances:
    """Ground truth that can join proposals with masks: all of its box is its region."""
    fields = dict(target.get_fields())
    masks = proposals.proposal_masks
    fields["proposal_masks"] = masks.new_full((len(target), *masks.shape[1:]), 255)
    return Instances(target.image_size, **fields)
