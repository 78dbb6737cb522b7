"""Evaluators of instances, proposals, semantic label maps, contours and pairs of frames."""

from .best_iou_evaluator import BestIoUEvaluator
from .boundary_ap_evaluator import BoundaryAPEvaluator
from .bsds_boundary_evaluator import BSDSBoundaryEvaluator
from .dense_crf import DenseCRF
from .field_metrics_evaluator import FieldMetricsEvaluator
from .frame_pair_evaluator import FramePairEvaluator
from .instance_evaluator import InstanceSegmentationEvaluator
from .mask_proposal_evaluator import MaskProposalEvaluator
from .part_f_score_evaluator import PartFScoreEvaluator
from .refined_scores import RefinedScoresEvaluator
from .sparse_color_evaluator import SparseColorEvaluator, color_errors
from .superpixel_vote import SuperpixelVote
from .voc_instance_evaluator import VOCInstanceEvaluator

__all__ = [
    "BSDSBoundaryEvaluator",
    "BestIoUEvaluator",
    "BoundaryAPEvaluator",
    "DenseCRF",
    "FieldMetricsEvaluator",
    "FramePairEvaluator",
    "InstanceSegmentationEvaluator",
    "MaskProposalEvaluator",
    "PartFScoreEvaluator",
    "RefinedScoresEvaluator",
    "SparseColorEvaluator",
    "SuperpixelVote",
    "VOCInstanceEvaluator",
    "color_errors",
]
