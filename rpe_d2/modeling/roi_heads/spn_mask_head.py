"""A mask head that refines its masks by spatial propagation."""

from typing import Any, Dict, List, Optional, Union

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ROIAlign, ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads.mask_head import (
    MaskRCNNConvUpsampleHead,
    mask_rcnn_inference,
    mask_rcnn_loss,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from ..backbone import IMAGE
from ..layers import resize_maps
from ..spn import GuidanceNetwork, PropagationHead, PropagationOptions

# Names of what guides the propagation inside a region, beside the finest of the backbone's maps.
_POOLED, _UPSAMPLED, _CROP = "pooled", "upsampled", "crop"


@ROI_MASK_HEAD_REGISTRY.register()
class SPNMaskHead(MaskRCNNConvUpsampleHead):
    """Mask R-CNN's mask head followed by two propagation units with shared gates (Liu et al., NIPS 2017).

    The mask of one class, the true one in training, is propagated: gates do not depend on the class. The head has the
    parameters of ``MaskRCNNConvUpsampleHead`` under the same names and starts by returning its masks, so that trained
    weights of Mask R-CNN go on where they were. Losses stand before ("loss_mask") and after ("loss_mask_refined").

    Two modes:

    * In any Mask R-CNN configuration ``MODEL.ROI_MASK_HEAD.NAME: SPNMaskHead``: pooled features guide.
    * ``MODEL.ROI_MASK_HEAD.POOLER_TYPE: ""``: the head crops regions itself, and the finest map of the backbone guides
      at full resolution, too. With ``MODEL.BACKBONE.NAME: build_guided_backbone``, ``MODEL.ROI_HEADS.NAME:
      GuidedROIHeads`` (or ``GuidedCascadeROIHeads``) and "image" in ``MODEL.ROI_MASK_HEAD.IN_FEATURES`` so does the
      picture.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        propagation: PropagationHead,
        guidance: GuidanceNetwork,
        resolution: int,
        regions: Optional["RegionMaps"],
        refined_loss_weight: float = 1.0,
        **kwargs: Any,
    ):
        """
        Args:
            input_shape: channels of the pooled features.
            propagation: of one map.
            guidance: on "pooled", "upsampled" and what ``regions`` crop.
            resolution: M, of the refined masks.
            regions: crops the maps of the backbone; None: features come pooled.
            refined_loss_weight: of the loss after refinement.
            kwargs: of MaskRCNNConvUpsampleHead.
        """
        super().__init__(input_shape, **kwargs)
        self.propagation = propagation
        self.guidance = guidance
        self.resolution = resolution
        self.regions = regions
        self.refined_loss_weight = refined_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Union[ShapeSpec, Dict[str, ShapeSpec]]):
        spn = cfg.MODEL.SPN
        regions = RegionMaps(cfg, input_shape) if isinstance(input_shape, dict) else None
        pooled = ShapeSpec(channels=input_shape.channels) if regions is None else regions.pooled
        arguments = super().from_config(cfg, pooled)
        coarse_resolution = 2 * cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
        resolution = spn.RESOLUTION or coarse_resolution
        if resolution % coarse_resolution:
            raise ValueError(
                f"MODEL.SPN.RESOLUTION is {resolution}; allowed: multiples of {coarse_resolution}, twice "
                "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION, or 0 for just that"
            )
        ratio = resolution // coarse_resolution
        options = PropagationOptions.from_config(cfg)
        if spn.CHANNELS < 1:
            raise ValueError(f"MODEL.SPN.CHANNELS is {spn.CHANNELS}; allowed for masks: 1 or more")
        propagation = PropagationHead(1, spn.CHANNELS, options)
        guides = {
            _POOLED: ShapeSpec(channels=pooled.channels, stride=2 * ratio),
            _UPSAMPLED: ShapeSpec(channels=arguments["conv_dims"][-1], stride=ratio),
        }
        if regions is not None:
            guides.update(regions.crops)
        arguments.update(
            propagation=propagation,
            guidance=GuidanceNetwork(
                guides,
                out_channels=propagation.num_gates,
                stride=1,
                conv_dim=spn.CONV_DIM,
                norm=spn.NORM,
            ),
            resolution=resolution,
            regions=regions,
            refined_loss_weight=spn.LOSS_WEIGHT,
        )
        return arguments

    def forward(
        self, x: Union[torch.Tensor, Dict[str, torch.Tensor]], instances: List[Instances]
    ) -> Union[Dict[str, torch.Tensor], List[Instances]]:
        """
        Args:
            x: pooled features (R, C, h, w), or the backbone's maps.
            instances: in training with ``proposal_boxes``, ``gt_classes`` and ``gt_masks``, else with ``pred_boxes``
                and ``pred_classes``; R of them in all images.

        Returns:
            Losses in training; else the instances with ``pred_masks`` (R, 1, M, M) float32 in 0-1.
        """
        guides = {}
        if self.regions is not None:
            boxes = [i.proposal_boxes if self.training else i.pred_boxes for i in instances]
            x, guides = self.regions(x, boxes, self.resolution)
        upsampled, logits = self._coarse(x)
        guides.update({_POOLED: x, _UPSAMPLED: upsampled})
        classes = [i.gt_classes if self.training else i.pred_classes for i in instances]
        refined = self._refine(_of_class(logits, torch.cat(classes)), guides)
        if not self.training:
            mask_rcnn_inference(refined, instances)
            return instances
        # Accuracies in the log under Detectron2's names are those of the refined masks.
        with get_event_storage().name_scope("coarse"):
            coarse_loss = mask_rcnn_loss(logits, instances)
        refined_loss = mask_rcnn_loss(refined, instances, self.vis_period)
        return {
            "loss_mask": coarse_loss * self.loss_weight,
            "loss_mask_refined": refined_loss * self.refined_loss_weight,
        }

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        """Mask logits (R, classes, 2h, 2w) before refinement."""
        return self._coarse(x)[1]

    def _coarse(self, x: torch.Tensor):
        for layer in (*self.conv_norm_relus, self.deconv, self.deconv_relu):
            x = layer(x)
        return x, self.predictor(x)

    def _refine(self, logits: torch.Tensor, guides: Dict[str, torch.Tensor]) -> torch.Tensor:
        """(R, 1, M, M) logits from (R, 1, m, m)."""
        logits = resize_maps(logits.float(), (self.resolution, self.resolution))
        if len(logits) == 0:
            # Normalisations fail on nothing, but parameters take part, as distributed training demands.
            unused = [*self.guidance.parameters(), *self.propagation.parameters()]
            return logits + sum(parameter.sum() for parameter in unused) * 0.0
        return self.propagation(logits, self.guidance(guides))


class RegionMaps(nn.Module):
    """What a mask head sees of a region where it crops the backbone's maps itself.

    Maps of as many channels as the finest one but the picture are pooled as in Mask R-CNN, each region from the level
    of its size; the finest one and the picture are also cropped at the resolution of the refined masks.
    """

    def __init__(self, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        """
        Args:
            cfg: of the model.
            input_shape: of the maps.
        """
        super().__init__()
        names = sorted((n for n in input_shape if n != IMAGE), key=lambda n: input_shape[n].stride)
        if not names:
            raise ValueError(
                f"SPNMaskHead gets {', '.join(input_shape)} of the backbone; needed is a map beside the picture"
            )
        channels = {input_shape[name].channels for name in names}
        if len(channels) > 1:
            raise ValueError(
                f"SPNMaskHead gets maps {', '.join(names)} of {', '.join(map(str, sorted(channels)))} channels; "
                "allowed: as many in each, as an FPN gives"
            )
        self.names = names
        self.pooled = ShapeSpec(channels=channels.pop())
        ratio = cfg.MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO
        self.pooler = ROIPooler(
            output_size=cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION,
            scales=[1 / input_shape[name].stride for name in names],
            sampling_ratio=ratio,
            pooler_type="ROIAlignV2",
        )
        self.crops = {_CROP: ShapeSpec(channels=self.pooled.channels, stride=1)}
        self.scales = {_CROP: (names[0], 1 / input_shape[names[0]].stride)}
        if IMAGE in input_shape:
            self.crops[IMAGE] = ShapeSpec(channels=input_shape[IMAGE].channels, stride=1)
            self.scales[IMAGE] = (IMAGE, 1.0)
        self.sampling_ratio = ratio

    def forward(self, features: Dict[str, torch.Tensor], boxes: List[Boxes], resolution: int):
        """
        Args:
            features: maps of the backbone.
            boxes: R regions of each image.
            resolution: of the crops.

        Returns:
            (R, C, h, w) pooled features, and the crops by name, (R, C_i, resolution, resolution).
        """
        pooled = self.pooler([features[name] for name in self.names], boxes)
        rois = convert_boxes_to_pooler_format(boxes)
        crops = {}
        for name, (source, scale) in self.scales.items():
            align = ROIAlign((resolution, resolution), scale, self.sampling_ratio, aligned=True)
            crops[name] = align(features[source], rois)
        return pooled, crops


def _of_class(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(R, 1, m, m) of (R, classes, m, m), or of one map for all classes."""
    if logits.shape[1] == 1:
        return logits
    return logits[torch.arange(len(logits), device=logits.device), classes].unsqueeze(1)
