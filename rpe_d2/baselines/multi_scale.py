"""Scene parsing with one network at several scales."""

from typing import Any, Dict, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch.nn import functional as F

from rpe_d2.modeling.argument_checks import check_choice, check_range
from rpe_d2.modeling.layers import chosen_features, enlarge_maps, normalized_conv
from rpe_d2.modeling.sem_seg.sem_seg_head import SemSegHead, SemSegMaps, pixel_predictor

_ACTIVATIONS = {"relu": F.relu_, "tanh": torch.tanh_}


@SEM_SEG_HEADS_REGISTRY.register()
class MultiScaleSemSegHead(SemSegHead):
    """Classifies pixels by the feature maps of all scales (Farabet et al., PAMI 2013, sec. 3-4.1).

    The feature maps are enlarged to the size of the finest one and concatenated. A two-layer
    perceptron classifies each pixel. The backbone provides the scales: ``build_guided_backbone``
    with ``MODEL.GUIDED_BACKBONE.SCALES [1.0, 0.5, 0.25]`` and ``PYRAMID laplacian`` applies one
    network to three bands of the image and has outputs such as res4, res4@0.5 and res4@0.25. The
    network of the authors is ``build_filter_bank_backbone``.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        num_classes: int,
        in_features: Sequence[str] = (),
        hidden_dim: int = 128,
        norm: str = "GN",
        activation: str = "relu",
        **kwargs: Any,
    ):
        """
        Args:
            input_shape: channels and stride of the feature maps.
            num_classes: number of classes.
            in_features: the feature maps to use, whose strides are multiples of the smallest one;
                all if empty.
            hidden_dim: channels of the hidden layer of the perceptron.
            norm: normalization of that layer, any of Detectron2's ``get_norm``; "" for none.
            activation: nonlinearity of that layer, "relu" or, as in the paper, "tanh".
            kwargs: see :class:`SemSegHead`.
        """
        check_range("num_classes", num_classes, 1)
        check_range("hidden_dim", hidden_dim, 1)
        check_choice("activation", activation, list(_ACTIVATIONS))
        names = chosen_features("in_features", in_features, input_shape)
        finest_stride = _finest_stride("in_features", names, input_shape)
        super().__init__(common_stride=finest_stride, **kwargs)
        self.finest = next(name for name in names if input_shape[name].stride == finest_stride)
        self.ratios = {name: input_shape[name].stride // finest_stride for name in names}
        in_channels = sum(input_shape[name].channels for name in names)
        self.hidden = normalized_conv(in_channels, hidden_dim, 1, norm)
        self.hidden.activation = _ACTIVATIONS[activation]
        self.predictor = pixel_predictor(hidden_dim, num_classes)
        self.embedding = self.pair_loss and pixel_predictor(
            hidden_dim, self.pair_loss.embedding_dim
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        head, key = cfg.MODEL.SEM_SEG_HEAD, "MODEL.SEM_SEG_HEAD.IN_FEATURES"
        names = chosen_features(key, head.IN_FEATURES, input_shape)
        _finest_stride(key, names, input_shape)
        return {
            "input_shape": input_shape,
            "in_features": names,
            "hidden_dim": head.CONVS_DIM,
            "norm": head.NORM,
            "activation": head.ACTIVATION,
            **cls.shared_options(cfg),
        }

    def predict(self, features: Dict[str, torch.Tensor]) -> SemSegMaps:
        x = self.hidden(self.stacked(features))
        embeds = self.training and self.embedding is not None
        embeddings = self.embedding(x) if embeds else None
        return SemSegMaps(self.predictor(x), embeddings, self.common_stride)

    def stacked(self, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        """Concatenates all feature maps at the size of the finest: (B, sum of C_i, h, w)."""
        size = features[self.finest].shape[-2:]
        return torch.cat(
            [enlarge_maps(features[name], ratio, size) for name, ratio in self.ratios.items()],
            dim=1,
        )


def _finest_stride(option: str, names: Sequence[str], input_shape: Dict[str, ShapeSpec]) -> float:
    """Returns the smallest stride, which divides all others."""
    strides = [input_shape[name].stride for name in names]
    finest = min(strides)
    if finest % 1 or any(stride % finest for stride in strides):
        raise ValueError(
            f"{option} has the strides {', '.join(f'{s:g}' for s in strides)}; "
            "allowed with MultiScaleSemSegHead: multiples of the smallest"
        )
    return finest
