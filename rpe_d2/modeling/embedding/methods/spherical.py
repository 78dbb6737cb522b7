"""The paper's method: unit vectors, the pair loss and recurrent mean shift."""

from typing import Dict

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from ..data_checks import check_separation
from ..grouping import PixelGrouping, build_grouping
from ..head import EmbeddingHead
from ..loss import EmbeddingLoss
from ..mean_shift_layer import MeanShiftLayer
from .method import EmbeddingMethod


class SphericalMethod(EmbeddingMethod):
    """Embeddings on the unit sphere (Kong & Fowlkes, CVPR 2018), with votes if they are enabled."""

    unused_keys = ()

    def build_head(self, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]) -> EmbeddingHead:
        return EmbeddingHead(cfg, input_shape)

    def build_loss(self, cfg: CfgNode) -> EmbeddingLoss:
        return EmbeddingLoss(cfg)

    def build_mean_shift(self, cfg: CfgNode) -> MeanShiftLayer:
        return MeanShiftLayer(cfg)

    def build_grouping(self, cfg: CfgNode) -> PixelGrouping:
        return build_grouping(cfg)

    def _grouping(self, cfg: CfgNode, limits: Dict[str, float]) -> PixelGrouping:
        return build_grouping(cfg)

    def check_training_data(self, cfg: CfgNode, max_instances: int) -> None:
        check_separation(cfg, max_instances)
