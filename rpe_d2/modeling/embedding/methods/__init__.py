"""Ways to embed pixels, one file each: the paper's, and those that it is compared with."""

from typing import Dict

from detectron2.config import CfgNode

from ...argument_checks import check_choice
from .associative import AssociativeGrouping, AssociativeLoss, AssociativeMethod
from .discriminative import DiscriminativeGrouping, DiscriminativeLoss, DiscriminativeMethod
from .method import EmbeddingMethod
from .method_loss import MethodLoss
from .metric_learning import MetricLearningGrouping, MetricLearningLoss, MetricLearningMethod
from .proposal_free import ProposalFreeGrouping, ProposalFreeLoss, ProposalFreeMethod
from .spatial import SpatialGrouping, SpatialLoss, SpatialMethod
from .spherical import SphericalMethod

METHODS: Dict[str, EmbeddingMethod] = {
    "spherical": SphericalMethod(),
    "discriminative": DiscriminativeMethod(),
    "associative": AssociativeMethod(),
    "metric_learning": MetricLearningMethod(),
    "spatial": SpatialMethod(),
    "proposal_free": ProposalFreeMethod(),
}

__all__ = [
    "METHODS",
    "AssociativeGrouping",
    "AssociativeLoss",
    "AssociativeMethod",
    "DiscriminativeGrouping",
    "DiscriminativeLoss",
    "DiscriminativeMethod",
    "EmbeddingMethod",
    "MethodLoss",
    "MetricLearningGrouping",
    "MetricLearningLoss",
    "MetricLearningMethod",
    "ProposalFreeGrouping",
    "ProposalFreeLoss",
    "ProposalFreeMethod",
    "SpatialGrouping",
    "SpatialLoss",
    "SpatialMethod",
    "SphericalMethod",
    "check_spherical",
    "method_of",
]


def method_of(cfg: CfgNode) -> EmbeddingMethod:
    """Returns the method that ``MODEL.RPE.LOSS`` names.

    Raises:
        ValueError: There is no such method.
    """
    check_choice("MODEL.RPE.LOSS", cfg.MODEL.RPE.LOSS, list(METHODS))
    return METHODS[cfg.MODEL.RPE.LOSS]


def check_spherical(cfg: CfgNode, component: str) -> None:
    """Checks that ``MODEL.RPE.LOSS`` is the only one that a component knows, the paper's.

    Raises:
        ValueError: It is another one.
    """
    if cfg.MODEL.RPE.LOSS != "spherical":
        raise ValueError(
            f"MODEL.RPE.LOSS is {cfg.MODEL.RPE.LOSS!r}; allowed with {component}: spherical"
        )
