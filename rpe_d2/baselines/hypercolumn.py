"""Hypercolumns (Hariharan et al., CVPR 2015): pixels of a box classified by all of a network's layers above them."""

from typing import Any, Dict, List, Union

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ROIAlign, ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads.mask_head import (
    BaseMaskRCNNHead,
    mask_rcnn_inference,
    mask_rcnn_loss,
)
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn import functional as F

from .classifier_grid import grid_weights, mix_classifiers


@ROI_MASK_HEAD_REGISTRY.register()
class HypercolumnMaskHead(BaseMaskRCNNHead):
    """A linear classifier of the hypercolumn, one for each class and cell of a grid over the box.

    The hypercolumn of a pixel is what all chosen layers have there, each interpolated to the resolution of the masks. A
    linear classifier of it is the sum of one classifier for each layer, a 1x1 convolution on the layer's own map; only
    its scores are interpolated (section 4). Of all classes only those that occur in the batch are convolved, and only
    the region's own, in training the true one, is read inside of it. A grid of classifiers, mixed bilinearly, lets the
    same features mean different things in different parts of the box.

    It takes whole maps, of any channels and strides, in any Mask R-CNN:

    * ``MODEL.ROI_MASK_HEAD.NAME: HypercolumnMaskHead`` and ``POOLER_TYPE: ""``: the maps in
      ``MODEL.ROI_HEADS.IN_FEATURES``.
    * With ``MODEL.ROI_HEADS.NAME: GuidedROIHeads`` (or ``GuidedCascadeROIHeads``) those in
      ``MODEL.ROI_MASK_HEAD.IN_FEATURES``, as the paper's pool3, pool4 and fc7.

    The paper trains the classifiers on boxes of another detector and takes pixels to superpixels in the end; here they
    learn with the network, on its proposals, and masks are cut as they are.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        num_classes: int,
        grid: int,
        resolution: int,
        sampling_ratio: int,
        **kwargs: Any,
    ):
        """
        Args:
            input_shape: of the maps.
            num_classes: of the masks; 1: the same classifiers for all.
            grid: K of the K x K classifiers.
            resolution: m, of the masks.
            sampling_ratio: samples each way in a pixel of a mask; 0: as many as the map has cells there.
            kwargs: of BaseMaskRCNNHead.
        """
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.grid = grid
        self.aligns = {
            name: ROIAlign((resolution,) * 2, 1 / shape.stride, sampling_ratio, aligned=True)
            for name, shape in input_shape.items()
        }
        # Only the sum of the layers' biases would count.
        self.classifiers = nn.ModuleDict(
            {
                name.replace(".", "_"): nn.Conv2d(
                    shape.channels, num_classes * grid**2, 1, bias=not number
                )
                for number, (name, shape) in enumerate(input_shape.items())
            }
        )
        for layer in self.classifiers.values():
            nn.init.normal_(layer.weight, std=0.001)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        self.register_buffer("weights", grid_weights(grid, resolution), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Union[ShapeSpec, Dict[str, ShapeSpec]]):
        head, columns = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.HYPERCOLUMN
        if not isinstance(input_shape, dict):
            raise ValueError(
                f'MODEL.ROI_MASK_HEAD.POOLER_TYPE is {head.POOLER_TYPE!r}; allowed with HypercolumnMaskHead: ""'
            )
        for key in ("GRID", "RESOLUTION"):
            if columns[key] < 1:
                raise ValueError(f"MODEL.HYPERCOLUMN.{key} is {columns[key]}; allowed: 1 or more")
        arguments = super().from_config(cfg, input_shape)
        arguments.update(
            input_shape=input_shape,
            num_classes=1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            grid=columns.GRID,
            resolution=columns.RESOLUTION,
            sampling_ratio=head.POOLER_SAMPLING_RATIO,
        )
        return arguments

    def forward(
        self, x: Dict[str, torch.Tensor], instances: List[Instances]
    ) -> Union[Dict[str, torch.Tensor], List[Instances]]:
        """
        Args:
            x: the backbone's maps.
            instances: in training with ``proposal_boxes``, ``gt_classes`` and ``gt_masks``, else with ``pred_boxes``
                and ``pred_classes``.

        Returns:
            Losses in training; else the instances with ``pred_masks`` (R, 1, m, m) float32 in 0-1.
        """
        boxes = [i.proposal_boxes if self.training else i.pred_boxes for i in instances]
        classes = torch.cat([i.gt_classes if self.training else i.pred_classes for i in instances])
        logits = self.layers(x, boxes, classes).unsqueeze(1)
        if self.training:
            loss = mask_rcnn_loss(logits, instances, self.vis_period)
            return {"loss_mask": loss * self.loss_weight}
        mask_rcnn_inference(logits, instances)
        return instances

    def layers(
        self, x: Dict[str, torch.Tensor], boxes: List[Boxes], classes: torch.Tensor
    ) -> torch.Tensor:
        """Mask logits (R, m, m) float32 of boxes, each for its class (R,)."""
        if self.num_classes == 1:
            classes = torch.zeros_like(classes)
        # Without any region one class is convolved all the same: parameters take part, as distributed training demands.
        present, column = torch.unique(
            classes if len(classes) else classes.new_zeros(1), return_inverse=True
        )
        regions = convert_boxes_to_pooler_format(boxes)
        # A class of an image is a picture of its own, with the grid's classifiers for channels.
        regions[:, 0] = regions[:, 0] * len(present) + column[: len(regions)]
        scores: Union[int, torch.Tensor] = 0
        for (name, align), layer in zip(self.aligns.items(), self.classifiers.values()):
            parts = (
                None if p is None else p.unflatten(0, (self.num_classes, -1))[present].flatten(0, 1)
                for p in (layer.weight, layer.bias)
            )
            maps = F.conv2d(x[name], *parts).unflatten(1, (len(present), -1)).flatten(0, 1)
            scores = scores + align(maps.to(self.weights), regions)  # (R, K K, m, m)
        return mix_classifiers(scores, self.weights)
