"""A ResNet whose last stages have dilated convolutions instead of a stride."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import ResNet, build_resnet_backbone
from torch import nn

from ..argument_checks import check_choice

RES4_DILATIONS = (1, 2)
RES5_DILATIONS = (1, 2, 4)


@BACKBONE_REGISTRY.register()
def build_dilated_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Builds Detectron2's ResNet with ``RES4_DILATION`` and ``RES5_DILATION`` of ``MODEL.RESNETS``.

    A stage with a dilation above 1 has stride 1, and all its 3x3 convolutions are dilated, as in
    Detectron2 and its DeepLab project. With the dilations 2 and 4, the outputs "res3", "res4" and
    "res5" have stride 8. Any depth works. Parameter names are the same as without dilation.
    """
    resnets = cfg.MODEL.RESNETS
    dilations = {"res4": resnets.RES4_DILATION, "res5": resnets.RES5_DILATION}
    check_choice("MODEL.RESNETS.RES4_DILATION", dilations["res4"], RES4_DILATIONS)
    check_choice("MODEL.RESNETS.RES5_DILATION", dilations["res5"], RES5_DILATIONS)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.RES5_DILATION = 1
    resnet = build_resnet_backbone(cfg, input_shape)
    for name, dilation in dilations.items():
        if dilation > 1 and hasattr(resnet, name):
            _dilate(getattr(resnet, name), dilation)
            for later in ("res4", "res5") if name == "res4" else ("res5",):
                if later in resnet._out_feature_strides:
                    resnet._out_feature_strides[later] //= 2
    return resnet


def _dilate(stage: nn.Module, dilation: int) -> None:
    for conv in stage.modules():
        if isinstance(conv, nn.Conv2d):
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (dilation, dilation)
