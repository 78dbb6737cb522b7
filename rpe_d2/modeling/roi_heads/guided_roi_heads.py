"""RoI heads whose mask head selects its own feature maps of the backbone."""

from typing import Any, Dict

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads, build_mask_head

from ..layers import chosen_features


class MaskFeatures:
    """Mixin for RoI heads that passes ``MODEL.ROI_MASK_HEAD.IN_FEATURES`` to the mask head.

    The mask head gets these feature maps without pooling. In Detectron2 the box head and the mask
    head share their feature maps, which all have the same number of channels. If the key is empty,
    nothing changes.
    """

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> Dict[str, Any]:
        name = cfg.MODEL.ROI_BOX_HEAD.NAME
        if name not in ROI_BOX_HEAD_REGISTRY:
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.NAME is {name!r}; {cls.__name__} needs a box head, allowed: "
                f"{', '.join(sorted(known for known, _ in ROI_BOX_HEAD_REGISTRY))}. C4 models have "
                "none, and work with MODEL.ROI_HEADS.NAME Res5ROIHeads"
            )
        return super()._init_box_head(cfg, input_shape)

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> Dict[str, Any]:
        mask_head = cfg.MODEL.ROI_MASK_HEAD
        names = list(mask_head.IN_FEATURES)
        if not cfg.MODEL.MASK_ON or not names:
            return super()._init_mask_head(cfg, input_shape)
        if mask_head.POOLER_TYPE:
            raise ValueError(
                f"MODEL.ROI_MASK_HEAD.POOLER_TYPE is {mask_head.POOLER_TYPE!r}; allowed with "
                'MODEL.ROI_MASK_HEAD.IN_FEATURES: ""'
            )
        chosen_features("MODEL.ROI_MASK_HEAD.IN_FEATURES", names, input_shape)
        shapes = {name: input_shape[name] for name in names}
        return {
            "mask_in_features": names,
            "mask_pooler": None,
            "mask_head": build_mask_head(cfg, shapes),
        }


@ROI_HEADS_REGISTRY.register()
class GuidedROIHeads(MaskFeatures, StandardROIHeads):
    """Detectron2's StandardROIHeads with separate feature maps for the mask head."""


@ROI_HEADS_REGISTRY.register()
class GuidedCascadeROIHeads(MaskFeatures, CascadeROIHeads):
    """Detectron2's CascadeROIHeads with separate feature maps for the mask head."""
