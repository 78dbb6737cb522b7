"""Evaluators."""

from .bsds_boundary_evaluator import BSDSBoundaryEvaluator
from .instance_evaluator import InstanceEvaluator
from .mask_proposal_evaluator import MaskProposalEvaluator

__all__ = ["BSDSBoundaryEvaluator", "InstanceEvaluator", "MaskProposalEvaluator"]
