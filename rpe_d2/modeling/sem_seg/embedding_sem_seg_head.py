"""A semantic head that is trained with cross-entropy and the pair loss."""

from typing import Dict, Optional, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from ..argument_checks import check_range
from ..embedding.head import EmbeddingHead, check_grid
from ..embedding.semantic_pair_loss import SemanticPairLoss
from ..layers import chosen_features
from .sem_seg_head import IGNORE_VALUE, SemSegHead, SemSegMaps


@SEM_SEG_HEADS_REGISTRY.register()
class EmbeddingSemSegHead(SemSegHead):
    """Predicts class logits and, for the pair loss, embeddings from shared features.

    The network is :class:`rpe_d2.modeling.EmbeddingHead`. The pair loss groups the pixels of a
    class over the whole image, whereas cross-entropy treats every pixel independently (Kong &
    Fowlkes, CVPR 2018, section 6).
    """

    default_pair_loss_weight = 1.0

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        num_classes: int,
        in_features: Sequence[str] = (),
        stride: int = 4,
        conv_dim: int = 128,
        num_convs: int = 2,
        norm: str = "GN",
        embedding_dim: int = 16,
        ignore_value: int = IGNORE_VALUE,
        loss_weight: float = 1.0,
        pair_loss_weight: float = default_pair_loss_weight,
        pair_loss: Optional[SemanticPairLoss] = None,
        class_balance: float = 0.0,
    ):
        """
        Args:
            input_shape: channels and stride of the feature maps.
            num_classes: number of classes.
            in_features: the feature maps to use; all if empty.
            stride: stride of the predictions in pixels, 1, 2, 4 or 8.
            conv_dim: channels of the convolutions.
            num_convs: number of 3x3 convolutions that the predictions share.
            norm: any normalization of Detectron2's ``get_norm``; "" for none.
            embedding_dim: dimension of the embeddings.
            ignore_value: label of the pixels that enter no loss.
            loss_weight: weight of the cross-entropy.
            pair_loss_weight: weight of the default pair loss; 0 for none.
            pair_loss: replaces the default pair loss.
            class_balance: see :class:`SemSegHead`.
        """
        check_range("num_classes", num_classes, 1)
        check_range("pair_loss_weight", pair_loss_weight, 0)
        in_features = chosen_features("in_features", in_features, input_shape)
        check_grid("in_features", in_features, "stride", stride, input_shape)
        if pair_loss is None and pair_loss_weight > 0:
            pair_loss = SemanticPairLoss(
                embedding_dim=embedding_dim,
                num_points=1024,
                ignore_value=ignore_value,
                loss_weight=pair_loss_weight,
                normalization="per_term",
            )
        super().__init__(
            common_stride=stride,
            ignore_value=ignore_value,
            loss_weight=loss_weight,
            pair_loss=pair_loss,
            class_balance=class_balance,
        )
        # By keyword: @configurable takes a positional DictConfig for a configuration.
        self.embedding_head = EmbeddingHead(
            input_shape=input_shape,
            in_features=in_features,
            stride=stride,
            conv_dim=conv_dim,
            num_convs=num_convs,
            norm=norm,
            embedding_dim=embedding_dim,
            num_classes=num_classes - 1,  # the head adds a background class
            coordinates=False,
            vote_unit=None,
            max_size=None,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        head = cfg.MODEL.SEM_SEG_HEAD
        key = "MODEL.SEM_SEG_HEAD.IN_FEATURES"
        names = chosen_features(key, head.IN_FEATURES, input_shape)
        stride_key = "MODEL.SEM_SEG_HEAD.COMMON_STRIDE"
        check_grid(key, names, stride_key, head.COMMON_STRIDE, input_shape)
        return {
            "input_shape": input_shape,
            "in_features": names,
            "stride": head.COMMON_STRIDE,
            "conv_dim": head.CONVS_DIM,
            "num_convs": head.NUM_CONVS,
            "norm": head.NORM,
            "embedding_dim": cfg.MODEL.RPE.EMBEDDING_DIM,
            "pair_loss_weight": 0.0,  # "pair_loss" has its weight
            **cls.shared_options(cfg),
        }

    def predict(self, features: Dict[str, torch.Tensor]) -> SemSegMaps:
        if not self.training:
            logits = self.embedding_head.class_logits(features)
            return SemSegMaps(logits, None, self.common_stride)
        maps = self.embedding_head(features)
        return SemSegMaps(maps.logits, maps.embeddings, maps.stride)
