from .mean_shift_proposal_generator import MeanShiftProposalGenerator
from .mnc_rpn import MNCRPN

__all__ = ["MNCRPN", "MeanShiftProposalGenerator"]
