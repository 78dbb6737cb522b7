"""ROI heads whose mask head chooses its own maps of the backbone."""

from typing import Any, Dict

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads, build_mask_head

from ..layers import chosen_features


class MaskFeatures:
    """In ROI heads: hands the maps in ``MODEL.ROI_MASK_HEAD.IN_FEATURES`` to the mask head, whole.

    Detectron2 gives box and mask head the same maps, all of as many channels. Without that key nothing is changed.
    """

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> Dict[str, Any]:
        names = list(cfg.MODEL.ROI_MASK_HEAD.IN_FEATURES)
        if not cfg.MODEL.MASK_ON or not names:
            return super()._init_mask_head(cfg, input_shape)
        if cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE:
            raise ValueError(
                f"MODEL.ROI_MASK_HEAD.POOLER_TYPE is {cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE!r}; allowed with "
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
    """Detectron2's StandardROIHeads with a mask head on maps of its own."""


@ROI_HEADS_REGISTRY.register()
class GuidedCascadeROIHeads(MaskFeatures, CascadeROIHeads):
    """Detectron2's CascadeROIHeads with a mask head on maps of its own."""
