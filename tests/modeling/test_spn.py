"""Spatial propagation: guidance network, heads and masks."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F

from rpe_d2.modeling.spn import (
    GuidanceNetwork,
    MaskPropagation,
    ProbabilityPropagation,
    PropagationHead,
    PropagationUnits,
    propagation_loss,
)


def shapes(**strides):
    return {name: ShapeSpec(channels=3, stride=stride) for name, stride in strides.items()}


def random_maps(input_shape, size):
    return {
        name: torch.randn(2, shape.channels, *(-(-side // shape.stride) for side in size))
        for name, shape in input_shape.items()
    }


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(64, 96), (72, 40)])
def test_guidance_has_the_requested_stride(stride, size):
    input_shape = shapes(image=1, p2=4, p3=8, p5=32)
    network = GuidanceNetwork(input_shape, out_channels=12, stride=stride, conv_dim=32, norm="GN")
    gates = network(random_maps(input_shape, size))
    assert gates.shape == (2, 12, size[0] // stride, size[1] // stride)
    gates.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


def test_guidance_keeps_the_position_of_cells():
    """A peak of a coarse map keeps its position, also if the map extends beyond the image."""
    input_shape = {"p2": ShapeSpec(channels=1, stride=4), "p5": ShapeSpec(channels=1, stride=32)}
    network = GuidanceNetwork(input_shape, out_channels=1, stride=4, conv_dim=1, norm="")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias) if module.bias is not None else None
            middle = module.kernel_size[0] // 2
            module.weight.data[:, :, middle, middle] = 1
    p5 = torch.zeros(1, 1, 3, 3)  # 96 x 96 pixels, for an image of 72 x 72
    p5[0, 0, 1, 2] = 1
    output = network({"p2": torch.zeros(1, 1, 18, 18), "p5": p5})[0, 0]
    expected = F.interpolate(p5, scale_factor=8, mode="bilinear", align_corners=False)[0, 0]
    assert torch.allclose(output, expected[:18, :18])


def test_an_untrained_head_is_the_identity():
    head = PropagationHead(3, 4)
    maps = torch.randn(2, 3, 9, 7)
    assert torch.equal(head(maps, torch.randn(2, head.num_gates, 9, 7)), maps)


@pytest.mark.parametrize("connections, mode", [(3, "softmax"), (1, "softmax"), (3, "abs_sum")])
def test_propagation_keeps_the_sum_of_masks(connections, mode):
    units = PropagationUnits(2, mode, connections)
    masks = torch.randn(5, 20, 31).softmax(dim=0)
    gates = units.normalize(2 * torch.randn(1, units.gates_per_channel, 20, 31))
    refined = units.propagate(masks[None], gates, "mean")[0]
    assert torch.allclose(refined.sum(dim=0), torch.ones(20, 31), atol=1e-5)
    if mode == "softmax":
        assert refined.min() >= 0 and refined.max() <= 1
    assert (refined - masks).abs().max() > 0.05


@pytest.mark.parametrize("connections", [1, 3])
def test_mask_propagation_keeps_the_sum_and_range_of_masks(connections):
    input_shape = shapes(image=1)
    propagation = MaskPropagation(
        input_shape, connections=connections, stride=1, conv_dim=4, norm=""
    )
    nn.init.normal_(propagation.guidance.predictor.weight, std=1.0)
    nn.init.zeros_(propagation.guidance.predictor.bias)
    with torch.no_grad():
        gates = propagation.gates(random_maps(input_shape, (20, 31)))[0]
        masks = torch.randn(5, 20, 31).softmax(dim=0)
        refined = propagation(masks, gates)
    assert torch.allclose(refined.sum(dim=0), torch.ones(20, 31), atol=1e-5)
    assert refined.min() >= 0 and refined.max() <= 1
    assert (refined - masks).abs().max() > 0.05
    assert propagation(masks[:0], gates).shape == (0, 20, 31)


def test_many_masks_are_propagated_in_chunks(monkeypatch):
    propagation = MaskPropagation(shapes(image=1), stride=1, conv_dim=4, norm="")
    with torch.no_grad():
        gates = propagation.gates(random_maps(shapes(image=1), (8, 9)))[1]
        masks = torch.rand(7, 8, 9)
        expected = propagation(masks, gates)
        monkeypatch.setattr("rpe_d2.modeling.spn._VALUES_PER_CHUNK", 200)
        assert torch.equal(propagation(masks, gates), expected)


def test_propagation_loss_by_hand():
    pred, target = torch.tensor([[[0.5, 0.9]]]), torch.tensor([[[1.0, 1.0]]])
    expected = -(torch.tensor(0.5).log() + torch.tensor(0.9).log()) / 2
    assert torch.allclose(propagation_loss(pred, target), expected)
    assert propagation_loss(torch.zeros(1, 1, 2), target).isfinite()
    assert propagation_loss(pred[:0], target[:0]) == 0
    first = torch.tensor([[True, False]])
    assert torch.allclose(propagation_loss(pred, target, first), -torch.tensor(0.5).log() / 2)


def test_propagated_probabilities():
    torch.manual_seed(0)
    propagation = ProbabilityPropagation(4)
    scores = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    closed = torch.full((2, propagation.num_gates, 9, 7), -40.0, dtype=torch.float64)
    unchanged = propagation.refine(scores, propagation.propagate(scores, closed))
    assert torch.allclose(unchanged.exp(), scores.softmax(dim=1), atol=1e-5)
    propagated = propagation.propagate(scores, torch.randn_like(closed)).exp()
    probabilities = scores.softmax(dim=1)
    assert torch.allclose(propagated.sum(dim=1), torch.ones(2, 9, 7, dtype=torch.float64))
    assert (propagated >= probabilities.amin(dim=(2, 3), keepdim=True) - 1e-5).all()
    assert (propagated - probabilities).abs().max() > 0.1
    # Probabilities of almost 0 have finite logarithms, and gradients reach the gates.
    certain = torch.zeros(1, 2, 4, 5, dtype=torch.float64)
    certain[:, 0] = 50.0
    gates = torch.zeros(1, propagation.num_gates, 4, 5, dtype=torch.float64, requires_grad=True)
    certain[:, 1, 1, 1] = 100.0
    score = propagation.propagate(certain, gates)[:, 1, 3, 3]
    score.sum().backward()
    assert score.isfinite().all() and gates.grad.abs().sum() > 0
    # A permutation of the classes permutes the results.
    order = torch.tensor([2, 0, 3, 1])
    gates = torch.randn_like(closed)
    assert torch.allclose(
        propagation.propagate(scores[:, order], gates),
        propagation.propagate(scores, gates)[:, order],
    )


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: PropagationUnits(-1), "num_units is -1; allowed: 0 or more"),
        (lambda: PropagationUnits(gate_mode="tanh"), "gate_mode is 'tanh'; allowed: softmax"),
        (lambda: PropagationUnits(connections=2), "connections is 2; allowed: 1, 3"),
        (lambda: PropagationHead(3, 0), "channels is 0; allowed: 1 or more"),
        (lambda: MaskPropagation(shapes(p2=4), stride=3), "stride is 3; allowed: 1, 2, 4"),
        (lambda: MaskPropagation(shapes(p2=4), conv_dim=0), "conv_dim is 0; allowed: 1 or more"),
    ],
)
def test_a_wrong_argument_is_reported_in_one_line(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
