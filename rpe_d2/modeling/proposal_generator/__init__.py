"""Proposal generators."""

from .mean_shift_proposal_generator import MeanShiftProposalGenerator
from .precomputed_mask_proposals import PrecomputedMaskProposals

__all__ = ["MeanShiftProposalGenerator", "PrecomputedMaskProposals"]
