"""VGG-16 against the one of torchvision."""

import pytest
import torch
from detectron2.modeling import build_backbone
from torch.nn import functional as F
from torchvision.models import vgg16, vgg16_bn

from rpe_d2.baselines.vgg16 import VGG16, vgg16_features
from tests.helpers.configs import small_cfg_with


def vgg(*texts):
    base = "MODEL: {BACKBONE: {NAME: build_vgg16_backbone}}"
    return build_backbone(small_cfg_with(base, *texts))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    torch.manual_seed(0)
    model = vgg16(weights=None).eval()
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(model.state_dict(), path)
    return model, str(path)


def test_outputs_equal_those_of_torchvision(theirs):
    model, path = theirs
    names = ["conv1_2", "pool3", "pool4", "conv5_3", "pool5", "fc6", "fc7"]
    keys = f"OUT_FEATURES: [{', '.join(names)}], WEIGHTS: '{path}'"
    backbone = vgg(f"MODEL: {{VGG: {{{keys}}}}}").eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found = backbone(image)
        assert list(found) == names
        ends = {"conv1_2": 4, "pool3": 17, "pool4": 24, "conv5_3": 30, "pool5": 31}
        for name, end in ends.items():
            torch.testing.assert_close(found[name], model.features[:end](image))
        # At the center, the 7 x 7 kernel has the input of torchvision's first linear layer.
        flat = model.features(image).flatten(1)
        for name, end in (("fc6", 2), ("fc7", 5)):
            expected = model.classifier[:end](flat)
            torch.testing.assert_close(found[name][:, :, 3, 3], expected, atol=1e-4, rtol=1e-3)


def test_outputs_have_the_declared_shapes():
    names = [name for name in vgg16_features(24) if not name.startswith("conv1")]
    backbone = VGG16(names, "", 24, 0.0)
    found = backbone(torch.randn(2, 3, 64, 96))
    shapes = backbone.output_shape()
    for name, maps in found.items():
        stride = shapes[name].stride
        assert maps.shape == (2, shapes[name].channels, 64 // stride, 96 // stride), name
    assert backbone.size_divisibility == 32


def test_indices_invert_the_pooling():
    backbone = VGG16(["conv2_2", "pool2", "pool2_indices"], "BN", 16, 0.0).eval()
    found = backbone(torch.randn(1, 3, 32, 64))
    assert found["pool2_indices"].dtype == torch.int64
    restored = F.max_unpool2d(found["pool2"], found["pool2_indices"], 2)
    kept = restored != 0
    assert torch.equal(restored[kept], found["conv2_2"][kept])
    assert torch.equal(F.max_pool2d(restored, 2), found["pool2"])


def test_blocks_are_frozen():
    backbone = vgg("MODEL: {BACKBONE: {FREEZE_AT: 2}, VGG: {OUT_FEATURES: [pool5]}}")
    frozen = [name for name, p in backbone.named_parameters() if not p.requires_grad]
    assert frozen == [f"features.{n}.{kind}" for n in (0, 2, 5, 7) for kind in ("weight", "bias")]


def test_batch_statistics_of_frozen_blocks_do_not_change():
    keys = "{NORM: BN, WIDTH: 0.1, OUT_FEATURES: [pool5]}"
    backbone = vgg(f"MODEL: {{BACKBONE: {{FREEZE_AT: 2}}, VGG: {keys}}}").train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))
    changed = {
        int(name.split(".")[1])
        for name, value in backbone.state_dict().items()
        if not torch.equal(value, before[name])
    }
    # In blocks 3 to 5; a convolution, its normalization and a ReLU are three layers.
    assert sorted(changed) == [15, 18, 21, 25, 28, 31, 35, 38, 41]


@pytest.mark.parametrize(
    "freeze_at, weights, own, warned",
    [(2, "", "", True), (0, "", "", False), (2, "model.pth", "", False), (2, "", "vgg", False)],
)
def test_frozen_random_blocks_are_reported(freeze_at, weights, own, warned, theirs, caplog):
    own = theirs[1] if own else ""
    keys = f"WEIGHTS: '{weights}', BACKBONE: {{FREEZE_AT: {freeze_at}}}, VGG: {{WEIGHTS: '{own}'}}"
    vgg(f"MODEL: {{{keys}}}")
    assert ("MODEL.BACKBONE.FREEZE_AT is 2" in caplog.text) == warned


