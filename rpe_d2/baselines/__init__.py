"""The baselines that this project is compared with. Importing this package registers them."""

from .deconvnet import DeconvNetHead
from .deep_mask import DeepMask
from .fcis import FCISROIHeads
from .fcn import FCNHead
from .filter_bank import FilterBank, build_filter_bank_backbone
from .hypercolumn import HypercolumnMaskHead
from .instance_fcn import InstanceFCN
from .mnc import MNCROIHeads
from .mnc_rpn import MNCRPN
from .multi_scale import MultiScaleSemSegHead
from .recurrent_conv import RecurrentConvSemSegHead
from .sds import SDSROIHeads
from .sharp_mask import SharpMask
from .vgg16 import VGG16, build_vgg16_backbone

__all__ = [
    "DeconvNetHead",
    "DeepMask",
    "FCISROIHeads",
    "FCNHead",
    "FilterBank",
    "HypercolumnMaskHead",
    "InstanceFCN",
    "MNCROIHeads",
    "MNCRPN",
    "MultiScaleSemSegHead",
    "RecurrentConvSemSegHead",
    "SDSROIHeads",
    "SharpMask",
    "VGG16",
    "build_filter_bank_backbone",
    "build_vgg16_backbone",
]
