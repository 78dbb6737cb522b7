"""The guided backbone: outputs, parameter names, image pyramid and frozen parameters."""

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from rpe_d2.modeling import GuidedBackbone
from rpe_d2.ops.pyramid import gaussian_pyramid, laplacian_pyramid, normalize_contrast
from tests.helpers.configs import small_cfg_with
from tests.helpers.models import training_input
from tests.helpers.modules import assert_same_state_dict

GUIDED = "MODEL: {BACKBONE: {NAME: build_guided_backbone}}"


RESNET = """
MODEL:
  GUIDED_BACKBONE: {NAME: build_resnet_backbone}
  RESNETS: {OUT_FEATURES: [res4]}
"""


def test_outputs_are_those_of_the_wrapped_backbone_and_the_image():
    torch.manual_seed(0)
    plain = build_backbone(small_cfg_with()).eval()
    torch.manual_seed(0)
    guided = build_backbone(small_cfg_with(GUIDED)).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, features = plain(image), guided(image)
    assert features.pop("image") is image
    assert expected.keys() == features.keys()
    assert all(torch.equal(expected[name], features[name]) for name in expected)
    shape = guided.output_shape().pop("image")
    assert (shape.channels, shape.stride) == (3, 1)
    assert guided.size_divisibility == plain.size_divisibility == 32
    assert guided.padding_constraints == plain.padding_constraints


def test_checkpoints_load_both_ways():
    plain, guided = build_backbone(small_cfg_with()), build_backbone(small_cfg_with(GUIDED))
    assert list(plain.state_dict()) == list(guided.state_dict())
    guided.load_state_dict(plain.state_dict())
    plain.load_state_dict(guided.state_dict())
    names = [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in guided.named_parameters()] == names


def test_the_pyramid_is_the_backbone_on_resized_images():
    scales = "MODEL: {GUIDED_BACKBONE: {SCALES: [1.0, 0.5, 0.3, 2.0]}}"
    guided = build_backbone(small_cfg_with(GUIDED, scales)).eval().double()
    plain = build_backbone(small_cfg_with()).eval().double()
    plain.load_state_dict(guided.state_dict())
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        features = guided(image)
        assert set(features) == set(guided.output_shape())
        for name, value in plain(image).items():
            assert torch.equal(features[name], value)
        for name, value in plain(F.interpolate(image, scale_factor=2, mode="bilinear")).items():
            torch.testing.assert_close(features[f"{name}@2"], value)
    strides = {name: shape.stride for name, shape in guided.output_shape().items()}
    assert strides["p2@0.5"] == 8 and strides["p2@2"] == 2 and strides["p3@2"] == 4
    assert strides["p2@0.3"] == pytest.approx(4 / 0.3)
    # 64 x 96 at 0.3 is 19 x 28, which is padded to multiples of 32 for the FPN.
    assert features["p2@0.3"].shape == (1, 32, 8, 8)
    assert features["p2@0.5"].shape == (1, 32, 8, 16)


@pytest.mark.parametrize("backbone", ["{}", RESNET], ids=["fpn", "resnet"])
def test_the_stem_is_the_first_convolution(backbone):
    stem = "MODEL: {GUIDED_BACKBONE: {STEM: True, SCALES: [1.0, 0.5]}}"
    guided = build_backbone(small_cfg_with(GUIDED, backbone, stem)).eval()
    image = torch.randn(1, 3, 64, 64)
    features = guided(image)
    first_conv = getattr(guided, "bottom_up", guided).stem.conv1
    torch.testing.assert_close(features["stem"], F.relu(first_conv(image)))
    assert features["stem@0.5"].shape == (1, 64, 16, 16)
    shapes = guided.output_shape()
    assert (shapes["stem"].channels, shapes["stem"].stride) == (64, 2)
    assert shapes["stem@0.5"].stride == 4
    features["stem"].sum().backward()
    assert first_conv.weight.grad.abs().sum() > 0


def test_a_missing_stem_is_reported_in_one_line():
    vgg = "MODEL: {GUIDED_BACKBONE: {NAME: build_vgg16_backbone, STEM: True}}"
    with pytest.raises(ValueError, match="STEM is True, and .* has none; allowed: with ResNets"):
        build_backbone(small_cfg_with(GUIDED, vgg))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_has_no_dropout(frozen):
    vgg = f"""
MODEL:
  GUIDED_BACKBONE: {{NAME: build_vgg16_backbone, FREEZE: {frozen}}}
  VGG: {{WIDTH: 0.125, FC_DIM: 16, OUT_FEATURES: [fc7]}}
"""
    guided = build_backbone(small_cfg_with(GUIDED, vgg)).train()
    image = torch.randn(1, 3, 64, 64)
    first, second = (guided(image)["fc7"] for _ in range(2))
    assert torch.equal(first, second) == frozen


def test_a_frozen_backbone_does_not_change():
    frozen = "MODEL: {GUIDED_BACKBONE: {FREEZE: True}}"
    guided = build_backbone(small_cfg_with(GUIDED, frozen)).train()
    assert not any(parameter.requires_grad for parameter in guided.parameters())
    before = {name: value.clone() for name, value in guided.state_dict().items()}
    guided(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in guided.state_dict().items())
    trained = build_backbone(small_cfg_with(GUIDED)).state_dict()
    assert set(before) <= set(trained)


