"""Embeddings of boundaries at every output of a backbone, and what is said of a pixel from them."""

from typing import Dict, List, NamedTuple

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F

from .layers import chosen_features, enlarge_maps, normalized_conv

STRIDES = (1, 2, 4, 8)
# Of the logistic stage's first weights: its inputs are unit vectors, from which small weights make no decision.
_LOGISTIC_STD = 2.0
# Of an old mean direction in the new one, each step.
_CENTER_MOMENTUM = 0.98
# Groups, as they are numbered in labels and centres.
NO_BOUNDARY, BOUNDARY = 0, 1


class BoundaryMaps(NamedTuple):
    """What the head says of a batch, on a grid of ``stride`` pixels.

    Attributes:
        embeddings: (B, L, D, h, w) float32 unit vectors of the L levels: one an output of the backbone, then the one
            of all outputs together.
        logits: (B, L, h, w) float32, of the logistic stage.
        stride: pixels per grid cell.
    """

    embeddings: torch.Tensor
    logits: torch.Tensor
    stride: int

    def at_pixels(self) -> "BoundaryMaps":
        """The same at stride 1, interpolated linearly; embeddings are unit vectors again."""
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
    """Unit vectors at each output of the backbone and from all of them together (Kong & Fowlkes, CVPR 2018, section 5).

    Every output is convolved at its own resolution; a 1x1 convolution makes D numbers a cell of it, which are enlarged
    to a common stride and normalised. These unit vectors, concatenated, pass a 3x3 and a 1x1 convolution, which make the
    last embedding. The logistic stage is a 1x1 convolution of each embedding: a plane that cuts the sphere.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        in_features: List[str],
        stride: int,
        conv_dim: int,
        norm: str,
        embedding_dim: int,
    ):
        """
        Args:
            input_shape: channels and stride of each backbone output.
            in_features: which of them are used.
            stride: pixels per cell of what is returned, 1, 2, 4 or 8.
            conv_dim: channels of the convolutions.
            norm: any Detectron2 normalisation, "" for none.
            embedding_dim: D.
        """
        super().__init__()
        self.in_features = list(in_features)
        self.stride = stride
        self.finest_stride = min(input_shape[name].stride for name in in_features)
        self.lateral = nn.ModuleDict()
        self.embedding = nn.ModuleDict()
        self.ratios = {}  # of a convolved output's stride to the common one
        for name in in_features:
            shape = input_shape[name]
            shrink = max(1, stride // shape.stride)
            self.lateral[name] = normalized_conv(shape.channels, conv_dim, 3, norm, shrink)
            self.embedding[name] = nn.Conv2d(conv_dim, embedding_dim, 1)
            self.ratios[name] = max(1, shape.stride // stride)
        self.fusion = nn.Sequential(
            normalized_conv(embedding_dim * len(in_features), conv_dim, 3, norm),
            nn.Conv2d(conv_dim, embedding_dim, 1),
        )
        self.num_levels = len(in_features) + 1
        # One plane a level.
        self.logistic = nn.Conv2d(
            self.num_levels * embedding_dim, self.num_levels, 1, groups=self.num_levels
        )
        nn.init.normal_(self.logistic.weight, std=_LOGISTIC_STD)
        nn.init.zeros_(self.logistic.bias)
        self.centers = GroupCenters(self.num_levels, embedding_dim)

    @classmethod
    def from_config(cls, cfg, input_shape: Dict[str, ShapeSpec]):
        boundary = cfg.MODEL.BOUNDARY
        in_features = chosen_features(
            "MODEL.BOUNDARY.IN_FEATURES", boundary.IN_FEATURES, input_shape
        )
        if boundary.STRIDE not in STRIDES:
            raise ValueError(f"MODEL.BOUNDARY.STRIDE is {boundary.STRIDE}; allowed: 1, 2, 4, 8")
        return {
            "input_shape": input_shape,
            "in_features": in_features,
            "stride": boundary.STRIDE,
            "conv_dim": boundary.CONV_DIM,
            "norm": boundary.NORM,
            "embedding_dim": boundary.EMBEDDING_DIM,
        }

    @property
    def level_names(self) -> List[str]:
        return [*self.in_features, "all"]

    def forward(self, features: Dict[str, torch.Tensor]) -> BoundaryMaps:
        """
        Args:
            features: the backbone's maps, (B, C_i, H / stride_i, W / stride_i).

        Returns:
            :class:`BoundaryMaps` for the padded pictures, h = H / stride, w = W / stride.
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
    """(B, D, h, w) float32 of length 1."""
    return F.normalize(maps.float(), dim=1)


class GroupCenters(nn.Module):
    """Running mean directions of the two groups at every level: what the pair loss alone leaves to score pixels by."""

    def __init__(self, num_levels: int, dim: int):
        super().__init__()
        # Their length says how much has been seen, and how little a group scatters; only the direction is used.
        self.register_buffer("means", torch.zeros(num_levels, 2, dim))

    @torch.no_grad()
    def update(self, embeddings: torch.Tensor, labels: torch.Tensor) -> None:
        """
        Args:
            embeddings: (L, P, D) unit vectors.
            labels: (P,) NO_BOUNDARY or BOUNDARY. A group without pixels stays where it was.
        """
        for group in (NO_BOUNDARY, BOUNDARY):
            chosen = embeddings[:, labels == group]
            if chosen.shape[1] and bool(chosen.isfinite().all()):
                self.means[:, group].lerp_(chosen.mean(dim=1).to(self.means), 1 - _CENTER_MOMENTUM)

    def scores(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Where between the centres a pixel lies: its cosine distance from the one as a share of both.

        Args:
            embeddings: (B, L, D, h, w) unit vectors.

        Returns:
            (B, L, h, w) 0-1: 1 at the boundaries' centre, 0 at the others', 0.5 where both are equally far, and
            everywhere before training.
        """
        directions = F.normalize(self.means, dim=2)
        # Clamped: rounding may take a cosine above 1.
        distance = (1 - torch.einsum("bldhw,lgd->blghw", embeddings, directions)).clamp(min=0)
        tiny = 1e-6
        return (distance[:, :, NO_BOUNDARY] + tiny) / (distance.sum(dim=2) + 2 * tiny)
