import pytest
import torch
from torch.nn import functional as F

from rpe_d2.ops.mean_shift import margin_bandwidth, mean_shift
from tests.helpers.embeddings import OPTIONS, grid_positions, loop_gradients, unit_vectors
from tests.reference.mean_shift import dense_mean_shift


@pytest.mark.parametrize("dim", [1, 3, 8, 14, 17])
@pytest.mark.parametrize("with_keys", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_like_the_reference(dim, with_keys, options):
    inputs = dict(x=unit_vectors(40, dim), positions=grid_positions(40))
    if with_keys:
        inputs.update(keys=unit_vectors(25, dim), key_positions=grid_positions(25))
    if not options:
        inputs = {name: inputs[name] for name in inputs if "positions" not in name}
    for tensor in inputs.values():
        tensor.requires_grad_()
    trajectory = mean_shift(**inputs, bandwidth=0.4, num_loops=3, return_trajectory=True, **options)
    expected = dense_mean_shift(**inputs, bandwidth=0.4, num_loops=3, **options)
    assert len(trajectory) == len(expected) == 4
    objective = expected_objective = 0.0
    for step, (expected_x, expected_positions) in zip(trajectory, expected):
        if options.get("shift_positions"):
            step, positions = step
            assert (positions - expected_positions).abs().max() < 1e-9
            objective = objective + (positions * torch.linspace(-1, 1, 40)[:, None]).sum()
            expected_objective += (expected_positions * torch.linspace(-1, 1, 40)[:, None]).sum()
        assert step.shape == (40, dim) and (step - expected_x).abs().max() < 1e-9
        objective = objective + (step * torch.linspace(-2, 1, 40)[:, None]).sum()
        expected_objective += (expected_x * torch.linspace(-2, 1, 40)[:, None]).sum()
    gradients = torch.autograd.grad(objective, inputs.values())
    expected_gradients = torch.autograd.grad(expected_objective, inputs.values())
    for gradient, expected_gradient in zip(gradients, expected_gradients):
        assert (gradient - expected_gradient).abs().max() < 1e-9


@pytest.mark.parametrize("with_keys", [False, True])
@pytest.mark.parametrize("shift_positions", [False, True])
def test_a_spatial_bandwidth_for_each_point(with_keys, shift_positions):
    inputs = dict(x=unit_vectors(40, 5), positions=grid_positions(40))
    if with_keys:
        inputs.update(keys=unit_vectors(25, 5), key_positions=grid_positions(25))
    inputs["spatial_bandwidth"] = torch.linspace(2, 9, 40, dtype=torch.float64)
    for tensor in inputs.values():
        tensor.requires_grad_()
    options = dict(bandwidth=0.4, num_loops=2, shift_positions=shift_positions)
    result = mean_shift(**inputs, **options)
    result = result[0] if shift_positions else result
    expected = dense_mean_shift(**inputs, **options)[-1][0]
    assert (result - expected).abs().max() < 1e-9
    weights = torch.linspace(-2, 1, 40)[:, None]
    gradients = torch.autograd.grad((result * weights).sum(), inputs.values())
    expected_gradients = torch.autograd.grad((expected * weights).sum(), inputs.values())
    for gradient, expected_gradient in zip(gradients, expected_gradients):
        assert (gradient - expected_gradient).abs().max() < 1e-9
    # One bandwidth for all points, as a tensor, in a batch.
    x, positions = unit_vectors(2, 20, 4), torch.stack([grid_positions(20)] * 2)
    same = torch.full((2, 20), 3.0, dtype=torch.float64)
    alike = [mean_shift(x, 0.3, 3, positions=positions, spatial_bandwidth=b) for b in (3.0, same)]
    assert torch.allclose(*alike, atol=1e-12)
    with pytest.raises(ValueError, match="spatial_bandwidth has shape"):
        mean_shift(x, 0.3, 1, positions=positions, spatial_bandwidth=same[:, :5])


def test_one_loop_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    weight = torch.tensor(-1 / 0.5**2).double().exp()  # weight of the other point, at a cosine of 0
    expected = F.normalize(torch.stack([torch.ones_like(weight), weight]), dim=0)
    assert torch.allclose(mean_shift(x, 0.5, 1)[0], expected, atol=1e-14)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("with_keys", [False, True])
def test_batch_equals_each_alone(options, with_keys):
    x, positions = unit_vectors(3, 20, 4), torch.stack([grid_positions(20) for _ in range(3)])
    positions += torch.tensor([0.0, 900.0, -70.0])[:, None, None]
    fixed = {}
    if with_keys:
        fixed = dict(keys=unit_vectors(3, 9, 4), key_positions=positions[:, :9] + 2)
    together = mean_shift(x, 0.3, 3, positions=positions, **fixed, **options)
    for i in range(3):
        own = {name: tensor[i] for name, tensor in fixed.items()}
        alone = mean_shift(x[i], 0.3, 3, positions=positions[i], **own, **options)
        if not options.get("shift_positions"):
            assert torch.allclose(together[i], alone, atol=1e-12)
        else:
            assert torch.allclose(together[0][i], alone[0], atol=1e-12)
            assert torch.allclose(together[1][i], alone[1], atol=1e-10)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize("garbage", [0.0, 1e4])
def test_padded_batch_equals_each_alone(dtype, tolerance, garbage):
    sizes = (30, 12, 1)
    x = torch.zeros(3, 30, 4, dtype=dtype)
    positions = torch.full((3, 30, 2), garbage, dtype=dtype)
    mask = torch.arange(30) < torch.tensor(sizes)[:, None]
    for i, size in enumerate(sizes):
        x[i, :size] = unit_vectors(size, 4, dtype=dtype)
        # Far from the padding, so that precision is lost if the padding counts in the center.
        positions[i, :size] = grid_positions(size, dtype) + 3000
    x[~mask] = x[0, 0].clone()  # a valid vector, which must not attract any point
    options = dict(spatial_bandwidth=3.0, shift_positions=True)
    x.requires_grad_()
    moved, moved_positions = mean_shift(x, 0.4, 3, positions=positions, mask=mask, **options)
    (gradient,) = torch.autograd.grad(moved[mask].sum(), x)
    assert (gradient[~mask] == 0).all() and gradient[mask].abs().max() > 0.01
    for i, size in enumerate(sizes):
        alone = mean_shift(x[i, :size], 0.4, 3, positions=positions[i, :size], **options)
        assert (moved[i, :size] - alone[0]).abs().max() < tolerance
        assert (moved_positions[i, :size] - alone[1]).abs().max() < max(tolerance, 1e-3)


def test_mask_without_positions_and_of_keys():
    x, keys = unit_vectors(2, 10, 4), unit_vectors(2, 7, 4)
    mask = torch.arange(10) < torch.tensor([[10], [6]])
    moved = mean_shift(x, 0.4, 2, mask=mask)
    assert torch.allclose(moved[1, :6], mean_shift(x[1, :6], 0.4, 2), atol=1e-12)
    assert not torch.allclose(moved[1, :6], mean_shift(x, 0.4, 2)[1, :6], atol=1e-3)
    key_mask = torch.arange(7) < torch.tensor([[7], [3]])
    moved = mean_shift(x, 0.4, 2, keys=keys, mask=key_mask)
    assert torch.allclose(moved[1], mean_shift(x[1], 0.4, 2, keys=keys[1, :3]), atol=1e-12)


def test_fully_padded_image_stays_finite():
    x = unit_vectors(2, 5, 3).requires_grad_()
    mask = torch.tensor([[True], [False]]).expand(2, 5)
    options = dict(positions=torch.rand(2, 5, 2), spatial_bandwidth=2.0, shift_positions=True)
    moved, positions = mean_shift(x, 0.2, 2, mask=mask, **options)
    moved.sum().backward()
    assert moved.isfinite().all() and positions.isfinite().all() and x.grad.isfinite().all()


class TestTolerance:
    def test_stops_early_and_within_tolerance(self):
        x = F.normalize(unit_vectors(4, 3).repeat(20, 1) + 0.1 * torch.randn(80, 3).double(), dim=1)
        trajectory = mean_shift(x, 0.2, 100, tolerance=1e-3, return_trajectory=True)
        changes = [(b - a).abs().max().item() for a, b in zip(trajectory, trajectory[1:])]
        assert 3 < len(trajectory) < 50
        assert changes[-1] <= 1e-3 and all(change > 1e-3 for change in changes[:-1])
        assert torch.equal(mean_shift(x, 0.2, 100, tolerance=1e-3), trajectory[-1])

    def test_zero_runs_all_loops(self):
        x = torch.eye(3, dtype=torch.float64)
        assert len(mean_shift(x, 0.01, 9, return_trajectory=True)) == 10
        assert len(mean_shift(x, 0.01, 9, tolerance=1e-9, return_trajectory=True)) == 2

    def test_padding_does_not_delay_the_stop(self):
        x = torch.eye(3, dtype=torch.float64)[None].repeat(1, 2, 1)
        x[0, 3:] = F.normalize(torch.tensor([[1.0, 1, 1], [1, 1, 1.1], [1, 1.1, 1]]), dim=1)
        mask = torch.arange(6)[None] < 3
        for loops, used in ((9, mask), (9, None)):
            steps = mean_shift(x, 0.05, loops, tolerance=1e-6, mask=used, return_trajectory=True)
            assert (len(steps) == 2) == (used is not None)


class TestBandwidth:
    @pytest.mark.parametrize("spatial", [None, 4.0])
    def test_gradcheck(self, spatial):
        x = unit_vectors(7, 3).requires_grad_()
        bandwidth = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        positions = grid_positions(7).requires_grad_()

        def shift(x, bandwidth, positions):
            options = dict(spatial_bandwidth=spatial, shift_positions=True)
            return mean_shift(x, bandwidth, 2, positions=positions, **options)

        assert torch.autograd.gradcheck(shift, (x, bandwidth, positions))

    @pytest.mark.parametrize("x_dtype", [torch.float16, torch.float32, torch.float64])
    def test_tensor_equals_float(self, x_dtype):
        x = unit_vectors(30, 3).to(x_dtype)
        moved = mean_shift(x, torch.tensor(0.25), 2)
        assert moved.dtype == x_dtype and torch.equal(moved, mean_shift(x, 0.25, 2))

    def test_tiny_bandwidth_does_not_overflow(self):
        x = unit_vectors(200, 3, dtype=torch.float32).requires_grad_()
        moved = mean_shift(x, 0.01, 3)
        moved.sum().backward()
        assert moved.isfinite().all() and x.grad.isfinite().all()
        assert (moved - x).abs().max() < 0.1

    def test_tied_to_the_margin(self):
        assert margin_bandwidth(0.4) == pytest.approx(0.2)


class TestSizes:
    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    @pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
    def test_no_point(self, shape, options):
        x = torch.zeros(shape, requires_grad=True)
        positions = torch.zeros(*shape[:-1], 2)
        moved = mean_shift(x, 0.2, 3, tolerance=1e-3, positions=positions, **options)
        if options.get("shift_positions"):
            moved, positions = moved
            assert positions.shape == (*shape[:-1], 2)
        assert moved.shape == shape
        moved.sum().backward()
        assert x.grad.shape == shape

    def test_one_point_stays(self):
        x, positions = unit_vectors(1, 4), torch.tensor([[700.0, 3.0]]).double()
        options = dict(positions=positions, spatial_bandwidth=2.0, shift_positions=True)
        moved, moved_positions = mean_shift(x, 0.2, 4, **options)
        assert torch.allclose(moved, x) and torch.allclose(moved_positions, positions)

    def test_no_loop_returns_the_input(self):
        x, positions = unit_vectors(5, 4).float(), grid_positions(5)
        assert torch.equal(mean_shift(x, 0.2, 0), x)
        (only,) = mean_shift(x, 0.2, 0, return_trajectory=True)
        assert torch.equal(only, x)
        moved, where = mean_shift(x, 0.2, 0, positions=positions, shift_positions=True)
        assert torch.equal(moved, x) and torch.allclose(where, positions, atol=1e-5)

    def test_results_are_unit_vectors(self):
        moved = mean_shift(unit_vectors(50, 6), 0.7, 2)
        assert (moved.norm(dim=1) - 1).abs().max() < 1e-12


class TestPositions:
    @pytest.mark.parametrize("offset", [5000.0, -20000.0])
    @pytest.mark.parametrize("with_keys", [False, True])
    def test_far_from_the_origin_equals_centered(self, offset, with_keys):
        x, positions = unit_vectors(80, 4, dtype=torch.float32), grid_positions(80).float().round()
        options = dict(spatial_bandwidth=2.0, shift_positions=True)

        def shift(move):
            keys = dict(keys=x[:30], key_positions=positions[:30] + move) if with_keys else {}
            return mean_shift(x, 0.3, 2, positions=positions + move, **keys, **options)

        near, far = shift(0.0), shift(offset)
        assert (far[0] - near[0]).abs().max() < 1e-4
        assert (far[1] - offset - near[1]).abs().max() < 0.01

    @pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.float64])
    def test_types_other_than_that_of_x(self, dtype):
        x, positions = unit_vectors(40, 4, dtype=torch.float32), grid_positions(40).round()
        options = dict(spatial_bandwidth=2.0, shift_positions=True)
        expected = mean_shift(x, 0.3, 2, positions=positions.float(), **options)
        moved = mean_shift(x, 0.3, 2, positions=positions.to(dtype), **options)
        assert moved[0].dtype == torch.float32 and moved[1].is_floating_point()
        assert torch.allclose(moved[0], expected[0], atol=1e-6)
        # Integer positions become fractional.
        assert (moved[1].float() - expected[1]).abs().max() < 0.02
        mean_shift(x, 0.3, 1, keys=x.to(torch.float64 if dtype == torch.int64 else dtype))

    def test_far_apart_points_ignore_each_other(self):
        x, positions = unit_vectors(40, 4), grid_positions(40)
        positions[20:] += 500
        options = dict(spatial_bandwidth=4.0, shift_positions=True)
        together = mean_shift(x, 0.3, 3, positions=positions, **options)
        alone = mean_shift(x[:20], 0.3, 3, positions=positions[:20], **options)
        assert torch.allclose(together[0][:20], alone[0], atol=1e-12)
        assert torch.allclose(together[1][:20], alone[1], atol=1e-10)


