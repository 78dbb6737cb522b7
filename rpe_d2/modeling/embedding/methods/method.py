"""Base class of the ways to embed pixels."""

import logging
from abc import ABC, abstractmethod
from typing import Dict, Optional, Tuple

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import nn

from rpe_d2.config import all_keys, value_of

from ...argument_checks import check_choice
from ..grouping import GROUPINGS, ComponentGrouping, PixelGrouping
from ..head import EmbeddingHead
from ..mean_shift_layer import MeanShiftLayer

logger = logging.getLogger("rpe_d2")

MEAN_SHIFT_KEYS = tuple(f"MODEL.MEAN_SHIFT.{name}" for name in all_keys()["MODEL.MEAN_SHIFT"])
# Keys of the spherical pair loss, its votes and its grouping, which the other methods lack.
SPHERICAL_KEYS = tuple(
    f"MODEL.RPE.{name}"
    for name in (
        *("VOTES", "VOTE_UNIT", "MAX_SIZE", "VOTE_LOSS_WEIGHT"),
        *("MARGIN", "PAIR_LOSS_FORM", "PAIR_LOSS_NORMALIZATION", "LOOP_WEIGHTS"),
        *("POSITIVE_WEIGHT", "NEGATIVE_WEIGHT", "NEGATIVE_RADIUS"),
        *("BACKGROUND", "FOREGROUND", "MERGE_COSINE"),
    )
)


class EmbeddingMethod(ABC):
    """A way to embed pixels: the form of the embeddings, their loss and their grouping.

    ``MODEL.RPE.LOSS`` names it. A method has no parameters and no state. It builds the parts of a
    model from a configuration, so that they fit each other.

    Attributes:
        unused_keys: keys that the method ignores.
    """

    unused_keys: Tuple[str, ...] = (*SPHERICAL_KEYS, *MEAN_SHIFT_KEYS)

    def build_head(self, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> EmbeddingHead:
        """Builds the head for outputs of a backbone with these channels and strides.

        By default, embeddings have ``MODEL.RPE.EMBEDDING_DIM`` dimensions and any length.
        """
        return EmbeddingHead(cfg, input_shape, vote_unit=None, max_size=None, normalize=False)

    @abstractmethod
    def build_loss(self, cfg: CfgNode) -> nn.Module:
        """Builds the losses of embeddings and classes."""

    def build_mean_shift(self, cfg: CfgNode) -> Optional[MeanShiftLayer]:
        """Builds the layer that moves pixels in training and inference, or returns None."""
        return None

    def build_grouping(self, cfg: CfgNode) -> PixelGrouping:
        """Builds the grouping of the method, or connected components as a control.

        Raises:
            ValueError: ``MODEL.RPE.GROUPING`` is not possible with the method.
        """
        rpe = cfg.MODEL.RPE
        check_choice("MODEL.RPE.GROUPING", rpe.GROUPING, GROUPINGS)
        limits = {"min_area": rpe.MIN_AREA, "max_groups": rpe.MAX_GROUPS}
        if rpe.GROUPING == "components":
            return ComponentGrouping(**limits)
        if rpe.GROUPING == "kmeans":
            raise ValueError(
                f"MODEL.RPE.GROUPING is 'kmeans'; allowed with MODEL.RPE.LOSS {rpe.LOSS}: "
                "mean_shift, the method's own grouping, or components"
            )
        return self._grouping(cfg, limits)

    @abstractmethod
    def _grouping(self, cfg: CfgNode, limits: Dict[str, float]) -> PixelGrouping:
        """Builds the method's own grouping.

        Args:
            limits: arguments of every :class:`PixelGrouping`.
        """

    def check_training_data(self, cfg: CfgNode, max_instances: int) -> None:
        """Warns about settings with which images of so many objects cannot be grouped."""

    def report_unused(self, cfg: CfgNode) -> None:
        """Logs one line with the keys that are set and that the method ignores."""
        keys = {
            f"{node}.{name}": key for node, keys in all_keys().items() for name, key in keys.items()
        }
        ignored = [
            name for name in self.unused_keys if _differ(value_of(cfg, name), keys[name].default)
        ]
        if ignored:
            logger.info("MODEL.RPE.LOSS %s ignores %s", cfg.MODEL.RPE.LOSS, ", ".join(ignored))


def _differ(value, default) -> bool:
    is_list = isinstance(default, list)
    return list(value) != default if is_list else value != default
