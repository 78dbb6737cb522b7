"""Spatial propagation against its definition, in every backend."""

import os
import subprocess
import sys

import pytest
import torch

from rpe_d2.ops import propagation_cpp
from rpe_d2.ops.propagation import DIRECTIONS, normalize_gates, spatial_propagation
from tests.conftest import ROOT
from tests.helpers.propagation import SHAPES, differences_of_triton, inputs, with_gradients
from tests.reference.propagation import matrix, propagate


@pytest.fixture(params=["torch", "cpp"])
def backend(request):
    """Backends that run on any CPU."""
    if request.param == "cpp" and not propagation_cpp.available():
        pytest.skip("no C++ compiler")
    return request.param


@pytest.mark.parametrize("shape, shared, connections", SHAPES)
@pytest.mark.parametrize("mode", ["softmax", "abs_sum"])
def test_it_is_the_definition(shape, shared, connections, mode, backend):
    x, gates = inputs(shape, shared, connections, mode=mode)
    result = with_gradients(
        lambda x, gates: spatial_propagation(x, gates, "none", backend), x, gates
    )
    expected = with_gradients(propagate, x, gates)
    for one, other in zip(result, expected):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


def test_it_is_the_matrix_of_the_paper():
    x, gates = inputs((1, 1, 4, 6))
    table = matrix(gates[0, 0, :3])
    expected = (table @ x[0, 0].T.reshape(-1)).reshape(6, 4).T
    result = spatial_propagation(x, gates, "none")[0, 0, 0]
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(table.sum(dim=1), torch.ones(24, dtype=torch.float64))
    assert torch.equal(table, table.tril())


@pytest.mark.parametrize("shape, shared, connections", SHAPES[:6])
@pytest.mark.parametrize("merge", ["max", "mean", "none"])
def test_gradients_are_those_of_finite_differences(shape, shared, connections, merge, backend):
    x, gates = inputs(shape, shared, connections)
    x, gates = x.requires_grad_(), gates.detach().requires_grad_()
    torch.autograd.gradcheck(
        lambda x, gates: spatial_propagation(x, gates, merge, backend), (x, gates)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["softmax", "abs_sum", "clipped"])
def test_constants_are_preserved_exactly(dtype, mode, backend):
    _, gates = inputs((2, 3, 9, 6), dtype=torch.float32, mode=mode)
    x = torch.tensor([0.3, -7.1, 1e4]).view(1, 3, 1, 1).expand(2, 3, 9, 6).to(dtype)
    result = spatial_propagation(x, gates.to(dtype), "none", backend)
    assert torch.equal(result, x.expand(4, *x.shape)) and result.dtype == dtype


def test_results_stay_within_the_range_of_the_input():
    x, gates = inputs((1, 4, 40, 60), dtype=torch.float32)
    result = spatial_propagation(x, gates, "none")
    assert (result.amax(dim=(0, 3, 4)) <= x.amax(dim=(2, 3)) + 1e-6).all()
    assert (result.amin(dim=(0, 3, 4)) >= x.amin(dim=(2, 3)) - 1e-6).all()


def test_masks_that_sum_to_one_still_do_after_the_mean():
    x, gates = inputs((1, 5, 7, 8), shared=True)
    result = spatial_propagation(x.softmax(dim=1), gates, "mean")
    torch.testing.assert_close(result.sum(dim=1), torch.ones(1, 7, 8, dtype=torch.float64))


def by_direction(gates):
    return gates.unflatten(2, (4, -1))


def test_a_flipped_image_flips_the_result():
    x, gates = inputs((2, 3, 5, 7))
    result = spatial_propagation(x, gates, "none")
    parts = by_direction(gates)[:, :, [1, 0, 2, 3]].flip(-1)
    parts[:, :, 2:] = parts[:, :, 2:].flip(3)  # previous and next column change places
    flipped = spatial_propagation(x.flip(-1), parts.flatten(2, 3), "none")
    torch.testing.assert_close(flipped[[1, 0, 2, 3]].flip(-1), result)


def test_a_transposed_image_transposes_the_result():
    x, gates = inputs((2, 3, 5, 7))
    result = spatial_propagation(x, gates, "none")
    parts = by_direction(gates)[:, :, [2, 3, 0, 1]].transpose(-1, -2)
    turned = spatial_propagation(x.transpose(-1, -2), parts.flatten(2, 3), "none")
    torch.testing.assert_close(turned[[2, 3, 0, 1]].transpose(-1, -2), result)


