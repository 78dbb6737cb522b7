"""The head that predicts an embedding, class logits and a vote for every pixel."""

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F

from ..argument_checks import check_choice, check_positive, check_range
from ..large_maps import BandedConv2d
from ..layers import at_least_float32, chosen_features, enlarge_maps, normalized_conv, resize_maps

STRIDES = (1, 2, 4, 8)
# The shared convolutions do not run on finer maps, where they cost more and see less context.
_FINEST_TRUNK_STRIDE = 4
# Instance size in pixels that an untrained network predicts.
_INITIAL_SIZE = 16.0


class ImageMaps(NamedTuple):
    """Predictions for one image, on the grid of its padded batch.

    Attributes:
        embeddings: (D, h, w) float32 unit vectors, or vectors of any length for some losses.
        logits: (K + 1, h, w) float32 class logits. Background comes last.
        votes: (2, h, w) float32 predicted instance centers, x and y in pixels.
        sizes: (h, w) float32 predicted instance sizes in pixels, 0 where they are not predicted.
        features: (C, h, w) features that the predictions were made from.
        stride: pixels per grid cell.
        image_size: (H, W) of the image without padding.
        extra: (E, h, w) float32 further predictions that some losses need, or None.
    """

    embeddings: torch.Tensor
    logits: torch.Tensor
    votes: torch.Tensor
    sizes: torch.Tensor
    features: torch.Tensor
    stride: int
    image_size: Tuple[int, int]
    extra: Optional[torch.Tensor] = None

    @property
    def unpadded_size(self) -> Tuple[int, int]:
        """Rows and columns of the cells that the image covers, at least in part."""
        height, width = self.image_size
        return -(-height // self.stride), -(-width // self.stride)

    @property
    def valid(self) -> torch.Tensor:
        """(h, w) float32: 1 in cells of the image, 0 in padding."""
        rows, columns = self.unpadded_size
        valid = torch.zeros_like(self.logits[0])
        valid[:rows, :columns] = 1
        return valid

    def unpadded(self) -> "ImageMaps":
        """The same predictions without the cells of the padding."""
        rows, columns = self.unpadded_size
        maps = (part[..., :rows, :columns] for part in self[:5])
        extra = None if self.extra is None else self.extra[..., :rows, :columns]
        return ImageMaps(*maps, self.stride, self.image_size, extra)


class EmbeddingMaps(NamedTuple):
    """Predictions of :class:`EmbeddingHead` for a padded batch.

    Attributes:
        embeddings: (B, D, h, w) float32 unit vectors, or vectors of any length for some losses.
        logits: (B, K + 1, h, w) float32 class logits. Background comes last.
        votes: (B, 2, h, w) float32 predicted center of the pixel's instance, x and y in pixels.
            Without votes it is the center of the cell.
        sizes: (B, 1, h, w) float32 predicted size of the pixel's instance, the square root of its
            area in pixels. 0 where sizes are not predicted.
        features: (B, C, h, w) features that the predictions were made from.
        stride: pixels per grid cell.
        extra: (B, E, h, w) float32 further predictions that some losses need, or None.
    """

    embeddings: torch.Tensor
    logits: torch.Tensor
    votes: torch.Tensor
    sizes: torch.Tensor
    features: torch.Tensor
    stride: int
    extra: Optional[torch.Tensor] = None

    @property
    def padded_size(self) -> Tuple[int, int]:
        """(H, W) in pixels of the area that the grid covers."""
        height, width = self.logits.shape[-2:]
        return height * self.stride, width * self.stride

    def image(self, index: int, image_size: Sequence[int]) -> ImageMaps:
        """Predictions for one image of the batch.

        Args:
            index: position of the image in the batch.
            image_size: (H, W) of the image without padding.
        """
        return ImageMaps(
            embeddings=self.embeddings[index],
            logits=self.logits[index],
            votes=self.votes[index],
            sizes=self.sizes[index, 0],
            features=self.features[index],
            stride=self.stride,
            image_size=tuple(image_size),
            extra=None if self.extra is None else self.extra[index],
        )


class EmbeddingHead(nn.Module):
    """Predicts embeddings, classes and votes per pixel (Kong & Fowlkes, CVPR 2018, section 5).

    Every input map is convolved at its own resolution, resized to a common stride and added to the
    others, as in the semantic branch of Panoptic FPN. Shared 3x3 convolutions follow at this
    stride, where a kernel sees much context at low cost. Each prediction then has a 3x3
    convolution at the output stride and a 1x1 predictor. Input maps finer than stride 4, such as
    the image that ``build_guided_backbone`` outputs, bypass the shared convolutions and are added
    to their result. They sharpen mask boundaries.
    """

    @configurable
    def __init__(
        self,
        input_shape: Dict[str, ShapeSpec],
        num_classes: int,
        *,
        in_features: Sequence[str] = (),
        stride: int = 4,
        conv_dim: int = 128,
        num_convs: int = 2,
        norm: str = "GN",
        embedding_dim: int = 16,
        coordinates: bool = False,
        vote_unit: Optional[float] = 4.0,
        max_size: Optional[float] = None,
        normalize: bool = True,
        extra_dim: int = 0,
    ):
        """
        Args:
            input_shape: channels and stride of each output of the backbone.
            num_classes: K, without background.
            in_features: names of the outputs to use. Empty means all of them.
            stride: stride of the predictions in pixels: 1, 2, 4 or 8.
            conv_dim: channels of the convolutions.
            num_convs: number of shared 3x3 convolutions.
            norm: any normalization of Detectron2, "" for none.
            embedding_dim: D, dimension of the embeddings.
            coordinates: whether to append each cell's position, scaled to [-1, 1] over the image,
                to the features.
            vote_unit: unit of the predicted votes in pixels. None disables votes.
            max_size: largest instance size in pixels that can be predicted along with the votes.
                None disables sizes.
            normalize: whether embeddings are scaled to unit length.
            extra_dim: number of further predictions per cell, see
                :class:`rpe_d2.modeling.embedding.methods.EmbeddingMethod`.

        Raises:
            ValueError: An argument is out of range, or the backbone lacks a suitable output.
        """
        super().__init__()
        in_features = chosen_features("in_features", in_features, input_shape)
        check_grid("in_features", in_features, "stride", stride, input_shape)
        check_range("num_classes", num_classes, 1)
        check_range("conv_dim", conv_dim, 1)
        check_range("num_convs", num_convs, 0)
        check_range("embedding_dim", embedding_dim, 1)
        check_range("extra_dim", extra_dim, 0)
        if vote_unit is not None:
            check_positive("vote_unit", vote_unit)
        if max_size is not None:
            check_range("max_size", max_size, 2 * _INITIAL_SIZE)
        self.in_features = [n for n in in_features if input_shape[n].stride >= _FINEST_TRUNK_STRIDE]
        self.fine_features = [n for n in in_features if n not in self.in_features]
        self.num_classes = num_classes
        self.stride = stride
        self.coordinates = coordinates
        self.vote_unit = vote_unit
        self.max_size = max_size
        self.embedding_dim = embedding_dim
        self.normalize = normalize
        self.extra_dim = extra_dim
        self.finest_stride = min(input_shape[name].stride for name in self.in_features)
        # The shared convolutions run at the output stride or, if that is finer than every input
        # map, at the stride of the finest one.
        self.trunk_stride = max(stride, self.finest_stride)
        # Upsampling factor from each map, after its convolution, to the trunk.
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
        # Fine maps have many pixels, so their first convolution has few channels and no norm.
        fine_dim = max(1, conv_dim // 4)
        self.fine = nn.ModuleDict(
            {
                name: nn.Sequential(
                    normalized_conv(input_shape[name].channels, fine_dim, 3, ""),
                    normalized_conv(
                        fine_dim, conv_dim, 3, norm, max(1, stride // input_shape[name].stride)
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
        self.extra = None
        if extra_dim:
            self.extra = _predictor(trunk_dim, conv_dim, extra_dim, norm)
        self.feature_dim = trunk_dim

    @classmethod
    def from_config(
        cls, cfg, input_shape: Dict[str, ShapeSpec], *, stride: Optional[int] = None
    ) -> Dict:
        rpe = cfg.MODEL.RPE
        in_features = chosen_features("MODEL.RPE.IN_FEATURES", rpe.IN_FEATURES, input_shape)
        stride = rpe.STRIDE if stride is None else stride
        check_grid("MODEL.RPE.IN_FEATURES", in_features, "MODEL.RPE.STRIDE", stride, input_shape)
        return {
            "input_shape": input_shape,
            "num_classes": rpe.NUM_CLASSES,
            "in_features": in_features,
            "stride": stride,
            "conv_dim": rpe.CONV_DIM,
            "num_convs": rpe.NUM_CONVS,
            "norm": rpe.NORM,
            "embedding_dim": rpe.EMBEDDING_DIM,
            "coordinates": rpe.COORDINATES,
            "vote_unit": rpe.VOTE_UNIT if rpe.VOTES else None,
            "max_size": rpe.MAX_SIZE if cfg.MODEL.MEAN_SHIFT.RELATIVE_BANDWIDTH > 0 else None,
        }

    def forward(self, features: Dict[str, torch.Tensor]) -> EmbeddingMaps:
        """
        Args:
            features: outputs of the backbone, (B, C_i, H / stride_i, W / stride_i).

        Returns:
            Predictions for the padded images, with h = H / stride and w = W / stride.
        """
        return self.levels(features, 1)[0]

    def class_logits(self, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        """Predicts only the class logits, (B, K + 1, h, w) float32."""
        return at_least_float32(self.classifier(self._trunk_features(features)))

    def levels(self, features: Dict[str, torch.Tensor], num_levels: int) -> List[EmbeddingMaps]:
        """Predicts at the head's stride, twice that stride, four times that stride and so on.

        The same predictors run at every level, on features that are average-pooled by 2 x 2.
        """
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
        embeddings = at_least_float32(self.embedding(trunk))
        if self.normalize:
            embeddings = F.normalize(embeddings, dim=1)
        logits = at_least_float32(self.classifier(trunk))
        votes = cell_centers(trunk.shape[-2:], stride, trunk.device)
        sizes = torch.zeros_like(logits[:, :1])
        if self.voter is None:
            votes = votes.expand(len(trunk), -1, -1, -1)
        else:
            pred = at_least_float32(self.voter(trunk))
            votes = votes + self.vote_unit * pred[:, :2]
            if self.max_size is not None:
                sizes = _INITIAL_SIZE * (self.max_size / _INITIAL_SIZE) ** pred[:, 2:].tanh()
        extra = None if self.extra is None else at_least_float32(self.extra(trunk))
        return EmbeddingMaps(embeddings, logits, votes, sizes, trunk, stride, extra)


def check_grid(
    features_name: str,
    features: Sequence[str],
    stride_name: str,
    stride: int,
    input_shape: Dict[str, ShapeSpec],
) -> None:
    """Checks the input maps and the output stride of an :class:`EmbeddingHead`.

    Args:
        features_name, stride_name: what the messages call the two settings.
        features: names of the input maps.
        stride: stride of the predictions in pixels.
        input_shape: channels and stride of each output of the backbone.

    Raises:
        ValueError: The head cannot be built from them.
    """
    broken = [name for name in features if input_shape[name].stride % 1]
    if broken:
        raise ValueError(
            f"{features_name} is {', '.join(features)}; {broken[0]} has the stride "
            f"{input_shape[broken[0]].stride:g}, allowed are whole pixels"
        )
    if all(input_shape[name].stride < _FINEST_TRUNK_STRIDE for name in features):
        raise ValueError(
            f"{features_name} is {', '.join(features)}; at least one of stride "
            f"{_FINEST_TRUNK_STRIDE} or more is needed, the backbone has {', '.join(input_shape)}"
        )
    check_choice(stride_name, stride, STRIDES)


def cell_centers(size: Sequence[int], stride: int, device: torch.device) -> torch.Tensor:
    """Positions (2, h, w) of the centers of grid cells, x then y in pixels.

    Coordinates are continuous: the center of the first pixel is at (0.5, 0.5).

    Args:
        size: (h, w) of the grid.
        stride: pixels per cell.
        device: where to put the result.
    """
    y, x = ((torch.arange(side, device=device) + 0.5) * stride for side in size)
    return torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]))


def _coordinates(maps: torch.Tensor) -> torch.Tensor:
    """Cell positions (B, 2, h, w), scaled to [-1, 1] over the image."""
    centers = cell_centers(maps.shape[-2:], 1, maps.device).to(maps.dtype)
    extent = centers.new_tensor([maps.shape[-1], maps.shape[-2]]).view(2, 1, 1)
    return (2 * centers / extent - 1).expand(len(maps), -1, -1, -1)


def _predictor(in_channels: int, conv_dim: int, out_channels: int, norm: str) -> nn.Module:
    return nn.Sequential(
        normalized_conv(in_channels, conv_dim, 3, norm), BandedConv2d(conv_dim, out_channels, 1)
    )
