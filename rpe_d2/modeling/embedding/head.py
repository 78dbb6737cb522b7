"""The network on top of a backbone that turns feature maps into an embedding, class scores and a vote per pixel."""

from typing import Dict, List, NamedTuple, Optional, Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F

from ..layers import chosen_features, enlarge_maps, normalized_conv, resize_maps

STRIDES = (1, 2, 4, 8)
# Shared convolutions do not run on finer maps than this: there a kernel sees little and costs much.
_FINEST_TRUNK_STRIDE = 4
_USUAL_SIZE = 16.0  # pixels


class EmbeddingMaps(NamedTuple):
    """What the head predicts for a batch, on a grid of ``stride`` pixels.

    Attributes:
        embeddings: (B, D, h, w) float32 unit vectors.
        logits: (B, K + 1, h, w) float32 class scores, the last one background.
        votes: (B, 2, h, w) float32: where in the picture (x, y, pixels) the pixel's instance has its centre; without
            votes the pixel's own position.
        sizes: (B, 1, h, w) float32: size of the pixel's instance, the square root of its area, in pixels; 0 where it
            is not predicted.
        features: (B, C, h, w) what the predictions were made from.
        stride: pixels per grid cell.
    """

    embeddings: torch.Tensor
    logits: torch.Tensor
    votes: torch.Tensor
    sizes: torch.Tensor
    features: torch.Tensor
    stride: int


