"""Evaluators of instances, proposals, semantic label maps, contours and pairs of frames."""

from .best_iou_evaluator import BestIoUEvaluator
from .boundary_ap_evaluator import BoundaryAPEvaluator
from .bsds_boundary_evaluator import BSDSBoundaryEvaluator
from .dense_crf import DenseCRF, DenseCRFEvaluator
from .field_metrics_evaluator import FieldMetricsEvaluator
from .frame_pair_evaluator import FramePairEvaluator
from .instance_evaluator import InstanceSegmentationEvaluator
from .mask_proposal_evaluator import MaskProposalEvaluator
from .part_f_score_evaluator import PartFScoreEvaluator
from .voc_instance_evaluator import VOCInstanceEvaluator

__all__ = [
    "BSDSBoundaryEvaluator",
    "BestIoUEvaluator",
    "BoundaryAPEvaluator",
    "DenseCRF",
    "DenseCRFEvaluator",
    "FieldMetricsEvaluator",
    "FramePairEvaluator",
    "InstanceSegmentationEvaluator",
    "MaskProposalEvaluator",
    "PartFScoreEvaluator",
    "VOCInstanceEvaluator",
]
