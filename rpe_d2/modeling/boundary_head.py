"""A head for contour detection that embeds the pixels at every output of a backbone."""

from typing import Dict, List, NamedTuple, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F

from .argument_checks import check_choice, check_range
from .layers import chosen_features, enlarge_maps, normalized_conv

STRIDES = (1, 2, 4, 8)
# Standard deviation of the initial logistic weights. The inputs are unit vectors, so that small
# weights would keep all probabilities close to 0.5.
_LOGISTIC_STD = 2.0
# Momentum of the running means of the two groups.
_CENTER_MOMENTUM = 0.98
# Indices of the two groups in labels and centers.
NON_BOUNDARY, BOUNDARY = 0, 1


class BoundaryMaps(NamedTuple):
    """Predictions of the head for a batch, on a grid of ``stride`` pixels per cell.

    Attributes:
        embeddings: (B, L, D, h, w) float32 unit vectors at L levels: one level per output of the
            backbone, then one level that fuses all of them.
        logits: (B, L, h, w) float32 boundary logits of the logistic stage.
        stride: pixels per grid cell.
    """

    embeddings: torch.Tensor
    logits: torch.Tensor
    stride: int

    def at_pixels(self) -> "BoundaryMaps":
        """Interpolates the maps bilinearly to stride 1 and normalizes the embeddings again."""
        if self.stride == 1:
            return self
        batch, levels, dim, height, width = self.embeddings.shape
        stacked = torch.cat([self.embeddings.flatten(1, 2), self.logits], dim=1)
        size = [height * self.stride, width * self.stride]
        stacked = enlarge_maps(stacked, self.stride, size)
        embeddings, logits = stacked.split([levels * dim, levels], dim=1)
        embeddings = F.normalize(embeddings.unflatten(1, (levels, dim)), dim=2)
        return BoundaryMaps(embeddings, logits, 1)