class EmbeddingHead(nn.Module):
    """Sums the backbone's maps at one stride and predicts per pixel (Kong & Fowlkes, CVPR 2018, section 5).

    Every input map is convolved at its own resolution, resized to one and summed (Panoptic FPN's semantic
    branch). Shared 3x3 convolutions follow there, where a kernel sees much context at little cost; then one 3x3
    convolution for each prediction at the output stride, and 1x1 predictors. Maps finer than stride 4, such as the
    picture that ``build_guided_backbone`` passes on, are added only to what those see: they sharpen boundaries.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        *,
        in_features: List[str],
        stride: int,
        conv_dim: int,
        num_convs: int,
        norm: str,
        embedding_dim: int,
        num_classes: int,
        coordinates: bool,
        vote_unit: Optional[float],
        max_size: Optional[float],
    ):
        """
        Args:
            input_shape: channels and stride of each backbone output.
            in_features: which of them are used; at least one.
            stride: of the predictions, 1, 2, 4 or 8 pixels.
            conv_dim: channels of the convolutions.
            num_convs: shared 3x3 convolutions.
            norm: any Detectron2 normalisation, "" for none.
            embedding_dim: D.
            num_classes: K, without background.
            coordinates: append the pixel's position, scaled to -1..1 over the picture, to the summed features.
            vote_unit: predict votes, in units of this many pixels; None: no votes.
            max_size: predict sizes along with the votes, up to this many pixels; None: no sizes.
        """
        super().__init__()
        self.in_features = [n for n in in_features if input_shape[n].stride >= _FINEST_TRUNK_STRIDE]
        self.fine_features = [n for n in in_features if n not in self.in_features]
        self.stride = stride
        self.coordinates = coordinates
        self.vote_unit = vote_unit
        self.max_size = max_size
        self.finest_stride = min(input_shape[name].stride for name in self.in_features)
        # Of the sum and the shared convolutions: the output's, or the finest map's where that is coarser.
        self.trunk_stride = max(stride, self.finest_stride)
        # Of a map's stride, after its convolution, to the trunk's.
        self.ratios = {
            name: max(1, input_shape[name].stride // self.trunk_stride) for name in self.in_features
        }
        self.lateral = nn.ModuleDict(
            {
                name: normalized_conv(
                    input_shape[name].channels,
                    conv_dim,
                    3,
                    norm,
                    max(1, self.trunk_stride // input_shape[name].stride),
                )
                for name in self.in_features
            }
        )
        # Few channels and no normalisation where a map has many pixels.
        self.fine = nn.ModuleDict(
            {
                name: nn.Sequential(
                    normalized_conv(input_shape[name].channels, conv_dim // 4, 3, ""),
                    normalized_conv(
                        conv_dim // 4, conv_dim, 3, norm, max(1, stride // input_shape[name].stride)
                    ),
                )
                for name in self.fine_features
            }
        )
        first_in = conv_dim + (2 if coordinates else 0)
        self.trunk = nn.Sequential(
            *[
                normalized_conv(first_in if i == 0 else conv_dim, conv_dim, 3, norm)
                for i in range(num_convs)
            ]
        )
        trunk_dim = conv_dim if num_convs else first_in
        self.embedding = _predictor(trunk_dim, conv_dim, embedding_dim, norm)
        self.classifier = _predictor(trunk_dim, conv_dim, num_classes + 1, norm)
        vote_dim = 2 if max_size is None else 3
        self.voter = None
        if vote_unit is not None:
            self.voter = _predictor(trunk_dim, conv_dim, vote_dim, norm)
        self.feature_dim = trunk_dim

    @classmethod
    def from_config(cls, cfg, input_shape: Dict[str, ShapeSpec]):
        rpe = cfg.MODEL.RPE
        in_features = chosen_features("MODEL.RPE.IN_FEATURES", rpe.IN_FEATURES, input_shape)
        check_grid(
            "MODEL.RPE.IN_FEATURES", in_features, "MODEL.RPE.STRIDE", rpe.STRIDE, input_shape
        )
        return {
            "input_shape": input_shape,
            "in_features": in_features,
            "stride": rpe.STRIDE,
            "conv_dim": rpe.CONV_DIM,
            "num_convs": rpe.NUM_CONVS,
            "norm": rpe.NORM,
            "embedding_dim": rpe.EMBEDDING_DIM,
            "num_classes": rpe.NUM_CLASSES,
            "coordinates": rpe.COORDINATES,
            "vote_unit": rpe.VOTE_UNIT if rpe.VOTES else None,
            "max_size": rpe.MAX_SIZE if cfg.MODEL.MEAN_SHIFT.RELATIVE_BANDWIDTH > 0 else None,
        }

    def forward(self, features: Dict[str, torch.Tensor]) -> EmbeddingMaps:
        """
        Args:
            features: the backbone's maps, (B, C_i, H / stride_i, W / stride_i).

        Returns:
            :class:`EmbeddingMaps` for the padded pictures, h = H / stride, w = W / stride.
        """
        return self.levels(features, 1)[0]

    def class_logits(self, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        """Of :class:`EmbeddingMaps` the logits alone."""
        return self.classifier(self._trunk_features(features)).float()

    def levels(self, features: Dict[str, torch.Tensor], num_levels: int) -> List[EmbeddingMaps]:
        """Predictions at ``stride``, twice that, four times that, …: the same predictors on features pooled 2 x 2."""
        trunk = self._trunk_features(features)
        maps = [self._predict(trunk, self.stride)]
        for level in range(1, num_levels):
            trunk = F.avg_pool2d(trunk, 2, ceil_mode=True)
            maps.append(self._predict(trunk, self.stride << level))
        return maps

    def _trunk_features(self, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        finest = max((features[name].shape[-2:] for name in self.in_features), key=sum)
        pixels = [side * self.finest_stride for side in finest]
        size = [-(-side // self.trunk_stride) for side in pixels]
        summed = sum(
            enlarge_maps(self.lateral[name](features[name]), self.ratios[name], size)
            for name in self.in_features
        )
        if self.coordinates:
            summed = torch.cat([summed, _coordinates(summed)], dim=1)
        size = [-(-side // self.stride) for side in pixels]
        trunk = resize_maps(self.trunk(summed), size)
        for name in self.fine_features:
            trunk = trunk + resize_maps(self.fine[name](features[name]), size)
        return trunk

    def _predict(self, trunk: torch.Tensor, stride: int) -> EmbeddingMaps:
        embeddings = F.normalize(self.embedding(trunk).float(), dim=1)
        logits = self.classifier(trunk).float()
        votes = cell_centers(trunk.shape[-2:], stride, trunk.device)
        sizes = torch.zeros_like(logits[:, :1])
        if self.voter is None:
            votes = votes.expand(len(trunk), -1, -1, -1)
        else:
            predicted = self.voter(trunk).float()
            votes = votes + self.vote_unit * predicted[:, :2]
            if self.max_size is not None:
                # The network starts at the usual size.
                sizes = _USUAL_SIZE * (self.max_size / _USUAL_SIZE) ** predicted[:, 2:].tanh()
        return EmbeddingMaps(embeddings, logits, votes, sizes, trunk, stride)


def check_grid(
    features_key: str,
    names: Sequence[str],
    stride_key: str,
    stride: int,
    input_shape: Dict[str, ShapeSpec],
) -> None:
    """Checks what two keys ask of an :class:`EmbeddingHead`: its maps and its stride.

    Raises:
        ValueError: they do not allow one.
    """
    broken = [name for name in names if input_shape[name].stride % 1]
    if broken:
        raise ValueError(
            f"{features_key} is {', '.join(names)}; {broken[0]} has the stride {input_shape[broken[0]].stride:g}, "
            "allowed are whole pixels"
        )
    if all(input_shape[name].stride < _FINEST_TRUNK_STRIDE for name in names):
        raise ValueError(
            f"{features_key} is {', '.join(names)}; at least one of stride "
            f"{_FINEST_TRUNK_STRIDE} or more is needed, the backbone has {', '.join(input_shape)}"
        )
    if stride not in STRIDES:
        raise ValueError(f"{stride_key} is {stride}; allowed: 1, 2, 4, 8")


def cell_centers(size: Sequence[int], stride: int, device: torch.device) -> torch.Tensor:
    """Positions (2, h, w), x then y in pixels, of the centres of grid cells of ``stride`` pixels.

    Continuous coordinates: the first pixel's centre is at (0.5, 0.5).
    """
    y, x = ((torch.arange(side, device=device) + 0.5) * stride for side in size)
    return torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]))


def _coordinates(maps: torch.Tensor) -> torch.Tensor:
    """(B, 2, h, w) positions scaled to -1..1 over the picture."""
    centers = cell_centers(maps.shape[-2:], 1, maps.device).to(maps.dtype)
    extent = centers.new_tensor([maps.shape[-1], maps.shape[-2]]).view(2, 1, 1)
    return (2 * centers / extent - 1).expand(len(maps), -1, -1, -1)


def _predictor(in_channels: int, conv_dim: int, out_channels: int, norm: str) -> nn.Module:
    return nn.Sequential(
        normalized_conv(in_channels, conv_dim, 3, norm), nn.Conv2d(conv_dim, out_channels, 1)
    )
