"""A mask head that refines its masks by spatial propagation."""

from collections.abc import Mapping
from typing import Any, Dict, List, Sequence, Tuple, Union

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

from ..argument_checks import check_batch, check_range
from ..backbone import IMAGE
from ..layers import resize_maps, zero_loss
from ..spn import GuidanceNetwork, PropagationHead, unit_arguments

# Names of the guidance features of an RoI, besides crops of the image.
_POOLED, _UPSAMPLED, _CROP = "pooled", "upsampled", "crop"


@ROI_MASK_HEAD_REGISTRY.register()
class SPNMaskHead(MaskRCNNConvUpsampleHead):
    """The mask head of Mask R-CNN, followed by spatial propagation (Liu et al., NIPS 2017).

    Only the mask of one class is propagated: the predicted class, or the true class in training.
    The gates do not depend on the class. The parameters of ``MaskRCNNConvUpsampleHead`` keep their
    names, and an untrained propagation is the identity, so training can continue from the weights
    of a Mask R-CNN. There is a loss before ("loss_mask") and a loss after the refinement
    ("loss_mask_refined").

    There are two modes:

    * ``MODEL.ROI_MASK_HEAD.NAME: SPNMaskHead`` in any configuration of Mask R-CNN: the pooled
      features guide the propagation.
    * ``MODEL.ROI_MASK_HEAD.POOLER_TYPE: ""``: the head pools the RoIs itself, and crops of the
      finest feature map at the resolution of the refined masks guide the propagation as well. Crops
      of the image are added with ``MODEL.BACKBONE.NAME: build_guided_backbone``,
      ``MODEL.ROI_HEADS.NAME: GuidedROIHeads`` (or ``GuidedCascadeROIHeads``) and "image" in
      ``MODEL.ROI_MASK_HEAD.IN_FEATURES``.
    """

    @configurable
    def __init__(
        self,
        input_shape: Union[ShapeSpec, Dict[str, ShapeSpec]],
        *,
        num_classes: int,
        conv_dims: Sequence[int] = (256,) * 5,
        pooler_resolution: int = 14,
        sampling_ratio: int = 0,
        resolution: int = 0,
        channels: int = 8,
        num_units: int = 2,
        gate_mode: str = "softmax",
        connections: int = 3,
        guidance_dim: int = 64,
        guidance_norm: str = "GN",
        refined_loss_weight: float = 1.0,
        **kwargs: Any,
    ):
        """
        Args:
            input_shape: shape of the pooled features, or channels and stride of the feature maps
                if the head pools the RoIs itself.
            num_classes: number of foreground classes; 1 for class-agnostic masks.
            conv_dims: channels of the 3x3 convolutions, then of the deconvolution.
            pooler_resolution: side length of the pooled features.
            sampling_ratio: see ``ROIAlign``; used if the head pools the RoIs itself.
            resolution: side length of the refined masks, a multiple of twice
                ``pooler_resolution``; 0 for exactly twice. RoI heads may provide features of
                another size: those of ``Res5ROIHeads`` have half the size. The refined masks then
                keep their ratio to the size of the features.
            channels: propagated channels, each with its own gates.
            num_units, gate_mode, connections: see :class:`PropagationUnits`.
            guidance_dim, guidance_norm: ``conv_dim`` and ``norm`` of the
                :class:`GuidanceNetwork`.
            refined_loss_weight: weight of the loss after the refinement.
            kwargs: further arguments of ``MaskRCNNConvUpsampleHead``.
        """
        check_range("refined_loss_weight", refined_loss_weight, 0)
        resolution = resolution or 2 * pooler_resolution
        _check_resolution("resolution", resolution, "pooler_resolution", pooler_resolution)
        roi_features = None
        if isinstance(input_shape, Mapping):
            roi_features = RoIFeatures(input_shape, pooler_resolution, sampling_ratio)
            input_shape = roi_features.pooled_shape
        propagation = PropagationHead(
            1, channels, num_units=num_units, gate_mode=gate_mode, connections=connections
        )
        ratio = resolution // (2 * pooler_resolution)
        guidance_shape = {
            _POOLED: ShapeSpec(channels=input_shape.channels, stride=2 * ratio),
            _UPSAMPLED: ShapeSpec(channels=conv_dims[-1], stride=ratio),
        }
        if roi_features is not None:
            guidance_shape.update(roi_features.crop_shapes)
        guidance = GuidanceNetwork(
            guidance_shape,
            out_channels=propagation.num_gates,
            stride=1,
            conv_dim=guidance_dim,
            norm=guidance_norm,
        )
        super().__init__(input_shape, num_classes=num_classes, conv_dims=conv_dims, **kwargs)
        self.propagation = propagation
        self.guidance = guidance
        self.resolution = resolution
        self.ratio = ratio  # ratio of the refined masks to the masks before the refinement
        self.roi_features = roi_features
        self.refined_loss_weight = refined_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Union[ShapeSpec, Dict[str, ShapeSpec]]):
        spn = cfg.MODEL.SPN
        arguments = super().from_config(cfg, input_shape)
        arguments.update(unit_arguments(cfg))
        pooler_resolution = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
        if spn.CHANNELS < 1:
            raise ValueError(f"MODEL.SPN.CHANNELS is {spn.CHANNELS}; allowed for masks: 1 or more")
        _check_resolution(
            "MODEL.SPN.RESOLUTION",
            spn.RESOLUTION,
            "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION",
            pooler_resolution,
        )
        arguments.update(
            pooler_resolution=pooler_resolution,
            sampling_ratio=cfg.MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO,
            resolution=spn.RESOLUTION,
            channels=spn.CHANNELS,
            guidance_dim=spn.CONV_DIM,
            guidance_norm=spn.NORM,
            refined_loss_weight=spn.LOSS_WEIGHT,
        )
        return arguments

    def forward(
        self, x: Union[torch.Tensor, Dict[str, torch.Tensor]], instances: List[Instances]
    ) -> Union[Dict[str, torch.Tensor], List[Instances]]:
        """
        Args:
            x: pooled features (R, C, h, w), or the feature maps of the backbone.
            instances: one per image, R in total. They have ``proposal_boxes``, ``gt_classes`` and
                ``gt_masks`` in training, ``pred_boxes`` and ``pred_classes`` otherwise.

        Returns:
            In training a dict of losses; otherwise the instances with ``pred_masks``
            (R, 1, M, M), float32 in 0-1. M is the resolution of the refined masks.
        """
        guidance_features = {}
        if self.roi_features is not None:
            boxes = [i.proposal_boxes if self.training else i.pred_boxes for i in instances]
            x, guidance_features = self.roi_features(x, boxes, self.resolution)
        upsampled, logits = self._upsampled_and_logits(x)
        guidance_features.update({_POOLED: x, _UPSAMPLED: upsampled})
        classes = [i.gt_classes if self.training else i.pred_classes for i in instances]
        class_logits = _select_class(logits, torch.cat(classes))
        refined = self._refine(class_logits, guidance_features)
        if not self.training:
            mask_rcnn_inference(refined, instances)
            return instances
        # The metrics that Detectron2 logs are those of the refined masks; the metrics of the
        # coarse masks get a prefix.
        with get_event_storage().name_scope("coarse"):
            coarse_loss = mask_rcnn_loss(logits, instances)
        refined_loss = mask_rcnn_loss(refined, instances, self.vis_period)
        return {
            "loss_mask": coarse_loss * self.loss_weight,
            "loss_mask_refined": refined_loss * self.refined_loss_weight,
        }

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        """Predicts mask logits (R, classes, 2h, 2w) without refinement."""
        return self._upsampled_and_logits(x)[1]

    def _upsampled_and_logits(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        for layer in (*self.conv_norm_relus, self.deconv, self.deconv_relu):
            x = layer(x)
        return x, self.predictor(x)

    def _refine(self, logits: torch.Tensor, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        """Refines logits (R, 1, m, m) to (R, 1, M, M)."""
        logits = resize_maps(logits.float(), [self.ratio * side for side in logits.shape[-2:]])
        if len(logits) == 0:  # which normalization layers do not accept
            return logits + zero_loss(self.guidance, self.propagation)
        return self.propagation(logits, self.guidance(features))


class RoIFeatures(nn.Module):
    """Pools and crops the features of RoIs for a mask head that gets whole feature maps.

    Every RoI is pooled from the feature map that fits its size, as in Mask R-CNN. Crops of the
    finest feature map and, if present, of the image have the resolution of the refined masks.
    """

    def __init__(
        self, input_shape: Dict[str, ShapeSpec], pooler_resolution: int, sampling_ratio: int = 0
    ):
        """
        Args:
            input_shape: channels and stride of the feature maps, which all have the same number of
                channels. "image" is only cropped.
            pooler_resolution: side length of the pooled features.
            sampling_ratio: see ``ROIAlign``.
        """
        super().__init__()
        names = sorted((n for n in input_shape if n != IMAGE), key=lambda n: input_shape[n].stride)
        if not names:
            raise ValueError(
                f"SPNMaskHead gets {', '.join(input_shape)} of the backbone; "
                "allowed: at least one feature map besides the image"
            )
        channels = {input_shape[name].channels for name in names}
        if len(channels) > 1:
            raise ValueError(
                f"SPNMaskHead gets feature maps {', '.join(names)} with "
                f"{', '.join(map(str, sorted(channels)))} channels; allowed: the same number in "
                "each, as in an FPN"
            )
        self.names = names
        self.pooled_shape = ShapeSpec(channels=channels.pop())
        self.pooler = ROIPooler(
            output_size=pooler_resolution,
            scales=[1 / input_shape[name].stride for name in names],
            sampling_ratio=sampling_ratio,
            pooler_type="ROIAlignV2",
        )
        self.crop_shapes = {_CROP: ShapeSpec(channels=self.pooled_shape.channels, stride=1)}
        self.crop_sources = {_CROP: (names[0], 1 / input_shape[names[0]].stride)}  # name, scale
        if IMAGE in input_shape:
            self.crop_shapes[IMAGE] = ShapeSpec(channels=input_shape[IMAGE].channels, stride=1)
            self.crop_sources[IMAGE] = (IMAGE, 1.0)
        self.sampling_ratio = sampling_ratio

    def forward(
        self, features: Dict[str, torch.Tensor], boxes: List[Boxes], resolution: int
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """
        Args:
            features: feature maps of the backbone.
            boxes: the RoIs of each image, R in total.
            resolution: side length of the crops.

        Returns:
            The pooled features (R, C, h, w), and a dict of crops
            (R, C_i, resolution, resolution).
        """
        check_batch("SPNMaskHead", len(features[self.names[0]]), len(boxes))
        pooled = self.pooler([features[name] for name in self.names], boxes)
        rois = convert_boxes_to_pooler_format(boxes)
        crops = {}
        for name, (source, scale) in self.crop_sources.items():
            align = ROIAlign((resolution, resolution), scale, self.sampling_ratio, aligned=True)
            crops[name] = align(features[source], rois)
        return pooled, crops


def _check_resolution(name: str, resolution: int, pooler_name: str, pooler_resolution: int) -> None:
    if resolution % (2 * pooler_resolution):
        raise ValueError(
            f"{name} is {resolution}; allowed: multiples of {2 * pooler_resolution}, twice "
            f"{pooler_name}, or 0 for exactly that"
        )


def _select_class(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Selects the logits (R, 1, m, m) of one class per RoI; class-agnostic logits stay as is."""
    if logits.shape[1] == 1:
        return logits
    return logits[torch.arange(len(logits), device=logits.device), classes].unsqueeze(1)