def test_directions_are_in_the_order_of_their_names():
    """With gates of 1, a bright pixel in the middle becomes a ray in each direction."""
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 1
    gates = torch.ones(1, 1, 4, 5, 5)
    gates[:, :, :, 2, 2] = 0  # the pixel keeps its value
    rays = dict(zip(DIRECTIONS, spatial_propagation(x, gates, "none")[:, 0, 0]))
    assert rays["left to right"][2].tolist() == [0, 0, 1, 1, 1]
    assert rays["right to left"][2].tolist() == [1, 1, 1, 0, 0]
    assert rays["top down"][:, 2].tolist() == [0, 0, 1, 1, 1]
    assert rays["down top"][:, 2].tolist() == [1, 1, 1, 0, 0]
    assert all(ray.sum() == 3 for ray in rays.values())


def test_inputs_need_not_be_contiguous(backend):
    x, gates = inputs((2, 4, 6, 10))
    expected = spatial_propagation(x, gates, backend=backend)
    strided = torch.randn(2, 10, 4, 6, dtype=torch.float64).permute(0, 2, 3, 1).copy_(x)
    assert not strided.is_contiguous()
    every_second = torch.zeros(2, 4, 12, 6, 20, dtype=torch.float64)[..., ::2].copy_(gates)
    assert torch.equal(spatial_propagation(strided, every_second, backend=backend), expected)


def test_merges(backend):
    x, gates = inputs((1, 2, 4, 4))
    result = spatial_propagation(x, gates, "none", backend)
    largest = spatial_propagation(x, gates, backend=backend)
    assert torch.equal(largest, result.max(dim=0).values)
    mean = spatial_propagation(x, gates, "mean", backend)
    torch.testing.assert_close(mean, result.mean(dim=0))


@pytest.mark.parametrize("connections", [1, 3])
def test_gates_are_normalized(connections):
    raw = 3 * torch.randn(2, 3, 4 * connections, 4, 5, dtype=torch.float64)
    parts = raw.unflatten(2, (4, connections))
    softmax = by_direction(normalize_gates(raw, "softmax", connections))
    expected = parts.exp() / (1 + parts.exp().sum(dim=3, keepdim=True))
    torch.testing.assert_close(softmax, expected)
    assert (softmax > 0).all() and (softmax.sum(dim=3) < 1).all()
    total = parts.abs().sum(dim=3, keepdim=True)
    abs_sum = by_direction(normalize_gates(raw, "abs_sum", connections))
    torch.testing.assert_close(abs_sum, parts / total)
    clipped = by_direction(normalize_gates(raw, "clipped", connections))
    torch.testing.assert_close(clipped, torch.where(total > 1, parts / total, parts))
    for mode in ("abs_sum", "clipped"):
        zero = normalize_gates(torch.zeros_like(raw), mode, connections)
        assert torch.equal(zero, torch.zeros_like(raw))


def test_half_precision_is_computed_in_single(backend):
    x, gates = inputs((1, 2, 8, 9), dtype=torch.float32)
    x, gates = x.bfloat16(), gates.bfloat16()
    expected = spatial_propagation(x.float(), gates.float(), backend=backend).bfloat16()
    assert torch.equal(spatial_propagation(x, gates, backend=backend), expected)


@pytest.mark.parametrize("merge", ["max", "none"])
def test_threads_change_nothing(merge, backend):
    x, gates = inputs((2, 3, 65, 70))
    threads = torch.get_num_threads()
    try:
        result = []
        for count in (1, 3):
            torch.set_num_threads(count)
            result.append(
                with_gradients(
                    lambda x, gates: spatial_propagation(x, gates, merge, backend), x, gates
                )
            )
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*result))
    plain = with_gradients(lambda x, gates: spatial_propagation(x, gates, merge, "torch"), x, gates)
    for one, other in zip(result[0], plain):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


def test_nan_in_the_maps_is_not_hidden(backend):
    x, gates = inputs((1, 1, 3, 3))
    x[0, 0, 1, 1] = float("nan")
    result, of_x, _ = with_gradients(
        lambda x, gates: spatial_propagation(x, gates, "max", backend), x, gates
    )
    assert result.isnan().all() and of_x.isnan().all()


def test_without_channels_gates_have_no_gradient(backend):
    x, gates = torch.zeros(2, 0, 4, 4), torch.zeros(2, 1, 12, 4, 4)
    for gradient in with_gradients(
        lambda x, gates: spatial_propagation(x, gates, "none", backend), x, gates
    )[1:]:
        assert not gradient.any()


