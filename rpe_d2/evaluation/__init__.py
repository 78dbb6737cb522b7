"""Evaluators."""

from .boundary_ap_evaluator import BoundaryAPEvaluator
from .bsds_boundary_evaluator import BSDSBoundaryEvaluator
from .instance_evaluator import InstanceEvaluator
from .mask_proposal_evaluator import MaskProposalEvaluator
from .part_f_score_evaluator import PartFScoreEvaluator

__all__ = [
    "BSDSBoundaryEvaluator",
    "BoundaryAPEvaluator",
    "InstanceEvaluator",
    "MaskProposalEvaluator",
    "PartFScoreEvaluator",
]
