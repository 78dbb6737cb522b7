"""FPN over the first stages of a ResNet, against Detectron2's FPN over all of them."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

import rpe_d2.modeling  # noqa: F401, registers the backbone


def short_cfg(out_features=("res2", "res3", "res4")):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_short_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = list(out_features)
    cfg.MODEL.FPN.IN_FEATURES = list(out_features)
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    return cfg


def test_the_levels_end_one_after_the_last_stage():
    torch.manual_seed(0)
    backbone = build_backbone(short_cfg()).eval()
    shapes = {name: (spec.channels, spec.stride) for name, spec in backbone.output_shape().items()}
    assert shapes == {"p2": (16, 4), "p3": (16, 8), "p4": (16, 16), "p5": (16, 32)}
    assert backbone.size_divisibility == 16
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 48, 80))
    assert {name: tuple(x.shape[-2:]) for name, x in maps.items()} == {
        "p2": (12, 20),
        "p3": (6, 10),
        "p4": (3, 5),
        "p5": (2, 3),
    }
    assert torch.equal(maps["p5"], maps["p4"][:, :, ::2, ::2])
    # res5 has three quarters of the weights of a ResNet-18.
    assert sum(p.numel() for p in backbone.bottom_up.parameters()) < 2.8e6


def test_all_stages_make_detectron2s_own_backbone():
    torch.manual_seed(0)
    cfg = short_cfg(("res2", "res3", "res4", "res5"))
    ours = build_backbone(cfg).eval()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    theirs = build_backbone(cfg).eval()
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, found = theirs(image), ours(image)
    assert list(found) == list(expected)
    for name, maps in expected.items():
        assert torch.equal(found[name], maps)


def test_a_missing_output_is_detectron2s_error():
    cfg = short_cfg()
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    with pytest.raises((AssertionError, KeyError), match="res5"):
        build_backbone(cfg)