@pytest.fixture
def fresh_library(tmp_path, monkeypatch):
    """Simulates a process that has not loaded the library, and returns its empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caches = propagation_cpp.available, propagation_cpp.library
    for cache in caches:
        cache.cache_clear()
    yield tmp_path / "rpe_d2"
    for cache in caches:
        cache.cache_clear()


def test_a_damaged_library_is_built_again(fresh_library):
    if not propagation_cpp.available():
        pytest.skip("no C++ compiler")
    (path,) = fresh_library.glob("*.so")
    whole = path.read_bytes()
    code = "from rpe_d2.ops import propagation_cpp as p; print(p.available())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # Replaced, not overwritten in place, because this process has it loaded.
    path.unlink()
    path.write_bytes(whole[: len(whole) // 2])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "True", done.stderr
    assert len(path.read_bytes()) == len(whole)


def test_a_library_with_a_damaged_checksum_is_built_again(fresh_library):
    if not propagation_cpp.available():
        pytest.skip("no C++ compiler")
    (checksum,) = fresh_library.glob("*.sha256")
    whole = checksum.read_bytes()
    checksum.write_bytes(b"\xff\xfe\x00")  # no text
    (path,) = fresh_library.glob("*.so")
    assert not propagation_cpp._is_whole(path)
    propagation_cpp.library.cache_clear()
    propagation_cpp.library()
    assert propagation_cpp._is_whole(path) and len(checksum.read_bytes()) == len(whole)


@pytest.mark.parametrize("where", ["a folder for all", "relative"])
def test_a_library_is_loaded_from_a_folder_of_one_s_own_alone(where, fresh_library, monkeypatch):
    if where == "relative":
        monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    else:
        fresh_library.mkdir()
        fresh_library.chmod(0o777)
    assert not propagation_cpp.available()
    with pytest.raises(ValueError, match="allowed: "):
        propagation_cpp.library()


@pytest.mark.parametrize(
    "compiler, reason",
    [
        ("no-such-compiler", "CXX is 'no-such-compiler'; allowed: "),
        ("false", "false"),
        ("true", "true wrote nothing"),
        (None, "no C++ compiler"),
    ],
)
def test_without_a_compiler_it_runs_in_torch(
    compiler, reason, fresh_library, tmp_path, monkeypatch, caplog
):
    """The compiler is not installed, fails, does nothing, or is not found."""
    if compiler:
        monkeypatch.setenv("CXX", compiler)
    else:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    x, gates = inputs((1, 2, 5, 6))
    with caplog.at_level("INFO"):
        result = spatial_propagation(x, gates, "none")
    assert torch.equal(result, spatial_propagation(x, gates, "none", "torch"))
    with pytest.raises(ValueError, match="^backend is 'cpp': .*; allowed: torch$") as error:
        spatial_propagation(x, gates, backend="cpp")
    assert reason in str(error.value) and "\n" not in str(error.value)
    assert "runs in plain torch" in caplog.text and reason in caplog.text
    assert not list(tmp_path.rglob("*.so"))


def test_triton_kernels_agree_with_torch_in_the_interpreter():
    pytest.importorskip("triton", reason="this torch comes without Triton")
    code = "from tests.helpers.propagation import differences_of_triton as d; print(*d('cpu'))"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    single, half = map(float, done.stdout.split())
    assert single < 1e-5 and half <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_triton_kernels_agree_with_torch_on_a_gpu():
    single, half = differences_of_triton("cuda")
    assert single < 1e-5 and half <= 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(2, 3, 4)}, "x is torch.float32 of shape"),
        ({"x": torch.zeros(1, 2, 4, 4, dtype=torch.long)}, "allowed: floating point"),
        ({"gates": torch.zeros(1, 2, 6, 4, 4)}, "gates are torch.float32 of shape"),
        ({"gates": torch.zeros(1, 3, 12, 4, 4)}, "1 or 2, 12 or 4, 4, 4"),
        ({"gates": torch.zeros(1, 2, 12, 4, 5)}, "gates are"),
        ({"gates": torch.full((1, 2, 12, 4, 4), float("nan"))}, "gates contain NaN"),
        ({"merge": "sum"}, "merge is 'sum'; allowed: max, mean, none"),
        ({"backend": "jax"}, "backend is 'jax'; allowed: auto, torch, cpp, triton"),
    ],
)
def test_errors_are_one_line(change, message):
    arguments = {"x": torch.zeros(1, 2, 4, 4), "gates": torch.zeros(1, 2, 12, 4, 4), **change}
    with pytest.raises(ValueError) as error:
        spatial_propagation(**arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "shape, options",
    [((1, 1, 6, 2, 2), {}), ((1, 1, 12, 2, 2), {"mode": "tanh"}), ((12, 2, 2), {})],
)
def test_gates_of_a_wrong_kind_are_named(shape, options):
    with pytest.raises(ValueError, match="allowed:"):
        normalize_gates(torch.zeros(shape), **options)
