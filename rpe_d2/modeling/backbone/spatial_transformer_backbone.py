"""A backbone that sees its image through a spatial transformer."""

from typing import Dict, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone

from rpe_d2.ops.spatial_transform import invert_projective, projective_grid, sample_grid

from ..argument_checks import check_choice
from ..layers import adopt_children
from ..spatial_transformer import ConvLocalization, SpatialTransformer

INVERTIBLE = ("affine", "projective")
_LOCALIZATION_SIZE = 64  # side of the small image from which the transformation is predicted
_LOCALIZATION_DIM = 32


class SpatialTransformerBackbone(Backbone):
    """Transforms the image before a backbone, and its feature maps back into the image.

    Heads of Detectron2 predict boxes and masks where they find them in the feature maps. The maps
    of a transformed image are not in the frame of the image, so they are transformed back. They
    are 0 where the transformation leaves parts of the image out. Without this step the maps only
    suit predictions for images as a whole: boxes and masks would be at wrong places.

    A transformation refers to the padded images of a batch, as the backbone does. Images of one
    size, or batches of one image, are transformed independently of each other.

    The wrapped backbone keeps its parameter names, so its checkpoints load into this one.
    """

    def __init__(
        self,
        backbone: Backbone,
        spatial_transformer: SpatialTransformer,
        *,
        transform_back: bool = True,
    ):
        """
        Args:
            backbone: the wrapped backbone. All its parameters and buffers are in its submodules.
            spatial_transformer: transforms the images; it has no output size of its own.
            transform_back: transform the feature maps back into the image. Thin plate splines have
                no inverse in closed form, and need False.

        Raises:
            ValueError: The backbone has parameters or buffers outside its submodules, or a
                submodule "spatial_transformer"; the transformer has an output size; or its
                transformations cannot be inverted.
        """
        super().__init__()
        if spatial_transformer.output_size is not None:
            raise ValueError(
                f"spatial_transformer.output_size is {spatial_transformer.output_size}; allowed: "
                "None, because the strides of the backbone refer to the size of the image"
            )
        if transform_back and spatial_transformer.transform not in INVERTIBLE:
            raise ValueError(
                f"spatial_transformer.transform is {spatial_transformer.transform!r}, which has no "
                f"inverse in closed form; allowed: {', '.join(INVERTIBLE)}, or transform_back=False"
            )
        self.spatial_transformer = spatial_transformer
        self.transform_back = transform_back
        self._wrapped = adopt_children(self, backbone)

    def forward(self, image: torch.Tensor) -> Dict[str, torch.Tensor]:
        """
        Args:
            image: (B, C, H, W), normalized and padded.

        Returns:
            The feature maps of the wrapped backbone.
        """
        parameters = self.spatial_transformer.parameters_of(image)
        features = self._wrapped[0](self.spatial_transformer.sample(image, parameters))
        if not self.transform_back:
            return features
        inverses = invert_projective(self.spatial_transformer.matrices(parameters))
        strides = {name: shape.stride for name, shape in self.output_shape().items()}
        return {
            name: _transformed(maps, inverses, strides[name], image.shape[-2:])
            for name, maps in features.items()
        }

    def train(self, mode: bool = True) -> "SpatialTransformerBackbone":
        super().train(mode)
        # The children of the wrapped backbone are also children of this module.
        self._wrapped[0].train(mode)
        return self

    @property
    def size_divisibility(self) -> int:
        return self._wrapped[0].size_divisibility

    @property
    def padding_constraints(self) -> Dict[str, int]:
        return self._wrapped[0].padding_constraints

    def output_shape(self) -> Dict[str, ShapeSpec]:
        return self._wrapped[0].output_shape()


def _transformed(
    maps: torch.Tensor, matrices: torch.Tensor, stride: float, image_size: Tuple[int, int]
) -> torch.Tensor:
    """Transforms maps (B, C, h, w) by matrices (B, 3, 3) in the coordinates of the image."""
    height, width = maps.shape[-2:]
    # The last cells of a map can reach beyond the image.
    x_scale, y_scale = width * stride / image_size[1], height * stride / image_size[0]
    to_image = _scaling(x_scale, y_scale).to(matrices)
    to_map = _scaling(1 / x_scale, 1 / y_scale).to(matrices)
    with torch.autocast(device_type=maps.device.type, enabled=False):
        in_map = to_map @ matrices @ to_image
    return sample_grid(maps, projective_grid(in_map, (height, width)))


def _scaling(x_scale: float, y_scale: float) -> torch.Tensor:
    """Returns the matrix (3, 3) that scales distances from the upper left corner, (-1, -1)."""
    return torch.tensor([[x_scale, 0, x_scale - 1], [0, y_scale, y_scale - 1], [0, 0, 1.0]])


@BACKBONE_REGISTRY.register()
def build_spatial_transformer_backbone(
    cfg: CfgNode, input_shape: ShapeSpec
) -> SpatialTransformerBackbone:
    """Builds the backbone named in ``MODEL.SPATIAL_TRANSFORMER.NAME`` and wraps it."""
    keys = cfg.MODEL.SPATIAL_TRANSFORMER
    check_choice("MODEL.SPATIAL_TRANSFORMER.TRANSFORM", keys.TRANSFORM, INVERTIBLE)
    if keys.NAME not in BACKBONE_REGISTRY or keys.NAME in (
        "build_spatial_transformer_backbone",
        "build_guided_backbone",
    ):
        raise ValueError(
            f"MODEL.SPATIAL_TRANSFORMER.NAME is {keys.NAME!r}; allowed: the name of another "
            "registered backbone, such as build_resnet_fpn_backbone. build_guided_backbone can "
            "wrap this one: MODEL.GUIDED_BACKBONE.NAME build_spatial_transformer_backbone"
        )
    spatial_transformer = SpatialTransformer(
        ConvLocalization(input_shape.channels, _LOCALIZATION_SIZE, dim=_LOCALIZATION_DIM),
        _LOCALIZATION_DIM,
        keys.TRANSFORM,
    )
    return SpatialTransformerBackbone(
        BACKBONE_REGISTRY.get(keys.NAME)(cfg, input_shape),
        spatial_transformer,
    )
