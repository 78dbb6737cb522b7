"""Dilated stages of a ResNet against Detectron2's own and against the strided network."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import build_resnet_backbone

from rpe_d2 import add_rpe_config
from tests.helpers.configs import merge_yaml

DEPTH_50 = """
MODEL:
  DEVICE: cpu
  BACKBONE: {NAME: build_dilated_resnet_backbone, FREEZE_AT: 0}
  RESNETS: {DEPTH: 50, NORM: BN, OUT_FEATURES: [res3, res4, res5]}
"""


def cfg_with(*texts):
    cfg = get_cfg()
    add_rpe_config(cfg)
    return merge_yaml(cfg, DEPTH_50, *texts)


def outputs(build, cfg, image):
    torch.manual_seed(0)
    backbone = build(cfg, ShapeSpec(channels=3)).eval().to(image.dtype)
    with torch.no_grad():
        return backbone(image), backbone.output_shape()


def test_dilation_of_res5_is_detectron2s():
    cfg, image = cfg_with("MODEL: {RESNETS: {RES5_DILATION: 2}}"), torch.rand(1, 3, 64, 96)
    maps, shape = outputs(build_backbone, cfg, image)
    expected, expected_shape = outputs(build_resnet_backbone, cfg, image)
    assert shape == expected_shape
    assert all(torch.equal(maps[name], expected[name]) for name in expected)


@pytest.mark.parametrize("depth, width", [(18, 64), (50, 256)])
def test_the_strided_network_is_a_part_of_the_dilated_one(depth, width):
    sizes = f"MODEL: {{RESNETS: {{DEPTH: {depth}, RES2_OUT_CHANNELS: {width}}}}}"
    image = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    dilated = "MODEL: {RESNETS: {RES4_DILATION: 2, RES5_DILATION: 4}}"
    maps, shape = outputs(build_backbone, cfg_with(sizes, dilated), image)
    strided, _ = outputs(build_backbone, cfg_with(sizes), image)
    assert {name: spec.stride for name, spec in shape.items()} == dict.fromkeys(maps, 8)
    for name in maps:
        assert maps[name].shape[-2:] == (8, 12)
    assert torch.equal(maps["res3"], strided["res3"])
    if depth == 50:  # its strides are in 1x1 convolutions, so that no kernel is widened
        torch.testing.assert_close(maps["res4"][:, :, ::2, ::2], strided["res4"])
        torch.testing.assert_close(maps["res5"][:, :, ::4, ::4], strided["res5"])


def test_unknown_dilations_are_named():
    with pytest.raises(ValueError, match="^MODEL.RESNETS.RES5_DILATION is 3; allowed: 1, 2, 4"):
        build_backbone(cfg_with("MODEL: {RESNETS: {RES5_DILATION: 3}}"))
