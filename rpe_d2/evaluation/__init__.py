"""Evaluators."""

from .instance_evaluator import InstanceEvaluator
from .mask_proposal_evaluator import MaskProposalEvaluator

__all__ = ["InstanceEvaluator", "MaskProposalEvaluator"]
