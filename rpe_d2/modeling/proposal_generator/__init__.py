"""Proposal generators."""

from .mean_shift_proposal_generator import MeanShiftProposalGenerator

__all__ = ["MeanShiftProposalGenerator"]
