"""The picture passes through, parameters keep their names."""

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from rpe_d2.ops.pyramid import gaussian_pyramid, laplacian_pyramid, normalize_contrast
from tests.helpers.models import plain_backbone, small_cfg, training_input

GUIDED = ("MODEL.BACKBONE.NAME", "build_guided_backbone")


def test_outputs_are_the_wrapped_ones_and_the_picture():
    torch.manual_seed(0)
    plain = build_backbone(small_cfg()).eval()
    torch.manual_seed(0)
    guided = build_backbone(small_cfg(*GUIDED)).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, found = plain(image), guided(image)
    assert found.pop("image") is image
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    shape = guided.output_shape().pop("image")
    assert (shape.channels, shape.stride) == (3, 1)
    assert guided.size_divisibility == plain.size_divisibility == 32
    assert guided.padding_constraints == plain.padding_constraints


def test_checkpoints_load_both_ways():
    plain, guided = build_backbone(small_cfg()), build_backbone(small_cfg(*GUIDED))
    assert list(plain.state_dict()) == list(guided.state_dict())
    guided.load_state_dict(plain.state_dict())
    plain.load_state_dict(guided.state_dict())
    names = [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in guided.named_parameters()] == names


def test_the_pyramid_is_the_backbone_on_resized_pictures():
    scales = ("MODEL.GUIDED_BACKBONE.SCALES", [1.0, 0.5, 0.3, 2.0])
    guided = build_backbone(small_cfg(*GUIDED, *scales)).eval()
    plain = build_backbone(small_cfg()).eval()
    plain.load_state_dict(guided.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = guided(image)
        assert set(found) == set(guided.output_shape())
        for name, value in plain(image).items():
            assert torch.equal(found[name], value)
        for name, value in plain(F.interpolate(image, scale_factor=2, mode="bilinear")).items():
            torch.testing.assert_close(found[f"{name}@2"], value)
    strides = {name: shape.stride for name, shape in guided.output_shape().items()}
    assert strides["p2@0.5"] == 8 and strides["p2@2"] == 2 and strides["p3@2"] == 4
    assert strides["p2@0.3"] == pytest.approx(4 / 0.3)
    # 64 x 96 at 0.3 is 19 x 28, which is padded to the FPN's multiples of 32.
    assert found["p2@0.3"].shape == (1, 32, 8, 8) and found["p2@0.5"].shape == (1, 32, 8, 16)


def test_the_stem_is_the_first_convolution():
    for backbone in ((), ("MODEL.GUIDED_BACKBONE.NAME", *plain_backbone("res4")[1:])):
        stem = ("MODEL.GUIDED_BACKBONE.STEM", True, "MODEL.GUIDED_BACKBONE.SCALES", [1.0, 0.5])
        guided = build_backbone(small_cfg(*GUIDED, *backbone, *stem)).eval()
        image = torch.randn(1, 3, 64, 64)
        found = guided(image)
        first = getattr(guided, "bottom_up", guided).stem.conv1
        torch.testing.assert_close(found["stem"], F.relu(first(image)))
        assert found["stem@0.5"].shape == (1, 64, 16, 16)
        shapes = guided.output_shape()
        assert (shapes["stem"].channels, shapes["stem"].stride, shapes["stem@0.5"].stride) == (
            64,
            2,
            4,
        )
        found["stem"].sum().backward()
        assert first.weight.grad.abs().sum() > 0


def test_no_stem_is_one_line():
    vgg = ("MODEL.GUIDED_BACKBONE.NAME", "build_vgg16_backbone", "MODEL.GUIDED_BACKBONE.STEM", True)
    with pytest.raises(ValueError, match="STEM is True, and .* has none; allowed: with ResNets"):
        build_backbone(small_cfg(*GUIDED, *vgg))


def test_a_frozen_backbone_has_no_dropout():
    vgg = ("MODEL.GUIDED_BACKBONE.NAME", "build_vgg16_backbone", "MODEL.VGG.WIDTH", 0.125)
    keys = (*vgg, "MODEL.VGG.FC_DIM", 16, "MODEL.VGG.OUT_FEATURES", ["fc7"])
    image = torch.randn(1, 3, 64, 64)
    for frozen in (True, False):
        cfg = small_cfg(*GUIDED, *keys, "MODEL.GUIDED_BACKBONE.FREEZE", frozen)
        guided = build_backbone(cfg).train()
        first, second = (guided(image)["fc7"] for _ in range(2))
        assert torch.equal(first, second) == frozen


def test_nothing_changes_a_frozen_backbone():
    guided = build_backbone(small_cfg(*GUIDED, "MODEL.GUIDED_BACKBONE.FREEZE", True)).train()
    assert not any(parameter.requires_grad for parameter in guided.parameters())
    before = {name: value.clone() for name, value in guided.state_dict().items()}
    guided(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in guided.state_dict().items())
    trained = build_backbone(small_cfg(*GUIDED)).state_dict()
    assert set(before) <= set(trained)


def test_modes_and_types_reach_the_wrapped_backbone():
    guided = build_backbone(small_cfg(*GUIDED)).double().eval()
    assert not any(module.training for module in guided._wrapped[0].modules())
    assert guided(torch.randn(1, 3, 64, 64).double())["p2"].dtype == torch.float64
    assert all(module.training for module in guided.train()._wrapped[0].modules())


def test_the_head_learns_from_the_picture():
    model = build_model(small_cfg(*GUIDED, "MODEL.RPE.STRIDE", 2))
    with EventStorage():
        sum(model([training_input()]).values()).backward()
    gradients = [parameter.grad for parameter in model.embedding_head.fine["image"].parameters()]
    assert gradients and all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)
    # Maps without the finer one, at every stride.
    for stride in (1, 2, 4, 8):
        head = build_model(small_cfg(*GUIDED, "MODEL.RPE.STRIDE", stride)).eval()
        maps, _ = head.predict_maps([training_input((70, 90))])
        assert maps.embeddings.shape[-2:] == (128 // stride, 128 // stride)


def test_the_picture_alone_is_no_feature():
    with pytest.raises(ValueError, match="IN_FEATURES is image; at least one of stride 4"):
        build_model(small_cfg(*GUIDED, "MODEL.RPE.IN_FEATURES", ["image"]))


@pytest.mark.parametrize("name", ["no_such_backbone", "build_guided_backbone"])
def test_a_wrong_name_is_one_line(name):
    with pytest.raises(ValueError, match="MODEL.GUIDED_BACKBONE.NAME is"):
        build_backbone(small_cfg(*GUIDED, "MODEL.GUIDED_BACKBONE.NAME", name))


# ---- Several scales

PYRAMID = (
    *GUIDED, *plain_backbone("res2", "res4"), "MODEL.BACKBONE.NAME", "build_guided_backbone",
    "MODEL.GUIDED_BACKBONE.NAME", "build_resnet_backbone",
    "MODEL.GUIDED_BACKBONE.SCALES", [1.0, 0.5, 0.25],
)  # fmt: skip
LAPLACIAN = ("MODEL.GUIDED_BACKBONE.PYRAMID", "laplacian")


def test_one_network_sees_all_scales():
    plain = build_backbone(small_cfg(*plain_backbone("res2", "res4"))).eval()
    guided = build_backbone(small_cfg(*PYRAMID)).eval()
    guided.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found = guided(image)
        assert found.pop("image") is image
        for scale, picture in zip((1, 0.5, 0.25), gaussian_pyramid(image, [1.0, 0.5, 0.25])):
            if scale < 1:
                assert torch.equal(found.pop(f"image@{scale}"), picture)
            for name, maps in plain(picture).items():
                assert torch.equal(found.pop(name if scale == 1 else f"{name}@{scale}"), maps)
    assert not found
    strides = {name: shape.stride for name, shape in guided.output_shape().items()}
    assert strides == {
        "res2": 4, "res4": 16, "res2@0.5": 8, "res4@0.5": 32, "res2@0.25": 16, "res4@0.25": 64,
        "image": 1, "image@0.5": 2, "image@0.25": 4,
    }  # fmt: skip
    assert guided.size_divisibility == 0


def test_bands_are_normalised():
    guided = build_backbone(small_cfg(*PYRAMID, *LAPLACIAN)).eval()
    assert guided.size_divisibility == 4  # so that bands fit onto each other
    image = 3 + 0.5 * torch.randn(1, 3, 64, 64)
    bands = [normalize_contrast(band) for band in laplacian_pyramid(image, [1.0, 0.5, 0.25])]
    with torch.no_grad():
        found = guided(image)
        for suffix, band in zip(("", "@0.5", "@0.25"), bands):
            assert torch.equal(found[f"res4{suffix}"], guided._wrapped[0](band)["res4"])


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("MODEL.GUIDED_BACKBONE.SCALES", []), r"SCALES is \[\]; allowed: one or more different"),
        (("MODEL.GUIDED_BACKBONE.SCALES", [1.0, 1.0]), "allowed: one or more different factors"),
        (("MODEL.GUIDED_BACKBONE.SCALES", [0.0]), "allowed: one or more different factors above 0"),
        (("MODEL.GUIDED_BACKBONE.PYRAMID", "steerable"), "PYRAMID is 'steerable' .* gaussian"),
        ((*LAPLACIAN, "MODEL.GUIDED_BACKBONE.SCALES", [0.5, 1.0]), "which needs SCALES that fall"),
    ],
)
def test_wrong_scales_are_one_line(overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        build_backbone(small_cfg(*GUIDED, *overrides))
    assert "\n" not in str(error.value)


def test_a_directly_constructed_guided_backbone_equals_the_configured_one():
    configured = build_backbone(small_cfg_with(GUIDED))
    direct = GuidedBackbone(build_backbone(small_cfg_with()))
    assert_same_state_dict(direct, configured)
    assert direct.output_shape() == configured.output_shape()
    assert (direct.scales, direct.pyramid, direct.frozen) == ((1.0,), "gaussian", False)
