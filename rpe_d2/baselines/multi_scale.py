"""Scene parsing from one network at several scales."""

from typing import Dict, Optional

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from rpe_d2.modeling.embedding.pixel_losses import SemanticPairLoss
from rpe_d2.modeling.layers import chosen_features, enlarge_maps, normalized_conv
from rpe_d2.modeling.sem_seg.sem_seg_head import SemSegHead, SemSegMaps, pixel_predictor


@SEM_SEG_HEADS_REGISTRY.register()
class MultiScaleSemSegHead(SemSegHead):
    """Classifies pixels by the maps of all scales, one above the other (Farabet et al., PAMI 2013, sections 3-4.1).

    Maps are enlarged to the finest one's size and concatenated; a two-layer perceptron per pixel follows. The scales
    are the backbone's: ``build_guided_backbone`` with ``MODEL.GUIDED_BACKBONE.SCALES [1.0, 0.5, 0.25]`` and ``PYRAMID
    laplacian`` runs one network on three bands of the picture, with outputs res4, res4@0.5 and res4@0.25.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        hidden_dim: int,
        norm: str,
        num_classes: int,
        ignore_value: int,
        loss_weight: float,
        pair_loss: Optional[SemanticPairLoss],
    ):
        """
        Args:
            input_shape: channels and stride of the maps; strides are multiples of the finest.
            hidden_dim: channels of the perceptron's hidden layer.
            norm: of that layer, any of Detectron2's, "" for none.
            num_classes: K.
            ignore_value, loss_weight, pair_loss: of :class:`SemSegHead`.
        """
        finest_stride = min(shape.stride for shape in input_shape.values())
        super().__init__(
            common_stride=finest_stride,
            ignore_value=ignore_value,
            loss_weight=loss_weight,
            pair_loss=pair_loss,
        )
        self.finest = next(n for n, shape in input_shape.items() if shape.stride == finest_stride)
        self.ratios = {name: shape.stride // finest_stride for name, shape in input_shape.items()}
        in_channels = sum(shape.channels for shape in input_shape.values())
        self.hidden = normalized_conv(in_channels, hidden_dim, 1, norm)
        self.predictor = pixel_predictor(hidden_dim, num_classes)
        self.embedding = pair_loss and pixel_predictor(hidden_dim, pair_loss.embedding_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        head, key = cfg.MODEL.SEM_SEG_HEAD, "MODEL.SEM_SEG_HEAD.IN_FEATURES"
        names = chosen_features(key, head.IN_FEATURES, input_shape)
        strides = [input_shape[name].stride for name in names]
        if any(stride % min(strides) for stride in strides) or min(strides) % 1:
            raise ValueError(
                f"{key} has the strides {', '.join(f'{s:g}' for s in strides)}; MultiScaleSemSegHead allows multiples "
                "of the smallest"
            )
        return {
            "input_shape": {name: input_shape[name] for name in names},
            "hidden_dim": head.CONVS_DIM,
            "norm": head.NORM,
            **cls.shared_options(cfg),
        }

    def predict(self, features: Dict[str, torch.Tensor]) -> SemSegMaps:
        x = self.hidden(self.stacked(features))
        embeds = self.training and self.embedding is not None
        embeddings = self.embedding(x) if embeds else None
        return SemSegMaps(self.predictor(x), embeddings, self.common_stride)

    def stacked(self, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, sum of C_i, h, w): all maps at the finest one's size."""
        size = features[self.finest].shape[-2:]
        return torch.cat(
            [enlarge_maps(features[name], ratio, size) for name, ratio in self.ratios.items()],
            dim=1,
        )
