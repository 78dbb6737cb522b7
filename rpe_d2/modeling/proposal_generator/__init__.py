from .deep_mask import DeepMask
from .instance_fcn import InstanceFCN
from .mean_shift_proposal_generator import MeanShiftProposalGenerator
from .mnc_rpn import MNCRPN
from .sharp_mask import SharpMask

__all__ = ["DeepMask", "InstanceFCN", "MNCRPN", "MeanShiftProposalGenerator", "SharpMask"]
