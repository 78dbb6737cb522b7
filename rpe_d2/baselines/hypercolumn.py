"""Hypercolumns: the pixels of a box are classified by several layers of the network."""

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

from rpe_d2.config import check_config
from rpe_d2.modeling.argument_checks import check_batch, check_range
from rpe_d2.modeling.backbone import IMAGE
from rpe_d2.modeling.layers import resize_maps
from rpe_d2.modeling.superpixels import (
    SUPERPIXEL_CELLS,
    check_has_image,
    superpixel_means,
    superpixels_in_boxes,
)

from .classifier_grid import grid_weights, mix_classifiers


@ROI_MASK_HEAD_REGISTRY.register()
class HypercolumnMaskHead(BaseMaskRCNNHead):
    """A linear classifier of hypercolumns for each class and cell of a grid over the box.

    The hypercolumn of a pixel consists of the features that all selected layers have at the pixel,
    each interpolated to the resolution of the masks (Hariharan et al., CVPR 2015). A linear
    classifier of a hypercolumn is the sum of one classifier per layer. Each of these is a 1x1
    convolution on the feature map of the layer, and only its logits are interpolated (section 4).
    Only the classes that occur in the batch are computed. For each region, only the mask of its own
    class is used, which in training is the true class. A grid of classifiers is interpolated
    bilinearly, so that features can have different meanings in different parts of the box.

    The head takes feature maps of any channels and strides, in any Mask R-CNN:

    * ``MODEL.ROI_MASK_HEAD.NAME: HypercolumnMaskHead`` and ``POOLER_TYPE: ""`` selects the maps of
      ``MODEL.ROI_HEADS.IN_FEATURES``.
    * With ``MODEL.ROI_HEADS.NAME: GuidedROIHeads`` (or ``GuidedCascadeROIHeads``) the maps are
      those of ``MODEL.ROI_MASK_HEAD.IN_FEATURES``, such as the paper's pool3, pool4 and fc7.

    With ``MODEL.ROI_MASK_HEAD.SUPERPIXELS``, masks at inference are projected to superpixels, as in
    the paper: each pixel gets the mean probability of its superpixel inside the box. They are those
    of SLIC, on the map "image". The paper trains the classifiers on boxes of another detector. Here
    they are trained with the network, on its proposals.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        num_classes: int,
        grid: int = 5,
        resolution: int = 50,
        sampling_ratio: int = 0,
        num_superpixels: int = 0,
        **kwargs: Any,
    ):
        """
        Args:
            input_shape: channels and stride of the feature maps. With superpixels, "image" is one
                of them, and is not part of the hypercolumns.
            num_classes: number of classes of the masks; 1 for class-agnostic masks.
            grid: K; there are K x K classifiers for each class.
            resolution: m, the side length of the masks.
            sampling_ratio: see ``ROIAlign``.
            num_superpixels: approximate number of superpixels of an image; 0 for none.
            kwargs: see ``BaseMaskRCNNHead``.
        """
        super().__init__(**kwargs)
        check_range("num_classes", num_classes, 1)
        check_range("grid", grid, 1)
        check_range("resolution", resolution, 1)
        check_range("num_superpixels", num_superpixels, 0)
        check_has_image("num_superpixels", num_superpixels, "input_shape", input_shape)
        self.num_superpixels = num_superpixels
        if num_superpixels:
            input_shape = {name: shape for name, shape in input_shape.items() if name != IMAGE}
        self.num_classes = num_classes
        self.grid = grid
        self.resolution = resolution
        self.aligns = {
            name: ROIAlign((resolution,) * 2, 1 / shape.stride, sampling_ratio, aligned=True)
            for name, shape in input_shape.items()
        }
        # One bias is enough, because the logits of the layers are added.
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
        check_config(cfg, "MODEL.HYPERCOLUMN", "MODEL.ROI_MASK_HEAD")
        head = cfg.MODEL.ROI_MASK_HEAD
        if not isinstance(input_shape, dict):
            raise ValueError(
                f"MODEL.ROI_MASK_HEAD.POOLER_TYPE is {head.POOLER_TYPE!r}; "
                'allowed with HypercolumnMaskHead: ""'
            )
        key, where = "MODEL.ROI_MASK_HEAD.SUPERPIXELS", "MODEL.ROI_MASK_HEAD.IN_FEATURES"
        check_has_image(key, head.SUPERPIXELS, where, input_shape)
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_superpixels": head.SUPERPIXELS,
            "num_classes": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "resolution": cfg.MODEL.HYPERCOLUMN.RESOLUTION,
            "sampling_ratio": head.POOLER_SAMPLING_RATIO,
        }

    def forward(
        self, x: Dict[str, torch.Tensor], instances: List[Instances]
    ) -> Union[Dict[str, torch.Tensor], List[Instances]]:
        """
        Args:
            x: feature maps of the backbone.
            instances: in training with ``proposal_boxes``, ``gt_classes`` and ``gt_masks``,
                otherwise with ``pred_boxes`` and ``pred_classes``.

        Returns:
            In training a dict of losses. Otherwise the instances with ``pred_masks`` (R, 1, m, m)
            float32 in [0, 1], where m is at least 112 with superpixels.
        """
        check_batch(type(self).__name__, len(next(iter(x.values()))), len(instances))
        boxes = [i.proposal_boxes if self.training else i.pred_boxes for i in instances]
        classes = torch.cat([i.gt_classes if self.training else i.pred_classes for i in instances])
        logits = self.layers(x, boxes, classes).unsqueeze(1)
        if self.training:
            loss = mask_rcnn_loss(logits, instances, self.vis_period)
            return {"loss_mask": loss * self.loss_weight}
        mask_rcnn_inference(logits, instances)
        if self.num_superpixels:
            self._project(x[IMAGE], instances)
        return instances

    def _project(self, image: torch.Tensor, instances: List[Instances]) -> None:
        """Replaces the masks of instances by their means in superpixels."""
        size = max(SUPERPIXEL_CELLS, self.resolution)
        boxes = [part.pred_boxes for part in instances]
        superpixels = superpixels_in_boxes(image, instances, boxes, self.num_superpixels, size)
        counts = [len(part) for part in instances]
        for part, own in zip(instances, superpixels.split(counts)):
            masks = resize_maps(part.pred_masks, (size, size))
            part.pred_masks = superpixel_means(masks.squeeze(1), own).unsqueeze(1)

    def layers(
        self, x: Dict[str, torch.Tensor], boxes: List[Boxes], classes: torch.Tensor
    ) -> torch.Tensor:
        """Computes mask logits (R, m, m) float32 of boxes, each for its class (R,)."""
        if self.num_classes == 1:
            classes = torch.zeros_like(classes)
        # Without regions one class is computed anyway, because distributed training requires that
        # all parameters take part.
        present, column = torch.unique(
            classes if len(classes) else classes.new_zeros(1), return_inverse=True
        )
        rois = convert_boxes_to_pooler_format(boxes)
        # Each pair of an image and a class becomes an image of its own, whose channels are the
        # logits of the grid of classifiers.
        rois[:, 0] = rois[:, 0] * len(present) + column[: len(rois)]
        logits: Union[int, torch.Tensor] = 0
        for (name, align), layer in zip(self.aligns.items(), self.classifiers.values()):
            parameters = (
                None if p is None else p.unflatten(0, (self.num_classes, -1))[present].flatten(0, 1)
                for p in (layer.weight, layer.bias)
            )
            maps = F.conv2d(x[name], *parameters).unflatten(1, (len(present), -1)).flatten(0, 1)
            logits = logits + align(maps.to(self.weights), rois)  # (R, K K, m, m)
        return mix_classifiers(logits, self.weights)