def test_training_mode_and_dtype_reach_the_wrapped_backbone():
    guided = build_backbone(small_cfg_with(GUIDED)).double().eval()
    assert not any(module.training for module in guided._wrapped[0].modules())
    assert guided(torch.randn(1, 3, 64, 64).double())["p2"].dtype == torch.float64
    assert all(module.training for module in guided.train()._wrapped[0].modules())


def test_the_embedding_head_learns_from_the_image():
    model = build_model(small_cfg_with(GUIDED, "MODEL: {RPE: {STRIDE: 2}}"))
    with EventStorage():
        sum(model([training_input()]).values()).backward()
    gradients = [parameter.grad for parameter in model.embedding_head.fine["image"].parameters()]
    assert gradients and all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_the_embedding_head_takes_the_image_at_every_stride(stride):
    text = f"MODEL: {{RPE: {{STRIDE: {stride}}}}}"
    model = build_model(small_cfg_with(GUIDED, text)).eval()
    (maps,) = model.predict_maps([training_input((70, 90))])
    assert maps.embeddings.shape[-2:] == (128 // stride, 128 // stride)


def test_the_image_alone_is_not_enough_for_the_embedding_head():
    with pytest.raises(ValueError, match="IN_FEATURES is image; at least one of stride 4"):
        build_model(small_cfg_with(GUIDED, "MODEL: {RPE: {IN_FEATURES: [image]}}"))


@pytest.mark.parametrize("name", ["no_such_backbone", "build_guided_backbone"])
def test_a_wrong_name_is_reported_in_one_line(name):
    with pytest.raises(ValueError, match="MODEL.GUIDED_BACKBONE.NAME is"):
        text = f"MODEL: {{GUIDED_BACKBONE: {{NAME: {name}}}}}"
        build_backbone(small_cfg_with(GUIDED, text))


# ---- Several scales

PLAIN = """
MODEL:
  BACKBONE: {NAME: build_resnet_backbone}
  RESNETS: {OUT_FEATURES: [res2, res4]}
"""
PYRAMID = """
MODEL:
  BACKBONE: {NAME: build_guided_backbone}
  RESNETS: {OUT_FEATURES: [res2, res4]}
  GUIDED_BACKBONE:
    NAME: build_resnet_backbone
    SCALES: [1.0, 0.5, 0.25]
"""
LAPLACIAN = "MODEL: {GUIDED_BACKBONE: {PYRAMID: laplacian}}"


def test_all_scales_share_one_network():
    plain = build_backbone(small_cfg_with(PLAIN)).eval()
    guided = build_backbone(small_cfg_with(PYRAMID)).eval()
    guided.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = guided(image)
        assert features.pop("image") is image
        for scale, scaled in zip((1, 0.5, 0.25), gaussian_pyramid(image, [1.0, 0.5, 0.25])):
            if scale < 1:
                assert torch.equal(features.pop(f"image@{scale}"), scaled)
            for name, maps in plain(scaled).items():
                assert torch.equal(features.pop(name if scale == 1 else f"{name}@{scale}"), maps)
    assert not features
    strides = {name: shape.stride for name, shape in guided.output_shape().items()}
    assert strides == {
        "res2": 4, "res4": 16, "res2@0.5": 8, "res4@0.5": 32, "res2@0.25": 16, "res4@0.25": 64,
        "image": 1, "image@0.5": 2, "image@0.25": 4,
    }  # fmt: skip
    assert guided.size_divisibility == 0


def test_laplacian_bands_are_normalized():
    guided = build_backbone(small_cfg_with(PYRAMID, LAPLACIAN)).eval()
    assert guided.size_divisibility == 4  # for bands that align exactly
    image = 3 + 0.5 * torch.randn(1, 3, 64, 64)
    bands = [normalize_contrast(band) for band in laplacian_pyramid(image, [1.0, 0.5, 0.25])]
    with torch.no_grad():
        features = guided(image)
        for suffix, band in zip(("", "@0.5", "@0.25"), bands):
            assert torch.equal(features[f"res4{suffix}"], guided._wrapped[0](band)["res4"])


@pytest.mark.parametrize(
    "options, message",
    [
        ("{SCALES: []}", r"SCALES is \[\]; allowed: one or more different"),
        ("{SCALES: [1.0, 1.0]}", "allowed: one or more different factors"),
        ("{SCALES: [0.0]}", "allowed: one or more different factors above 0"),
        ("{PYRAMID: steerable}", "PYRAMID is 'steerable' .* gaussian"),
        ("{PYRAMID: laplacian, SCALES: [0.5, 1.0]}", "which needs decreasing SCALES"),
    ],
)
def test_wrong_scales_are_reported_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        build_backbone(small_cfg_with(GUIDED, f"MODEL: {{GUIDED_BACKBONE: {options}}}"))
    assert "\n" not in str(error.value)


def test_a_directly_constructed_guided_backbone_equals_the_configured_one():
    configured = build_backbone(small_cfg_with(GUIDED))
    direct = GuidedBackbone(build_backbone(small_cfg_with()))
    assert_same_state_dict(direct, configured)
    assert direct.output_shape() == configured.output_shape()
    assert (direct.scales, direct.pyramid, direct.frozen) == ((1.0,), "gaussian", False)
