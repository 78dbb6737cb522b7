"""Evaluators."""

from .boundary_ap_evaluator import BoundaryAPEvaluator
from .instance_evaluator import InstanceEvaluator
from .mask_proposal_evaluator import MaskProposalEvaluator

__all__ = ["BoundaryAPEvaluator", "InstanceEvaluator", "MaskProposalEvaluator"]