def test_narrow_blocks():
    backbone = vgg("MODEL: {VGG: {WIDTH: 0.25, OUT_FEATURES: [pool1, pool5]}}")
    channels = {name: shape.channels for name, shape in backbone.output_shape().items()}
    assert channels == {"pool1": 16, "pool5": 128}
    found = backbone(torch.randn(1, 3, 32, 32))
    assert {name: maps.shape[1] for name, maps in found.items()} == channels


def test_weights_with_batch_normalization_load(tmp_path):
    theirs = vgg16_bn(weights=None).state_dict()
    theirs["features.1.weight"] = torch.rand(64)  # of the first normalization
    torch.save(theirs, tmp_path / "bn.pth")
    for norm in ("BN", "FrozenBN"):
        backbone = VGG16(["pool5"], norm, 16, 0.0)
        backbone.load_torchvision(str(tmp_path / "bn.pth"))
        loaded = list(backbone.state_dict().values())
        for name in ("features.0.weight", "features.1.weight"):
            assert any(torch.equal(theirs[name], tensor) for tensor in loaded), (norm, name)


@pytest.mark.parametrize(
    "setting, message",
    [
        ("OUT_FEATURES: [pool6]", "MODEL.VGG.OUT_FEATURES is .*; allowed: one or more of conv1_1"),
        ("NORM: GN", "MODEL.VGG.NORM is 'GN'; allowed: '', 'BN', 'FrozenBN'"),
        ("WIDTH: 0.0", "MODEL.VGG.WIDTH is 0.0; allowed: above 0"),
        ("FC_DIM: 0", "MODEL.VGG.FC_DIM is 0; allowed: 1 to 65536"),
        ("DROPOUT: 1.0", "MODEL.VGG.DROPOUT is 1.0; allowed: 0 to below 1"),
        ("WEIGHTS: none.pth", "MODEL.VGG.WEIGHTS is none.pth; there is no such file"),
        ("NORM: BN, WEIGHTS: '{path}'", "which has no features.1"),
        ("FC_DIM: 8, OUT_FEATURES: [fc7], WEIGHTS: '{path}'", "which has no fc6.weight"),
    ],
)
def test_a_wrong_key_is_refused_in_one_line(setting, message, theirs):
    with pytest.raises(ValueError, match=message) as error:
        vgg(f"MODEL: {{VGG: {{{setting.replace('{path}', theirs[1])}}}}}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"out_features": ["pool6"]}, "out_features is .*; allowed: one or more of conv1_1"),
        ({"out_features": []}, r"out_features is \[\]; allowed: one or more of conv1_1"),
        ({"norm": "GN"}, "norm is 'GN'; allowed: '', 'BN', 'FrozenBN'"),
        ({"width": 0.0}, "width is 0.0; allowed: above 0"),
        ({"fc_dim": 0}, "fc_dim is 0; allowed: 1 or more"),
        ({"dropout": 1.0}, "dropout is 1.0; allowed: 0 to below 1"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        VGG16(**arguments)


@pytest.mark.parametrize("damage", ["truncated", "text", "a list", "numbers"])
def test_damaged_weights_are_named_in_one_line(damage, tmp_path):
    path = tmp_path / "vgg.pth"
    torch.save([1] if damage == "a list" else {"features.0.weight": 1}, path)
    content = path.read_bytes()
    if damage in ("truncated", "text"):
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"hello")
    with pytest.raises(ValueError, match="MODEL.VGG.WEIGHTS is .*vgg.pth, which .*; allowed"):
        VGG16(width=0.1).load_torchvision(str(path))


@pytest.mark.parametrize("norm", ["", "BN"])
def test_holes_compute_the_same_at_every_second_cell(norm):
    names = ["pool3", "pool4", "conv5_1", "conv5_3"]
    torch.manual_seed(0)
    plain = VGG16(names, norm, width=0.125).double().eval()
    dense = VGG16(names, norm, width=0.125, holes=True).double().eval()
    dense.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected, found = plain(image), dense(image)
    shapes = dense.output_shape()
    assert [shapes[name].stride for name in names] == [8, 8, 8, 8]
    torch.testing.assert_close(found["pool3"], expected["pool3"])
    for name in names[1:]:
        assert found[name].shape[-2:] == (8, 12)
        torch.testing.assert_close(found[name][..., ::2, ::2], expected[name])
    with pytest.raises(ValueError, match="out_features is .*fc7.*; allowed"):
        VGG16(["fc7"], holes=True)
