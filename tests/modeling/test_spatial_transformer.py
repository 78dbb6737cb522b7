"""Spatial transformers as a layer, and as a backbone whose maps fit the image."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone import Backbone
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from rpe_d2.modeling import SpatialTransformer, SpatialTransformerBackbone
from rpe_d2.modeling.spatial_transformer import (
    TRANSFORMS,
    ConvLocalization,
    FullyConnectedLocalization,
)
from rpe_d2.ops.spatial_transform import identity_grid
from tests.helpers.configs import MASK_RCNN, small_cfg_with
from tests.helpers.models import training_input
from tests.helpers.modules import assert_same_state_dict

NODE = "MODEL: {BACKBONE: {NAME: build_spatial_transformer_backbone}}"
# By the differences from the identity: turned by half a turn, upside down, and moved.
HALF_TURN = torch.tensor([-2.0, 0, 0, 0, -2.0, 0])
UPSIDE_DOWN = torch.tensor([0.0, 0, 0, 0, -2.0, 0])
MOVED = torch.tensor([0.0, 0, 0.5, 0, 0, 0])


class Average(Backbone):
    """A backbone of averages over cells of 4 and 8 pixels, with a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.scale.weight)

    def forward(self, image):
        image = self.scale(image)
        return {f"p{stride}": F.avg_pool2d(image, stride, ceil_mode=True) for stride in (4, 8)}

    def output_shape(self):
        return {f"p{stride}": ShapeSpec(channels=1, stride=stride) for stride in (4, 8)}


def layer(transform, channels=1, **arguments):
    torch.manual_seed(0)
    return SpatialTransformer(ConvLocalization(channels, 16), 32, transform, **arguments)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("localization", [ConvLocalization, FullyConnectedLocalization])
def test_it_starts_as_the_identity_and_receives_gradients(transform, localization):
    torch.manual_seed(0)
    module = SpatialTransformer(localization(2, 20), 32, transform)
    maps = torch.randn(3, 2, 24, 30)
    torch.testing.assert_close(module(maps), maps, atol=1e-5, rtol=1e-5)
    assert torch.equal(
        module.grids(module.parameters_of(maps), (4, 5)),
        identity_grid((4, 5)).expand(3, -1, -1, -1),
    )
    module(maps).square().mean().backward()
    assert module.regression.weight.grad.abs().sum() > 0
    with torch.no_grad():
        module.regression.weight.normal_(std=0.01)
    module(maps).square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in module.parameters())


def test_parameters_are_differences_from_the_identity():
    maps = torch.rand(1, 1, 8, 8)
    affine, projective, spline = (layer(transform) for transform in TRANSFORMS)
    torch.testing.assert_close(affine.sample(maps, HALF_TURN[None]), maps.flip(2, 3))
    eight = F.pad(UPSIDE_DOWN, (0, 2))[None]
    torch.testing.assert_close(projective.sample(maps, eight), maps.flip(2))
    everywhere = torch.tensor([0.25, 0.0]).repeat(16)[None]  # by one of eight pixels to the right
    moved = F.pad(maps[..., 1:], (0, 1))
    torch.testing.assert_close(spline.sample(maps, everywhere), moved, atol=1e-5, rtol=1e-5)
    matrix = projective.matrices(torch.arange(8.0)[None])[0]
    assert matrix.tolist() == [[1, 1, 2], [3, 5, 5], [6, 7, 1]]
    with pytest.raises(ValueError, match="transform is 'tps'; allowed: affine, projective"):
        spline.matrices(everywhere)


def test_the_output_has_its_own_size():
    assert layer("affine", output_size=(10, 14))(torch.randn(2, 1, 40, 30)).shape[-2:] == (10, 14)


def test_it_is_precise_under_autocast():
    module = layer("projective")
    maps = torch.randn(1, 1, 20, 300)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(maps)
    torch.testing.assert_close(found.float(), maps, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_it_learns_to_bring_a_spot_to_the_center(transform):
    """Without being told where the spot is: the loss compares the output with a centered one."""
    module = layer(transform)
    x, y = identity_grid((16, 16)).unbind(dim=-1)

    def spots(centers):
        squared = (x - centers[:, 0, None, None]) ** 2 + (y - centers[:, 1, None, None]) ** 2
        return (-4 * squared).exp()[:, None]

    generator = torch.Generator().manual_seed(0)
    target = spots(torch.zeros(1, 2))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.003)
    for _ in range(150):
        maps = spots(torch.rand(32, 2, generator=generator) - 0.5)
        loss = F.mse_loss(module(maps), target.expand(32, -1, -1, -1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    maps = spots(torch.rand(64, 2, generator=generator) - 0.5)
    with torch.no_grad():
        before, after = (F.mse_loss(m, target.expand(64, -1, -1, -1)) for m in (maps, module(maps)))
    assert after < 0.25 * before


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"transform": "rigid"}, "transform is 'rigid'; allowed: affine, projective, tps"),
        ({"localization_dim": 0}, "localization_dim is 0; allowed: 1 or more"),
    ],
)
def test_wrong_arguments_are_reported_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpatialTransformer(nn.Flatten(), **{"localization_dim": 4, **arguments})
    with pytest.raises(ValueError, match="input_size is 8; allowed: 16 or more"):
        ConvLocalization(3, 8)


# ---- The backbone


