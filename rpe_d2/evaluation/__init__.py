"""Evaluators of instances, proposals, semantic label maps and contours."""

from .best_iou_evaluator import BestIoUEvaluator
from .boundary_ap_evaluator import BoundaryAPEvaluator
from .bsds_boundary_evaluator import BSDSBoundaryEvaluator
from .dense_crf import DenseCRF, DenseCRFEvaluator
from .field_metrics_evaluator import FieldMetricsEvaluator
from .instance_evaluator import InstanceSegmentationEvaluator
from .mask_proposal_evaluator import MaskProposalEvaluator
from .part_f_score_evaluator import PartFScoreEvaluator
from .sparse_color_evaluator import SparseColorEvaluator, color_errors
from .voc_instance_evaluator import VOCInstanceEvaluator

__all__ = [
    "BSDSBoundaryEvaluator",
    "BestIoUEvaluator",
    "BoundaryAPEvaluator",
    "DenseCRF",
    "DenseCRFEvaluator",
    "FieldMetricsEvaluator",
    "InstanceSegmentationEvaluator",
    "MaskProposalEvaluator",
    "PartFScoreEvaluator",
    "SparseColorEvaluator",
    "VOCInstanceEvaluator",
    "color_errors",
]
