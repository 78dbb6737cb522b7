"""Simultaneous detection and segmentation (SDS): box and region are classified together."""

from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import (
    FastRCNNOutputLayers,
    StandardROIHeads,
    build_box_head,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import Boxes, Instances
from torch import nn

from rpe_d2.config import check_config
from rpe_d2.modeling.argument_checks import check_range
from rpe_d2.modeling.backbone import IMAGE
from rpe_d2.modeling.layers import resize_maps
from rpe_d2.modeling.masks import masks_in_boxes
from rpe_d2.modeling.superpixels import (
    SUPERPIXEL_CELLS,
    check_has_image,
    superpixel_means,
    superpixels_in_boxes,
)


class RegionRefinement(nn.Module):
    """Predicts the mask of an object from the features and the mask of a region (section 5).

    There are two logistic classifiers for each class. The first predicts a coarse mask from the
    features. The second decides for each superpixel, given the mean of the coarse mask in the
    superpixel and the fraction of it that belongs to the region. Without superpixels, it decides
    for each cell of the fine mask.
    """

    def __init__(self, dim: int, *, num_classes: int, coarse_size: int = 10, mask_size: int = 28):
        """
        Args:
            dim: number of features of a region.
            num_classes: K, the number of foreground classes.
            coarse_size: side length of the coarse masks.
            mask_size: M, the side length of the masks.
        """
        super().__init__()
        check_range("coarse_size", coarse_size, 1)
        check_range("mask_size", mask_size, 1)
        self.num_classes = num_classes
        self.coarse_size = coarse_size
        self.mask_size = mask_size
        self.coarse = nn.Linear(dim, num_classes * coarse_size**2)
        nn.init.normal_(self.coarse.weight, std=0.001)
        nn.init.zeros_(self.coarse.bias)
        # Weights of the coarse logit and of the region, and a bias. The initial mask is the coarse
        # mask.
        self.combination = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]).repeat(num_classes, 1))

    def forward(
        self,
        x: torch.Tensor,
        classes: torch.Tensor,
        regions: torch.Tensor,
        superpixels: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            x: (R, dim) features.
            classes: (R,) int64 classes.
            regions: (R, m, m) masks of the regions in [0, 1], relative to their boxes.
            superpixels: (R, M, M) int64 from 0, the superpixel of each cell of the fine masks; None
                for no superpixels.

        Returns:
            Logits (R, 1, coarse_size, coarse_size) of the coarse masks and (R, 1, M, M) of the
            refined masks.
        """
        side = self.coarse_size
        coarse = self.coarse(x).unflatten(1, (self.num_classes, side, side))
        coarse = coarse[torch.arange(len(x), device=x.device), classes].unsqueeze(1)
        size = (self.mask_size, self.mask_size)
        regions = resize_maps(regions.unsqueeze(1).to(x), size)
        fine = resize_maps(coarse, size)
        if superpixels is not None:
            fine, regions = (
                superpixel_means(part.squeeze(1), superpixels).unsqueeze(1)
                for part in (fine, regions)
            )
        # Each is (R, 1, 1, 1), the same for all cells.
        coarse_weight, region_weight, bias = self.combination[classes][
            :, :, None, None, None
        ].unbind(1)
        refined = coarse_weight * fine + region_weight * regions + bias
        return coarse, refined


@ROI_HEADS_REGISTRY.register()
class SDSROIHeads(StandardROIHeads):
    """RoI heads with two pathways and mask refinement (Hariharan et al., ECCV 2014).

    One pathway sees the features of the box, the other one the same features with the background of
    the region set to 0. Each pathway is a box head of ``MODEL.ROI_BOX_HEAD`` with its own weights;
    they are trained together (network C of the paper). The classes and the box regression are
    computed from both. The masks of the detections are predicted from the same features, pooled in
    the final boxes, and combined with the region; see :class:`RegionRefinement`.

    Regions depend on ``MODEL.PROPOSAL_GENERATOR.MASKS_IN_TRAINING``, both in training and at
    inference:

    * ``True``: the mask of the proposal. The generator has to provide masks, as
      MeanShiftProposalGenerator and PrecomputedMaskProposals do and RPN does not. The region of a
      ground-truth box that joins the proposals (``MODEL.ROI_HEADS.PROPOSAL_APPEND_GT``) is the
      whole box, because its true mask would reveal what the head has to predict.
    * ``False``: the whole box, even if proposals have masks. Both pathways then see the same.

    With ``MODEL.ROI_MASK_HEAD.SUPERPIXELS`` the masks consist of superpixels, as in the paper. They
    come from SLIC instead of MCG.

    Differences from the paper: features are masked instead of pixels, as in MNC, so an image passes
    through the backbone once. Softmax replaces support vector machines. Proposals are matched,
    regressed and suppressed by their boxes, as in Detectron2.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        box_in_features: List[str],
        box_pooler: ROIPooler,
        box_head: nn.Module,
        region_head: nn.Module,
        box_predictor: Optional[nn.Module] = None,
        mask_on: bool = True,
        coarse_size: int = 10,
        mask_size: int = 28,
        use_masks: bool = False,
        num_superpixels: int = 0,
        vis_period: int = 0,
        batch_size_per_image: int = 512,
        positive_fraction: float = 0.25,
        proposal_matcher: Optional[Matcher] = None,
        **kwargs: Any,
    ):
        """
        The defaults of arguments of ``StandardROIHeads`` are those of Detectron2's configuration.

        Args:
            num_classes: number of foreground classes.
            box_head: head of the pathway that sees the box.
            region_head: head of the pathway that sees the region, like ``box_head``.
            box_predictor: predicts classes and deltas from the features of both heads together;
                None for ``FastRCNNOutputLayers``.
            mask_on: whether to predict masks.
            coarse_size, mask_size: see :class:`RegionRefinement`.
            use_masks: whether the masks of proposals are the regions; otherwise whole boxes are.
            num_superpixels: approximate number of superpixels of an image, which needs the backbone
                output "image"; 0 for none.
            vis_period: number of steps between visualizations of masks; 0 for none.
            other arguments: see ``StandardROIHeads``.
        """
        check_range("num_superpixels", num_superpixels, 0)
        super().__init__(
            num_classes=num_classes,
            box_in_features=box_in_features,
            box_pooler=box_pooler,
            box_head=box_head,
            box_predictor=box_predictor
            or FastRCNNOutputLayers(
                ShapeSpec(channels=_output_dim(box_head) + _output_dim(region_head)),
                box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
                num_classes=num_classes,
                test_score_thresh=0.05,
            ),
            batch_size_per_image=batch_size_per_image,
            positive_fraction=positive_fraction,
            proposal_matcher=proposal_matcher or Matcher([0.5], [0, 1]),
            **kwargs,
        )
        self.region_head = region_head
        self.refinement = None
        if mask_on:
            self.refinement = RegionRefinement(
                self.box_predictor.cls_score.in_features,
                num_classes=num_classes,
                coarse_size=coarse_size,
                mask_size=mask_size,
            )
        self.use_masks = use_masks
        self.num_superpixels = num_superpixels
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        key, count = "MODEL.ROI_MASK_HEAD.SUPERPIXELS", cfg.MODEL.ROI_MASK_HEAD.SUPERPIXELS
        check_config(cfg, "MODEL.ROI_MASK_HEAD")
        check_has_image(key, count, "the backbone", input_shape)
        if cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES is True; allowed with SDSROIHeads: False"
            )
        return {
            **super().from_config(cfg, input_shape),
            "mask_on": cfg.MODEL.MASK_ON,
            "use_masks": cfg.MODEL.PROPOSAL_GENERATOR.MASKS_IN_TRAINING,
            "num_superpixels": count,
            "mask_size": SUPERPIXEL_CELLS if count else 28,
            "vis_period": cfg.VIS_PERIOD,
        }

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> Dict[str, Any]:
        arguments = super()._init_box_head(cfg, input_shape)
        side = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        channels = input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
        region_head = build_box_head(cfg, ShapeSpec(channels=channels, height=side, width=side))
        dim = _output_dim(arguments["box_head"]) + _output_dim(region_head)
        return {
            **arguments,
            "region_head": region_head,
            "box_predictor": FastRCNNOutputLayers(cfg, ShapeSpec(channels=dim)),
        }

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> Dict[str, Any]:
        return {}  # the refinement replaces the mask head

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
        detections, rows = self.box_predictor.inference(predictions, proposals)
        if self.use_masks:
            for instances, source, index in zip(detections, proposals, rows):
                # The region keeps its position in the image when the box moves.
                instances.proposal_masks = masks_in_boxes(
                    source.proposal_masks.float() / 255,
                    source.proposal_boxes.tensor[index],
                    index,
                    instances.pred_boxes.tensor,
                )
        return detections

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
        superpixels = None
        if self.num_superpixels:
            superpixels = superpixels_in_boxes(
                features[IMAGE], instances, boxes, self.num_superpixels, self.refinement.mask_size
            )
        coarse, refined = self.refinement(x, classes, regions, superpixels)
        if self.training:
            # mask_rcnn_loss logs the accuracy; the refined masks come last and overwrite it.
            return {
                "loss_mask_coarse": mask_rcnn_loss(coarse, instances),
                "loss_mask": mask_rcnn_loss(refined, instances, self.vis_period),
            }
        mask_rcnn_inference(refined, instances)
        for part in instances:
            if part.has("proposal_masks"):
                part.remove("proposal_masks")
        return instances

    def _regions(self, instances: List[Instances]) -> torch.Tensor:
        """Returns regions (R, m, m) in [0, 1] relative to their boxes: masks or whole boxes."""
        if self.use_masks and all(i.has("proposal_masks") for i in instances):
            masks = torch.cat([i.proposal_masks for i in instances])
            return masks / 255 if masks.dtype == torch.uint8 else masks
        count = sum(map(len, instances))
        return torch.ones(count, 1, 1, device=self.box_predictor.cls_score.weight.device)

    def _features(
        self, features: Dict[str, torch.Tensor], boxes: List[Boxes], regions: torch.Tensor
    ) -> torch.Tensor:
        """Computes the features (R, dim) of both pathways."""
        x = self.box_pooler([features[name] for name in self.box_in_features], boxes)
        masked = x * resize_maps(regions.unsqueeze(1).to(x), x.shape[-2:])  # (R, C, h, w)
        parts = self.box_head(x), self.region_head(masked)
        return torch.cat([part.flatten(1) for part in parts], dim=1)


def _output_dim(box_head: nn.Module) -> int:
    shape = box_head.output_shape
    return shape.channels * (shape.height or 1) * (shape.width or 1)


def _check_masks(proposals: List[Instances]) -> None:
    if not all(p.has("proposal_masks") for p in proposals):
        raise ValueError(
            "MODEL.PROPOSAL_GENERATOR.MASKS_IN_TRAINING is True, but "
            "MODEL.PROPOSAL_GENERATOR.NAME makes boxes without masks; allowed: a generator of "
            "masks such as MeanShiftProposalGenerator or PrecomputedMaskProposals, or False"
        )


def _with_whole_box(targets: Instances, proposals: Instances) -> Instances:
    """Returns ground truth that can join proposals with masks: its regions are whole boxes."""
    fields = dict(targets.get_fields())
    masks = proposals.proposal_masks
    fields["proposal_masks"] = masks.new_full((len(targets), *masks.shape[1:]), 255)
    return Instances(targets.image_size, **fields)