def test_at_first_the_outputs_are_those_of_the_wrapped_backbone():
    torch.manual_seed(0)
    plain = build_backbone(small_cfg_with()).eval()
    wrapper = build_backbone(small_cfg_with(NODE)).eval()
    assert set(plain.state_dict()) < set(wrapper.state_dict())
    missing, unexpected = wrapper.load_state_dict(plain.state_dict(), strict=False)
    assert all(name.startswith("spatial_transformer.") for name in missing) and not unexpected
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, features = plain(image), wrapper(image)
    assert expected.keys() == features.keys()
    for name in expected:
        torch.testing.assert_close(features[name], expected[name], atol=1e-3, rtol=1e-3)
    assert wrapper.output_shape() == plain.output_shape()
    assert wrapper.size_divisibility == plain.size_divisibility == 32
    assert wrapper.padding_constraints == plain.padding_constraints
    assert not any(m.training for m in wrapper._wrapped[0].modules())


@pytest.mark.parametrize("difference", [HALF_TURN, UPSIDE_DOWN])
@pytest.mark.parametrize("size", [(40, 64), (36, 60)])
def test_maps_are_transformed_back_into_the_image(difference, size):
    """Also where the last cells of a map reach beyond the image."""
    wrapper = SpatialTransformerBackbone(Average(), layer("affine"))
    with torch.no_grad():
        wrapper.spatial_transformer.regression.bias.copy_(difference)
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    image = (rows + 2.0 * columns + 10)[None, None]
    expected, found = Average()(image), wrapper(image)
    torch.testing.assert_close(found["p4"], expected["p4"], atol=1e-3, rtol=1e-4)
    # Inside, a plane is interpolated exactly. At the border, cells may be smaller.
    inner = (..., slice(1, size[0] // 8 - 1), slice(1, size[1] // 8 - 1))
    torch.testing.assert_close(found["p8"][inner], expected["p8"][inner], atol=1e-3, rtol=1e-4)
    wrapper.transform_back = False
    assert (wrapper(image)["p4"] - expected["p4"]).abs().max() > 10


def test_parts_that_are_not_seen_are_zero():
    wrapper = SpatialTransformerBackbone(Average(), layer("affine"))
    with torch.no_grad():
        wrapper.spatial_transformer.regression.bias.copy_(MOVED)
    found = wrapper(torch.ones(1, 1, 16, 32))["p4"][0, 0]
    assert torch.equal(found, torch.tensor([0.0, 0, 1, 1, 1, 1, 1, 1]).expand(4, 8))


@pytest.mark.parametrize("transform", ["affine", "projective"])
def test_a_detector_trains_its_transformer(transform):
    text = f"MODEL: {{SPATIAL_TRANSFORMER: {{TRANSFORM: {transform}}}}}"
    torch.manual_seed(0)
    model = build_model(small_cfg_with(MASK_RCNN, NODE, text))
    with EventStorage():
        sum(model([training_input(), training_input()]).values()).backward()
    gradient = model.backbone.spatial_transformer.regression.weight.grad
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    (result,) = model.eval()([training_input()])
    assert result["instances"].image_size == (64, 96)


def test_the_guided_backbone_can_wrap_it():
    guided = """
MODEL:
  BACKBONE: {NAME: build_guided_backbone}
  GUIDED_BACKBONE: {NAME: build_spatial_transformer_backbone}
"""
    backbone = build_backbone(small_cfg_with(guided))
    image = torch.randn(1, 3, 64, 64)
    assert backbone(image)["image"] is image
    assert "spatial_transformer.regression.weight" in backbone.state_dict()


def test_a_directly_constructed_backbone_equals_the_configured_one():
    configured = build_backbone(small_cfg_with(NODE))
    transformer = SpatialTransformer(ConvLocalization(3, 64), 32)
    direct = SpatialTransformerBackbone(build_backbone(small_cfg_with()), transformer)
    assert_same_state_dict(direct, configured)
    assert direct.transform_back and configured.transform_back


@pytest.mark.parametrize(
    "options, message",
    [
        ("{NAME: no_such_backbone}", "SPATIAL_TRANSFORMER.NAME is 'no_such_backbone'; allowed"),
        ("{NAME: build_spatial_transformer_backbone}", "allowed: the name of another registered"),
        ("{NAME: build_guided_backbone}", "build_guided_backbone can wrap this one"),
        ("{TRANSFORM: rigid}", "TRANSFORM is 'rigid'; allowed: affine, projective$"),
        ("{TRANSFORM: tps}", "TRANSFORM is 'tps'; allowed: affine, projective$"),
    ],
)
def test_wrong_keys_are_reported_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        build_backbone(small_cfg_with(NODE, f"MODEL: {{SPATIAL_TRANSFORMER: {options}}}"))
    assert "\n" not in str(error.value)


def test_a_spline_is_for_images_as_a_whole():
    backbone = SpatialTransformerBackbone(Average(), layer("tps"), transform_back=False)
    image = torch.randn(1, 1, 16, 24)
    torch.testing.assert_close(backbone(image), Average()(image), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="transform is 'tps', which has no inverse .*=False"):
        SpatialTransformerBackbone(Average(), layer("tps"))
    with pytest.raises(ValueError, match=r"output_size is \(8, 8\); allowed: None"):
        SpatialTransformerBackbone(Average(), layer("affine", output_size=(8, 8)))