@pytest.mark.parametrize(
    "name, change",
    [
        ("x", dict(x=torch.ones(3))),
        ("x", dict(x=torch.ones(4, 3, dtype=torch.long))),
        ("bandwidth", dict(bandwidth=0.0)),
        ("num_loops", dict(num_loops=-1)),
        ("spatial_bandwidth", dict(spatial_bandwidth=0.0, positions=torch.ones(4, 2))),
        ("spatial_bandwidth", dict(spatial_bandwidth=1.0)),
        ("spatial_bandwidth", dict(shift_positions=True)),
        ("positions", dict(positions=torch.ones(4, 3))),
        ("positions", dict(positions=torch.ones(5, 2))),
        ("keys", dict(keys=torch.ones(5, 4))),
        ("keys", dict(keys=torch.ones(2, 5, 3))),
        ("keys", dict(keys=torch.ones(5, 3), positions=torch.ones(4, 2))),
        (
            "key_positions",
            dict(
                keys=torch.ones(5, 3),
                positions=torch.ones(4, 2),
                key_positions=torch.ones(4, 2),
            ),
        ),
        ("mask", dict(mask=torch.ones(4, dtype=torch.bool))),
        ("mask", dict(x=torch.ones(2, 4, 3), mask=torch.ones(2, 4))),
        ("mask", dict(x=torch.ones(2, 4, 3), mask=torch.ones(2, 5, dtype=torch.bool))),
    ],
)
def test_errors_name_the_argument_in_one_line(name, change):
    arguments = dict(x=torch.ones(4, 3), bandwidth=0.2, num_loops=1)
    with pytest.raises(ValueError, match=f"^{name} ") as error:
        mean_shift(**{**arguments, **change})
    assert "\n" not in str(error.value)


