"""Labels compete: what is propagated stays a partition."""

import pytest
import torch

from rpe_d2.ops.propagation import normalize_gates
from rpe_d2.refinement.network import build_refiner_network, propagate_labels

torch.manual_seed(0)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_refiner_network().eval()


def random_case(labels: int = 4, height: int = 13, width: int = 17):
    generator = torch.Generator().manual_seed(3)
    raw = torch.randn(2, 1, 12, height, width, generator=generator, dtype=torch.float64)
    maps = torch.rand(2, labels, height, width, generator=generator, dtype=torch.float64)
    trust = 3 * torch.randn(2, height, width, generator=generator, dtype=torch.float64)
    return maps / maps.sum(dim=1, keepdim=True), normalize_gates(raw), trust


def test_labels_stay_a_partition():
    maps, gates, trust = random_case()
    refined = propagate_labels(maps, gates, trust)
    assert refined.min() >= 0
    torch.testing.assert_close(refined.sum(dim=1), torch.ones_like(trust))


def test_the_order_of_the_labels_does_not_matter():
    maps, gates, trust = random_case()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        propagate_labels(maps[:, order], gates, trust),
        propagate_labels(maps, gates, trust)[:, order],
    )


def test_labels_that_are_merged_before_or_after_are_the_same():
    maps, gates, trust = random_case()
    merged = torch.stack([maps[:, :2].sum(dim=1), maps[:, 2:].sum(dim=1)], dim=1)
    refined = propagate_labels(maps, gates, trust)
    torch.testing.assert_close(
        propagate_labels(merged, gates, trust)[:, 0], refined[:, :2].sum(dim=1)
    )


def test_closed_gates_change_nothing():
    maps, gates, trust = random_case()
    torch.testing.assert_close(propagate_labels(maps, torch.zeros_like(gates), trust), maps)


def test_pixels_without_trust_take_the_label_of_trusted_neighbors():
    maps = torch.zeros(1, 2, 1, 5, dtype=torch.float64)
    maps[0, 0, 0, [0, 1, 3, 4]] = 1
    maps[0, 1, 0, 2] = 1  # one pixel has another label
    raw = torch.zeros(1, 1, 12, 1, 5, dtype=torch.float64)
    trust = torch.full((1, 1, 5), 10.0, dtype=torch.float64)
    assert propagate_labels(maps, normalize_gates(raw), trust)[0, 1, 0, 2] > 0.5
    trust[0, 0, 2] = -20
    assert propagate_labels(maps, normalize_gates(raw), trust)[0, 1, 0, 2] < 0.01


def test_gradients_reach_gates_and_trust():
    maps, _, trust = random_case(3, 4, 5)
    raw = torch.randn(2, 1, 12, 4, 5, dtype=torch.float64, requires_grad=True)
    trust.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda raw, trust: propagate_labels(maps, normalize_gates(raw), trust), (raw, trust)
    )


@pytest.mark.parametrize("size", [(64, 80), (33, 47), (1, 1)])
def test_any_size(network, size):
    image = torch.rand(2, 3, *size) * 255
    gates, trust = network(image, torch.ones(2, *size), torch.ones(2, *size))
    assert gates.shape == (2, 1, 12, *size) and trust.shape == (2, *size)
    assert gates.isfinite().all() and trust.isfinite().all()


def test_an_untrained_network_keeps_the_labels(network):
    maps = torch.zeros(1, 2, 48, 48)
    maps[:, 0, :, :20] = 1
    maps[:, 1, :, 20:] = 1
    distance = (torch.arange(48) - 19.5).abs().expand(1, 48, 48)
    gates, trust = network(torch.rand(1, 3, 48, 48) * 255, distance, torch.ones(1, 48, 48))
    refined = propagate_labels(maps, gates, trust)
    assert (refined.argmax(dim=1) == maps.argmax(dim=1)).all()


def test_the_encoder_keeps_its_statistics_and_has_no_unused_blocks(network):
    network.train()
    assert not any(module.training for module in network.encoder.modules())
    image = torch.rand(1, 3, 32, 32) * 255
    gates, trust = network(image, torch.ones(1, 32, 32), torch.ones(1, 32, 32))
    (gates.sum() + trust.sum()).backward()
    unused = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused
    assert len(network.encoder.blocks) == 5
    network.eval()