class BoundaryHead(nn.Module):
    """Embeds pixels at each output of the backbone and from all of them together.

    Every output is convolved at its own resolution. A 1x1 convolution predicts D values per cell,
    which are enlarged to a common stride and normalized. A 3x3 and a 1x1 convolution of the
    concatenated embeddings predict the fused embedding. The logistic stage is a 1x1 convolution of
    each embedding. Source: Kong & Fowlkes, CVPR 2018, section 5.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        in_features: Sequence[str] = (),
        stride: int = 4,
        conv_dim: int = 64,
        norm: str = "GN",
        embedding_dim: int = 3,
    ):
        """
        Args:
            input_shape: channels and stride of each backbone output.
            in_features: the backbone outputs to use; all if empty.
            stride: stride of the predictions in pixels, 1, 2, 4 or 8.
            conv_dim: channels of the convolutions.
            norm: any normalization of Detectron2's ``get_norm``; "" for none.
            embedding_dim: dimension D of the embeddings.
        """
        super().__init__()
        check_choice("stride", stride, STRIDES)
        check_range("conv_dim", conv_dim, 1)
        check_range("embedding_dim", embedding_dim, 1)
        in_features = chosen_features("in_features", in_features, input_shape)
        self.in_features = in_features
        self.stride = stride
        self.finest_stride = min(input_shape[name].stride for name in in_features)
        self.lateral = nn.ModuleDict()
        self.embedding = nn.ModuleDict()
        # Factor by which each convolved output is enlarged to the common stride.
        self.ratios: Dict[str, int] = {}
        for name in in_features:
            shape = input_shape[name]
            downsampling = max(1, stride // shape.stride)
            self.lateral[name] = normalized_conv(shape.channels, conv_dim, 3, norm, downsampling)
            self.embedding[name] = nn.Conv2d(conv_dim, embedding_dim, 1)
            self.ratios[name] = max(1, shape.stride // stride)
        self.fusion = nn.Sequential(
            normalized_conv(embedding_dim * len(in_features), conv_dim, 3, norm),
            nn.Conv2d(conv_dim, embedding_dim, 1),
        )
        self.num_levels = len(in_features) + 1
        # One group per level: every logit depends on the embedding of its own level only.
        self.logistic = nn.Conv2d(
            self.num_levels * embedding_dim, self.num_levels, 1, groups=self.num_levels
        )
        nn.init.normal_(self.logistic.weight, std=_LOGISTIC_STD)
        nn.init.zeros_(self.logistic.bias)
        self.centers = GroupCenters(self.num_levels, embedding_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Dict[str, ShapeSpec]):
        boundary = cfg.MODEL.BOUNDARY
        return {
            "input_shape": input_shape,
            "in_features": chosen_features(
                "MODEL.BOUNDARY.IN_FEATURES", boundary.IN_FEATURES, input_shape
            ),
            "stride": boundary.STRIDE,
            "conv_dim": boundary.CONV_DIM,
            "norm": boundary.NORM,
            "embedding_dim": boundary.EMBEDDING_DIM,
        }

    @property
    def level_names(self) -> List[str]:
        """Names of the levels: those of the backbone outputs, then "all"."""
        return [*self.in_features, "all"]

    def forward(self, features: Dict[str, torch.Tensor]) -> BoundaryMaps:
        """
        Args:
            features: feature maps of the backbone, (B, C_i, H / stride_i, W / stride_i).

        Returns:
            :class:`BoundaryMaps` of the padded images, h = H / stride, w = W / stride.
        """
        finest = max((features[name].shape[-2:] for name in self.in_features), key=sum)
        size = [-(-side * self.finest_stride // self.stride) for side in finest]
        levels = [
            _unit(enlarge_maps(self._level(features, name), self.ratios[name], size))
            for name in self.in_features
        ]
        levels.append(_unit(self.fusion(torch.cat(levels, dim=1))))
        embeddings = torch.stack(levels, dim=1)  # (B, L, D, h, w)
        logits = self.logistic(embeddings.flatten(1, 2)).float()
        return BoundaryMaps(embeddings, logits, self.stride)

    def _level(self, features: Dict[str, torch.Tensor], name: str) -> torch.Tensor:
        return self.embedding[name](self.lateral[name](features[name]))


def _unit(maps: torch.Tensor) -> torch.Tensor:
    """Normalizes (B, D, h, w) to float32 unit vectors."""
    return F.normalize(maps.float(), dim=1)


class GroupCenters(nn.Module):
    """Running means of the embeddings of boundary and other pixels at every level.

    They are used to score pixels if only the pair loss is trained, without the logistic stage.
    """

    def __init__(self, num_levels: int, dim: int):
        """
        Args:
            num_levels: number L of levels.
            dim: dimension D of the embeddings.
        """
        super().__init__()
        # Only the directions are used. The lengths depend on the number of updates and on how much
        # a group scatters.
        self.register_buffer("means", torch.zeros(num_levels, 2, dim))

    @torch.no_grad()
    def update(self, embeddings: torch.Tensor, labels: torch.Tensor) -> None:
        """Updates the running means; the mean of a group without pixels does not change.

        Args:
            embeddings: (L, P, D) unit vectors of P pixels.
            labels: (P,) int64 BOUNDARY or NON_BOUNDARY.
        """
        for group in (NON_BOUNDARY, BOUNDARY):
            chosen = embeddings[:, labels == group]
            if chosen.shape[1] and bool(chosen.isfinite().all()):
                self.means[:, group].lerp_(chosen.mean(dim=1).to(self.means), 1 - _CENTER_MOMENTUM)

    def scores(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Scores pixels by their cosine distances d from the two centers.

        Args:
            embeddings: (B, L, D, h, w) unit vectors.

        Returns:
            (B, L, h, w) d(non-boundary) / (d(non-boundary) + d(boundary)), in 0-1. The score is 1
            at the center of the boundary pixels and 0 at the other one. It is 0.5 where both
            distances are equal, which includes all pixels before training.
        """
        directions = F.normalize(self.means, dim=2)
        # Rounding can make a cosine larger than 1.
        distance = (1 - torch.einsum("bldhw,lgd->blghw", embeddings, directions)).clamp(min=0)
        epsilon = 1e-6
        return (distance[:, :, NON_BOUNDARY] + epsilon) / (distance.sum(dim=2) + 2 * epsilon)
