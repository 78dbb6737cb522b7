"""A semantic head that learns with the pair loss beside cross-entropy."""

from typing import Dict, Optional

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from ..embedding.head import EmbeddingHead, check_grid
from ..embedding.pixel_losses import SemanticPairLoss
from ..layers import chosen_features
from .sem_seg_head import SemSegHead, SemSegMaps


@SEM_SEG_HEADS_REGISTRY.register()
class EmbeddingSemSegHead(SemSegHead):
    """Classes and unit vectors from shared features: cross-entropy plus pair loss (Kong & Fowlkes, CVPR 2018, sec. 6).

    The network is :class:`rpe_d2.modeling.EmbeddingHead`. Pixels of a class are pulled together over the whole
    picture, which fills holes that cross-entropy, pixel by pixel, leaves.
    """

    usual_pair_weight = 1.0

    @configurable
    def __init__(
        self,
        *,
        embedding_head: EmbeddingHead,
        ignore_value: int,
        loss_weight: float,
        pair_loss: Optional[SemanticPairLoss],
    ):
        """
        Args:
            embedding_head: without votes; its last class counts as any other.
            ignore_value, loss_weight, pair_loss: of :class:`SemSegHead`.
        """
        super().__init__(
            common_stride=embedding_head.stride,
            ignore_value=ignore_value,
            loss_weight=loss_weight,
            pair_loss=pair_loss,
        )
        self.embedding_head = embedding_head

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        head, rpe = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.RPE
        key = "MODEL.SEM_SEG_HEAD.IN_FEATURES"
        names = chosen_features(key, head.IN_FEATURES, input_shape)
        stride = head.COMMON_STRIDE
        check_grid(key, names, "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", stride, input_shape)
        options = cls.shared_options(cfg)
        network = EmbeddingHead(
            input_shape,
            in_features=names,
            stride=stride,
            conv_dim=head.CONVS_DIM,
            num_convs=head.NUM_CONVS,
            norm=head.NORM,
            embedding_dim=rpe.EMBEDDING_DIM,
            num_classes=options.pop("num_classes") - 1,  # it adds background
            coordinates=False,
            vote_unit=None,
            max_size=None,
        )
        return {"embedding_head": network, **options}

    def predict(self, features: Dict[str, torch.Tensor]) -> SemSegMaps:
        if not self.training:
            logits = self.embedding_head.class_logits(features)
            return SemSegMaps(logits, None, self.common_stride)
        maps = self.embedding_head(features)
        return SemSegMaps(maps.logits, maps.embeddings, maps.stride)
