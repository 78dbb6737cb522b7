"""The compared semantic heads against slow references: FCN, DeconvNet, multi-scale, recurrent."""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F

from rpe_d2.baselines import DeconvNetHead, FCNHead, MultiScaleSemSegHead, RecurrentConvSemSegHead
from tests.helpers.semantic_heads import DECONVNET, FCN, IGNORED, semantic_model
from tests.reference import semantic_heads as slow

# ---- FCN


def small_head(kind, shapes, **options):
    torch.manual_seed(0)
    head = kind(shapes, num_classes=3, **options).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    return head


def array(tensor):
    return tensor.detach().numpy()


@pytest.mark.parametrize("strides", [(32,), (16, 32), (8, 16, 32)], ids=["32s", "16s", "8s"])
def test_fcn_sums_scores_from_coarse_to_fine(strides):
    shapes = {f"m{stride}": ShapeSpec(channels=stride // 4, stride=stride) for stride in strides}
    head = small_head(FCNHead, shapes)
    features = {
        name: torch.randn(1, shape.channels, 64 // shape.stride, 96 // shape.stride).double()
        for name, shape in shapes.items()
    }
    total = None
    for stride in reversed(strides):
        layer = head.predictor.score[f"m{stride}"]
        score = slow.conv(array(features[f"m{stride}"])[0], array(layer.weight), array(layer.bias))
        total = score if total is None else slow.enlarge(total, 2) + score
    assert head.common_stride == strides[0]
    np.testing.assert_allclose(array(head.layers(features))[0], total, atol=1e-12)
    scores, _ = head.eval()(features)
    np.testing.assert_allclose(array(scores)[0], slow.enlarge(total, strides[0]), atol=1e-12)


def test_an_untrained_fcn_predicts_its_coarsest_scores():
    model = semantic_model(FCN).eval()
    head = model.sem_seg_head
    assert head.predictor.names == ["res5", "res4", "res3"]
    features = model.backbone(torch.randn(1, 3, 64, 64))
    coarse = head.predictor.score["res5"](features["res5"])
    for _ in range(2):
        coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(head.layers(features), coarse)


# ---- DeconvNet


def test_deconvnet_unpools_by_stored_indices():
    shapes = {
        "fc7": ShapeSpec(channels=5, stride=4),
        "pool1_indices": ShapeSpec(channels=2, stride=2),
        "pool2_indices": ShapeSpec(channels=3, stride=4),
    }
    head = small_head(DeconvNetHead, shapes, norm="")
    rng = np.random.default_rng(0)
    _, first = slow.max_pool(rng.standard_normal((2, 8, 12)))
    _, second = slow.max_pool(rng.standard_normal((3, 4, 6)))
    start = rng.standard_normal((5, 2, 3))
    features = {
        "fc7": torch.from_numpy(start)[None],
        "pool1_indices": torch.from_numpy(first)[None],
        "pool2_indices": torch.from_numpy(second)[None],
    }

    def apply(module, maps):
        return slow.transposed_conv(maps, array(module[0].weight), array(module[0].bias))

    x = apply(head.first, start)
    for block, places in zip(head.blocks, (second, first)):
        x = slow.unpool(np.maximum(x, 0), places)
        for layer in block:  # no ReLU after the last layer
            x = apply(layer, np.maximum(x, 0))
    assert x.min() < 0
    assert [len(block) for block in head.blocks] == [2, 2]
    np.testing.assert_allclose(array(head.pixel_features(features))[0], x, atol=1e-10)
    scores = slow.conv(x, array(head.predictor.weight), array(head.predictor.bias))
    np.testing.assert_allclose(array(head.eval()(features)[0])[0], scores, atol=1e-10)


def test_deconvnet_keeps_the_initial_variance_of_its_input():
    shapes = {
        "fc7": ShapeSpec(channels=256, stride=2),
        "pool1_indices": ShapeSpec(channels=32, stride=2),
    }
    torch.manual_seed(0)
    head = DeconvNetHead(shapes, num_classes=3, norm="")
    x = torch.randn(2, 256, 16, 16).relu()
    with torch.no_grad():
        output = head.first(x)[..., 3:-3, 3:-3]
        assert output.square().mean().item() == pytest.approx(x.square().mean().item(), rel=0.3)
        output = head.blocks[0][-1](torch.randn(2, 32, 16, 16))[..., 1:-1, 1:-1]
        assert output.square().mean().item() == pytest.approx(1, rel=0.3)


def test_deconvnet_mirrors_vgg():
    head = semantic_model(DECONVNET, "MODEL: {VGG: {WIDTH: 0.25}}").sem_seg_head
    layers = [[(layer[0].in_channels, layer[0].out_channels) for layer in b] for b in head.blocks]
    assert layers == [
        [(128, 128), (128, 128), (128, 128)],
        [(128, 128), (128, 128), (128, 64)],
        [(64, 64), (64, 64), (64, 32)],
        [(32, 32), (32, 16)],
        [(16, 16), (16, 16)],
    ]
    assert head.first[0].kernel_size == (7, 7) and head.common_stride == 1


# ---- Multi-scale network


def test_scales_are_enlarged_and_stacked():
    shapes = {
        "a": ShapeSpec(channels=2, stride=4),
        "b@0.5": ShapeSpec(channels=3, stride=8),
        "b@0.25": ShapeSpec(channels=1, stride=16),
    }
    head = small_head(MultiScaleSemSegHead, shapes, hidden_dim=4, norm="")
    features = {
        name: torch.randn(1, s.channels, 32 // s.stride, 48 // s.stride).double()
        for name, s in shapes.items()
    }
    maps = [slow.enlarge(array(features[n])[0], s.stride // 4) for n, s in shapes.items()]
    stacked = np.concatenate(maps)
    hidden = np.maximum(slow.conv(stacked, array(head.hidden.weight), array(head.hidden.bias)), 0)
    expected = slow.conv(hidden, array(head.predictor.weight), array(head.predictor.bias))
    np.testing.assert_allclose(array(head.layers(features))[0], expected, atol=1e-12)
    assert head.common_stride == 4


# ---- Recurrent network


def recurrent_head(scales):
    shapes = {"image": ShapeSpec(channels=3, stride=1), "m": ShapeSpec(channels=2, stride=4)}
    return small_head(
        RecurrentConvSemSegHead, shapes, scales=scales, conv_dim=4, num_convs=1, norm=""
    )


@pytest.mark.parametrize("size", [(16, 24), (13, 22)])
@pytest.mark.parametrize("scales", [(0.25, 0.5, 1.0), (1.0, 0.5), (0.5, 0.5)])
def test_passes_equal_the_slow_reference(scales, size):
    head = recurrent_head(scales)
    rows, columns = (-(-side // 4) for side in size)
    features = {
        "image": torch.randn(1, 3, *size).double(),
        "m": torch.randn(1, 2, rows, columns).double(),
    }
    # Feature maps are padded with zeros to 16 x 24 pixels.
    image = slow.padded(array(features["image"])[0], 16, 24)
    other = slow.padded(array(features["m"])[0], 4, 6)
    first, second = head.network
    scores, expected = None, []
    for scale in scales:
        height, width = round(16 * scale), round(24 * scale)
        inputs = [slow.average(image, round(1 / scale)), fit(other, height)]
        inputs.append(np.zeros((3, height, width)) if scores is None else fit(scores, height))
        x = np.concatenate(inputs)
        x = np.maximum(slow.conv(x, array(first.weight), array(first.bias), stride=2), 0)
        x = np.maximum(slow.conv(x, array(second.weight), array(second.bias)), 0)
        scores = slow.conv(x, array(head.predictor.weight), array(head.predictor.bias))
        expected.append(scores)
    passes = head.passes(features)
    assert [maps.stride for maps in passes] == [round(2 / scale) for scale in scales]
    for maps, reference in zip(passes, expected):
        rows, columns = (-(-side // maps.stride) for side in size)
        assert maps.scores.shape[-2:] == (rows, columns)
        inside = reference[:, :rows, :columns]
        np.testing.assert_allclose(array(maps.scores)[0], inside, atol=1e-10)
    expected = [array(maps.scores)[0] for maps in passes]
    targets = torch.randint(0, 3, (1, *size))
    _, losses = head(features, targets)
    for number, (maps, reference) in enumerate(zip(passes, expected), start=1):
        name = "loss_sem_seg" + ("" if number == len(passes) else f"_pass{number}")
        full = slow.enlarge(reference, maps.stride)[:, : size[0], : size[1]]
        error = slow.cross_entropy(full[None], targets.numpy(), IGNORED)
        assert losses[name].item() == pytest.approx(error, rel=1e-6)
    assert len(losses) == len(scales)


def test_feature_maps_of_a_pass_are_aligned_with_the_image():
    """Feature maps hold their own coordinates; the image size is no multiple of any stride."""
    head = recurrent_head((0.25, 0.5, 1.0))
    inputs_of_passes = []
    head.network.register_forward_pre_hook(lambda _, inputs: inputs_of_passes.append(inputs[0]))
    features = {
        "image": (torch.arange(98) + 0.5).expand(1, 3, 70, 98).double(),
        "m": ((torch.arange(25) + 0.5) * 4).expand(1, 2, 18, 25).double(),
    }
    head.passes(features)
    for maps, factor in zip(inputs_of_passes, (4, 2, 1)):
        inside = slice(8 // factor, 92 // factor)  # the rest is affected by zero padding
        expected = (torch.arange(maps.shape[-1]) + 0.5).double() * factor
        for channel in (0, 3):
            row = maps[0, channel, 32 // factor]
            torch.testing.assert_close(row[inside], expected[inside])


def fit(maps, height):
    """Resizes maps to another height at the same aspect ratio."""
    if maps.shape[1] >= height:
        return slow.average(maps, maps.shape[1] // height)
    return slow.enlarge(maps, height // maps.shape[1])
