"""The temporal propagation network: what it is before training, and that everything learns."""

import pytest
import torch
from torch.nn import functional as F

from rpe_d2.config import all_keys
from rpe_d2.modeling.temporal_propagation import (
    TEMPORAL_MERGES,
    TEMPORAL_STRIDES,
    TemporalPropagation,
    charbonnier,
    style_energy,
)
from rpe_d2.ops.propagation import GATE_MODES
from rpe_d2.utils.frame_properties import PROPERTIES
from tests.reference.propagation import propagate


def small(property_channels=2, guidance_channels=1, **options) -> TemporalPropagation:
    torch.manual_seed(0)
    sizes = {"channels": 3, "conv_dim": 8, "norm": ""}
    return TemporalPropagation(property_channels, guidance_channels, **{**sizes, **options})


def inputs(property_channels=2, guidance_channels=1, batch=2, height=16, width=32):
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(batch, property_channels, height, width, generator=generator)
    guidances = torch.rand(2, batch, guidance_channels, height, width, generator=generator)
    return (maps, *guidances)


def opened(network: TemporalPropagation) -> TemporalPropagation:
    """Gives random values to all parameters that start at 0."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter += 0.1 * noise
    return network


@pytest.mark.parametrize("mode", GATE_MODES)
@pytest.mark.parametrize("stride, merge", [(1, "learned"), (2, "mean"), (2, "learned")])
def test_an_untrained_network_copies_the_property(mode, stride, merge):
    network, (maps, key, target) = small(stride=stride, gate_mode=mode, merge=merge), inputs()
    result = network(maps, key, target)
    torch.testing.assert_close(result.prediction, maps, rtol=0, atol=0)
    if mode == "clipped":
        assert torch.equal(result.gates, torch.zeros_like(result.gates))
        torch.testing.assert_close(result.propagated, result.features)


@pytest.mark.parametrize("channels, guidance", [(2, 1), (3, 3), (1, 3)])
def test_shapes(channels, guidance):
    network = small(channels, guidance, stride=2)
    result = network(*inputs(channels, guidance))
    features = 4 * channels + 3
    assert result.prediction.shape == (2, channels, 16, 32)
    assert result.features.shape == result.propagated.shape == (2, features, 8, 16)
    assert result.gates.shape == (2, features, 12, 8, 16)
    assert result.weights.shape == (4, 2, 1, 8, 16)
    torch.testing.assert_close(result.weights.sum(dim=0), torch.ones(2, 1, 8, 16))


@pytest.mark.parametrize("mode", GATE_MODES)
@pytest.mark.parametrize("merge", TEMPORAL_MERGES)
def test_features_are_propagated_as_the_slow_reference_does(mode, merge):
    network = opened(small(gate_mode=mode, merge=merge, num_units=2)).double()
    maps, key, target = (tensor.double() for tensor in inputs())
    result = network(maps, key, target)
    assert (result.weights.std(dim=0) > 0).any() == (merge == "learned")
    expected = result.features
    for _ in range(2):
        expected = (result.weights * propagate(expected, result.gates)).sum(dim=0)
    torch.testing.assert_close(result.propagated, expected)
    pixels = expected[:, :8] - F.pixel_unshuffle(maps, 2)
    assert (pixels.abs() > 1e-3).any()


def test_propagation_is_linear_in_the_property():
    network, (maps, key, target) = opened(small()), inputs()
    one, other = (network(m, key, target).propagated for m in (maps, maps.flip(0)))
    both = network(2 * maps - 3 * maps.flip(0), key, target).propagated
    torch.testing.assert_close(both, 2 * one - 3 * other, rtol=1e-4, atol=1e-4)


def test_gates_depend_on_both_frames_and_their_order():
    network, (maps, key, target) = opened(small()), inputs()
    gates = [
        network(maps, *guidances).gates
        for guidances in ((key, target), (target, key), (key, key), (target, target))
    ]
    for number, one in enumerate(gates):
        assert all(not torch.allclose(one, other) for other in gates[:number])


def test_properties_of_one_pair_of_frames_share_its_gates():
    network = opened(small(1, 3)).double()
    maps, key, target = (tensor.double() for tensor in inputs(1, 3))
    five = torch.cat([maps, maps.flip(0), maps[:1] + 1])
    pair = torch.tensor([0, 1, 1, 0, 1])
    together = network(five, key, target, pair)
    assert len(together.gates) == 2
    for number, index in enumerate(pair.tolist()):
        one = slice(number, number + 1)
        alone = network(five[one], key[index : index + 1], target[index : index + 1])
        torch.testing.assert_close(together.prediction[one], alone.prediction)


@pytest.mark.parametrize("mode", GATE_MODES)
@pytest.mark.parametrize("merge", TEMPORAL_MERGES)
def test_every_parameter_learns(mode, merge):
    network = opened(small(gate_mode=mode, merge=merge))
    network(*inputs()).prediction.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_gates_learn_from_the_first_step_on():
    network, (maps, key, target) = small(), inputs()
    (network(maps, key, target).prediction - maps.flip(0)).square().sum().backward()
    gates = network.guidance.predictor.weight.grad[: network.num_gates]
    assert gates.abs().max() > 0


def test_gradients():
    network = opened(small(channels=1, conv_dim=4, num_units=1)).double()
    tensors = [t.double().requires_grad_() for t in inputs(batch=1, width=16)]
    parameters = [network.direct, network.embed.weight, network.guidance.predictor.weight]

    def function(maps, key, target, *_):
        result = network(maps, key, target)
        return result.prediction, style_energy(result.propagated, result.features)

    assert torch.autograd.gradcheck(function, (*tensors, *parameters), fast_mode=True, atol=1e-4)


def test_style_energy_is_0_for_orthogonal_maps_of_pixels():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 4, 5, generator=generator)
    order = torch.randperm(20, generator=generator)
    moved = features.flatten(2)[..., order].view_as(features)  # the same for all channels
    torch.testing.assert_close(style_energy(moved, features), torch.zeros(2))
    # Twice the values are four times the Gram matrix, which is then three times itself away.
    torch.testing.assert_close(style_energy(2 * features, features), torch.full((2,), 9.0))
    assert style_energy(features * 0, features * 0).tolist() == [0, 0]


def test_charbonnier_is_between_the_square_and_the_absolute_value():
    values = torch.tensor([0.0, 1e-4, 5.0, -5.0])
    found = charbonnier(values, 0.01)
    assert found[0] == 0 and found[1] == pytest.approx(1e-8 / 0.02, rel=1e-2)
    torch.testing.assert_close(found[2:], torch.full((2,), 4.99), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"merge": "max"}, "merge is 'max', which biases channels whose mean is 0; allowed: mean"),
        ({"merge": "sum"}, "merge is 'sum'; allowed: mean, learned"),
        ({"stride": 4}, "stride is 4; allowed: 1, 2"),
        ({"gate_mode": "tanh"}, "gate_mode is 'tanh'; allowed: softmax, abs_sum, clipped"),
        ({"num_units": 0}, "num_units is 0; allowed: 1 or more"),
        ({"channels": 0}, "channels is 0; allowed: 1 or more"),
        ({"property_channels": 0}, "property_channels is 0; allowed: 1 or more"),
    ],
)
def test_wrong_arguments_are_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_keys_allow_what_the_network_allows():
    keys = all_keys()["MODEL.TPN"]
    assert set(keys["GATE_MODE"].choices) == set(GATE_MODES)
    assert set(keys["MERGE"].choices) == set(TEMPORAL_MERGES)
    assert set(keys["STRIDE"].choices) == set(TEMPORAL_STRIDES)
    assert set(keys["PROPERTY"].choices) == set(PROPERTIES)
