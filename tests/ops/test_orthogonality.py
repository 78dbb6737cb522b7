"""How far propagation is from an orthogonal map, against explicit matrices and closed forms."""

import pytest
import torch

from rpe_d2.ops.orthogonality import measure_orthogonality
from rpe_d2.ops.propagation import GATE_MODES, normalize_gates, spatial_propagation


def random_gates(mode: str, batch=1, channels=1, height=4, width=5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(batch, channels, 12, height, width, generator=generator, dtype=torch.float64)
    return normalize_gates(raw, mode)


def matrices(gates, weights):
    """The matrices (5, B C, N, N) of the directions and of their sum by weights (4, B, 1, H, W)."""
    batch, channels, _, height, width = gates.shape
    count = height * width
    rows = []
    for b in range(batch):
        for c in range(channels):
            unit = torch.eye(count, dtype=gates.dtype).view(count, 1, height, width)
            own = gates[b : b + 1, c : c + 1].expand(count, -1, -1, -1, -1)
            columns = spatial_propagation(unit, own, "none")[:, :, 0].flatten(2)  # (4, N of x, N)
            merged = (weights[:, b, 0].flatten(1)[:, None] * columns).sum(dim=0, keepdim=True)
            rows.append(torch.cat([columns, merged]).transpose(1, 2))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("connections", [3, 1])
def test_closed_gates_are_the_identity_which_is_orthogonal(connections):
    measures = measure_orthogonality(torch.zeros(2, 3, 4 * connections, 6, 7))
    assert torch.equal(measures.deviation, torch.zeros(5, dtype=torch.float64))
    assert torch.equal(measures.energy, torch.ones(5, dtype=torch.float64))
    probed = measure_orthogonality(torch.zeros(2, 3, 4 * connections, 6, 7), num_probes=3)
    assert torch.equal(torch.cat(probed), torch.cat(measures))


def test_two_pixels_in_a_row():
    """From left to right, G is ((1, 0), (b, 1 - b)); from top down it is the identity."""
    gates = torch.zeros(1, 1, 12, 1, 2, dtype=torch.float64)
    b = 0.3
    gates[0, 0, 1, 0, 1] = b
    deviation, energy = measure_orthogonality(gates)
    # G^T G - I is ((b^2, b (1 - b)), (b (1 - b), (1 - b)^2 - 1)), and I has the norm sqrt(2).
    squares = b**4 + 2 * (b * (1 - b)) ** 2 + ((1 - b) ** 2 - 1) ** 2
    assert float(deviation[0]) == pytest.approx((squares / 2) ** 0.5)
    assert float(energy[0]) == pytest.approx((1 + b**2 + (1 - b) ** 2) / 2)
    assert deviation[1:4].tolist() == [0, 0, 0] and energy[1:4].tolist() == [1, 1, 1]


@pytest.mark.parametrize("mode", GATE_MODES)
def test_measures_are_those_of_the_explicit_matrices(mode):
    gates = random_gates(mode, batch=2, channels=3)
    generator = torch.Generator().manual_seed(3)
    weights = torch.rand(4, 2, 1, 4, 5, generator=generator, dtype=torch.float64).softmax(dim=0)
    found = measure_orthogonality(gates, weights)
    explicit = matrices(gates, weights)
    identity = torch.eye(explicit.shape[-1], dtype=torch.float64)
    deviation = (explicit.transpose(-1, -2) @ explicit - identity).square().sum(dim=(1, 2, 3))
    count = 6 * explicit.shape[-1]
    torch.testing.assert_close(found.deviation, (deviation / count).sqrt())
    torch.testing.assert_close(found.energy, explicit.square().sum(dim=(1, 2, 3)) / count)


def test_random_vectors_estimate_the_exact_measures():
    gates = random_gates("clipped", height=12, width=12)
    exact = measure_orthogonality(gates)
    generator = torch.Generator().manual_seed(1)
    estimated = measure_orthogonality(gates, num_probes=400, generator=generator)
    torch.testing.assert_close(torch.cat(estimated), torch.cat(exact), rtol=0.1, atol=0.02)


def test_chunks_give_the_same(monkeypatch):
    gates = random_gates("abs_sum", channels=2)
    expected = measure_orthogonality(gates)
    monkeypatch.setattr("rpe_d2.ops.orthogonality._VALUES_PER_CHUNK", 3 * 2 * 20)
    found = measure_orthogonality(gates)
    torch.testing.assert_close(torch.cat(found), torch.cat(expected))


def test_gates_that_are_not_negative_lose_energy_and_signed_ones_gain_it():
    """spn.md, section 5: softmax keeps .29 of the energy a direction and .19 merged."""
    energy = {
        mode: measure_orthogonality(random_gates(mode, batch=4, channels=4, height=8, width=8))[1]
        for mode in GATE_MODES
    }
    assert float(energy["softmax"][:4].mean()) == pytest.approx(0.29, rel=0.1)
    assert float(energy["softmax"][4]) == pytest.approx(0.19, rel=0.1)
    for mode in ("abs_sum", "clipped"):
        assert energy[mode][:4].min() > 1.5 and 1 < energy[mode][4] < energy[mode][:4].min()


def test_no_gradient_is_left_behind():
    gates = random_gates("clipped").requires_grad_()
    with torch.no_grad():
        measures = measure_orthogonality(gates)
    assert gates.grad is None and not measures.deviation.requires_grad


def test_wrong_arguments_are_one_line():
    with pytest.raises(ValueError, match="num_probes is 0 for maps of 65 x 64; allowed: 1 or more"):
        measure_orthogonality(torch.zeros(1, 1, 12, 65, 64))
    with pytest.raises(ValueError, match="num_probes is -1; allowed: 0 or more"):
        measure_orthogonality(torch.zeros(1, 1, 12, 4, 4), num_probes=-1)
