"""The picture passes through, parameters keep their names."""

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage

from .helpers import small_cfg, training_input

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