def test_points_go_where_their_neighbors_went():
    """With the keys after a loop as targets, points go to weighted means of these."""
    x = F.normalize(torch.randn(40, 5, dtype=torch.float64), dim=1)
    positions = 20 * torch.rand(40, 2, dtype=torch.float64)
    options = {"spatial_bandwidth": 6.0, "shift_positions": True}
    loops = mean_shift(x, 0.4, 3, positions=positions, return_trajectory=True, **options)
    keys = {"keys": x, "key_positions": positions}
    for moved, moved_positions in loops:
        result, found_positions = mean_shift(
            x[:7],
            0.4,
            1,
            positions=positions[:7],
            targets=moved,
            target_positions=moved_positions,
            **keys,
            **options,
        )
        kernel = torch.exp(
            (x[:7] @ x.T - 1) / 0.4**2 - torch.cdist(positions[:7], positions) ** 2 / 72
        )
        weights = kernel / kernel.sum(dim=1, keepdim=True)
        torch.testing.assert_close(result, F.normalize(weights @ moved, dim=1))
        torch.testing.assert_close(found_positions, weights @ moved_positions)
    result, _ = mean_shift(x[:7], 0.4, 1, positions=positions[:7], **keys, **options)
    torch.testing.assert_close(result, loops[1][0][:7])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"targets": torch.zeros(4, 3)}, "targets need keys"),
        ({"keys": torch.zeros(4, 3), "targets": torch.zeros(5, 3)}, "targets has shape"),
        ({"keys": torch.zeros(4, 3), "target_positions": torch.zeros(4, 3)}, "target_positions"),
        (
            {"keys": torch.zeros(4, 3), "key_positions": torch.zeros(4, 2),
             "targets": torch.zeros(4, 3), "positions": torch.zeros(6, 2),
             "shift_positions": True},
            "need target_positions",
        ),
    ],
)  # fmt: skip
def test_targets_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        mean_shift(torch.zeros(6, 3), 0.4, 1, **change)


@pytest.mark.parametrize("dim", [3, 8])
def test_gradients_through_loops_vanish_only_where_all_modes_have_merged(dim):
    """Slides 49 and 51 say that they neither vanish nor explode."""
    loops = (0, 5, 20, 40, 50)
    for bandwidth in (0.2, 0.3):
        gradients, _ = loop_gradients(loops, bandwidth, dim)
        assert (gradients[1:] > gradients[0]).all() and gradients[1] < 50 * gradients[0]
        assert (gradients < 5000 * gradients[0]).all()
    gradients, losses = loop_gradients(loops, 0.5, dim)
    # One mode for all five groups: no positive pair costs anything, all others cost 0.5.
    assert abs(losses[-1] - 0.5 * 4 / 5) < 1e-9 and gradients[-1] < 1e-12
