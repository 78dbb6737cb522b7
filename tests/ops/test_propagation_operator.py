"""Spatial propagation as an operator of torch: compiled, exported, under autocast and vmap."""

import pytest
import torch

from rpe_d2.ops import propagation_cpp
from rpe_d2.ops.linear_propagation import LinearPropagation
from rpe_d2.ops.propagation import (
    _maximum,
    _maximum_backward,
    _propagate,
    _propagate_backward,
    normalize_gates,
    spatial_propagation,
)

BACKENDS = ["torch", "cpp"] if propagation_cpp.available() else ["torch"]


def inputs(shared=True, dtype=torch.float32, size=(6, 7), grad=False):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=dtype)
    raw = torch.randn(2, 1 if shared else 3, 12, *size, dtype=dtype)
    gates = normalize_gates(raw)
    return x.requires_grad_(grad), gates.requires_grad_(grad)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", [True, False])
def test_the_registration_is_consistent(backend, shared):
    """torch checks schema, shapes without data, gradients and tracing."""
    x, gates = inputs(shared, torch.float64, grad=True)
    gates = gates.detach().unflatten(2, (4, 3)).requires_grad_()
    checked = torch.library.opcheck(_propagate, (x, gates, backend))
    assert set(checked.values()) == {"SUCCESS"} and "test_aot_dispatch_dynamic" in checked
    with torch.no_grad():
        directions = _propagate(x, gates, backend)
        torch.library.opcheck(
            _propagate_backward, (directions, x.detach(), gates.detach(), directions, backend)
        )
        if backend == "cpp":
            merged, directions = _maximum(x, gates)
            saved = x.detach(), gates.detach(), merged, directions
            torch.library.opcheck(_maximum_backward, (merged, *saved))
    if backend == "cpp":
        torch.library.opcheck(_maximum, (x, gates))


@pytest.mark.parametrize("merge", ["max", "mean", "none"])
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_compiled_as_one_graph(merge, backend):
    def loss(x, gates):
        return spatial_propagation(2 * x, gates, merge, backend).square().sum()

    torch.compiler.reset()  # the number of recompilations of a function is limited
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x, gates = inputs(grad=True)
    expected = torch.autograd.grad(loss(x, gates), (x, gates))
    found = torch.autograd.grad(compiled(x, gates), (x, gates))
    torch.testing.assert_close(compiled(x, gates), loss(x, gates))
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_compiled_by_inductor():
    layer = LinearPropagation(3)
    compiled = torch.compile(layer, fullgraph=True)
    x, _ = inputs()
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert layer.gates.weight.grad.abs().sum() > 0


def test_sizes_may_change_after_compilation():
    compiled = torch.compile(
        lambda x, gates: spatial_propagation(x, gates), fullgraph=True, backend="aot_eager",
        dynamic=True,
    )  # fmt: skip
    for size in ((6, 7), (5, 9), (12, 4)):
        x, gates = inputs(size=size)
        torch.testing.assert_close(compiled(x, gates), spatial_propagation(x, gates))


def test_exported():
    layer = LinearPropagation(3, merge="max")
    x, _ = inputs()
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))
    assert "rpe_d2.spatial_propagation" in str(program.graph)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("merge", ["max", "mean"])
def test_half_precision_and_autocast(dtype, merge):
    x, gates = inputs(grad=True)
    expected = spatial_propagation(x, gates, merge)
    half = spatial_propagation(x.to(dtype), gates.to(dtype), merge)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), expected, atol=0.03, rtol=0.03)
    with torch.autocast("cpu", dtype):
        mixed = spatial_propagation(x, gates, merge)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, expected)
    half.float().sum().backward()
    grad = x.grad.clone()
    x.grad = None
    expected.sum().backward()
    torch.testing.assert_close(grad, x.grad, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("merge", ["max", "mean"])
@pytest.mark.parametrize("dims", [(0, 0), (0, None), (None, 1)])
def test_vmap(merge, dims):
    torch.manual_seed(0)
    x = torch.randn(*[4] * (dims[0] is not None), 2, 3, 6, 7)
    raw = torch.randn(2, 1, 12, 6, 7) if dims[1] is None else torch.randn(4, 2, 1, 12, 6, 7)
    gates = normalize_gates(raw.reshape(-1, 1, 12, 6, 7)).reshape(raw.shape)
    if dims[1] == 1:
        gates = gates.transpose(0, 1)
    found = torch.vmap(lambda a, b: spatial_propagation(a, b, merge), in_dims=dims)(x, gates)
    for number in range(4):
        one = x[number] if dims[0] is not None else x
        own = gates if dims[1] is None else gates.select(dims[1], number)
        torch.testing.assert_close(found[number], spatial_propagation(one, own, merge))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize("mode", ["softmax", "abs_sum", "clipped"])
def test_the_layer_starts_near_the_identity_and_learns(shared, connections, mode):
    torch.manual_seed(0)
    layer = LinearPropagation(3, 5, shared=shared, connections=connections, mode=mode)
    x, guide = torch.randn(2, 3, 8, 9), torch.randn(2, 5, 8, 9)
    found = layer(x, guide)
    assert found.shape == x.shape
    if mode != "abs_sum":  # it makes gates of any size sum to 1
        assert (found - x).abs().mean() < 0.25 * x.abs().mean()
    if (mode, connections) == ("abs_sum", 1):
        return  # the only gate is 1 or -1
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    target = torch.roll(x, 1, dims=3)
    losses = []
    for _ in range(30):
        loss = (layer(x, guide) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("mode", ["softmax", "abs_sum", "clipped"])
def test_gradients_are_moderate_where_the_guide_is_zero(mode):
    layer = LinearPropagation(2, 3, mode=mode)
    x, guide = torch.randn(1, 2, 6, 6, requires_grad=True), torch.zeros(1, 3, 6, 6)
    layer(x, guide.requires_grad_()).square().sum().backward()
    assert all(p.grad.abs().max() < 1e3 for p in (x, guide, *layer.parameters()))


def test_the_features_are_the_guide_unless_there_is_another_one():
    layer = LinearPropagation(4)
    x = torch.randn(1, 4, 5, 6)
    assert torch.equal(layer(x), layer(x, x))
    assert torch.equal(layer(torch.ones(1, 4, 5, 6)), torch.ones(1, 4, 5, 6))
    assert "mode=softmax, merge=mean, connections=3" in repr(layer)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"channels": 0}, "channels is 0; allowed: 1 or more"),
        ({"channels": 2, "guide_channels": -1}, "guide_channels is -1; allowed: 1 or more"),
        ({"channels": 2, "connections": 2}, "connections is 2; allowed: 1, 3"),
        ({"channels": 2, "mode": "sum"}, "mode is 'sum'; allowed: softmax, abs_sum, clipped"),
        ({"channels": 2, "merge": "none"}, "merge is 'none'; allowed: max, mean"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinearPropagation(**arguments)
