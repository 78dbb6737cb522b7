"""Grids of spatial transformers: slow references, closed forms, and finite differences."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator

from rpe_d2.ops.spatial_transform import (
    affine_grid,
    control_grid,
    homographies,
    identity_grid,
    invert_projective,
    projective_grid,
    sample_grid,
    thin_plate_spline,
    thin_plate_spline_grid,
)
from tests.reference import spatial_transform as reference

SIZE = (5, 7)
CORNERS = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def matrices(count=3, scale=0.1):
    """Returns projective transformations near the identity."""
    return torch.eye(3, dtype=torch.float64) + scale * random(count, 3, 3)


def test_the_identity_is_the_centers_of_the_pixels():
    expected = torch.from_numpy(reference.pixel_centers(*SIZE))
    torch.testing.assert_close(identity_grid(SIZE, torch.float64), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identity_parameters_give_exactly_the_identity(dtype):
    expected = identity_grid(SIZE, dtype).expand(2, -1, -1, -1)
    eye = torch.eye(3, dtype=dtype).expand(2, 3, 3)
    points = control_grid(4)
    targets = points.to(dtype).expand(2, -1, -1)
    assert torch.equal(affine_grid(eye[:, :2], SIZE), expected)
    assert torch.equal(projective_grid(eye, SIZE), expected)
    assert torch.equal(thin_plate_spline_grid(targets, points, SIZE), expected)


def test_an_affine_grid_is_a_projective_one_without_perspective():
    affine = matrices()
    affine[:, 2] = torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(affine_grid(affine[:, :2], SIZE), projective_grid(affine, SIZE))


def test_projective_grids_are_those_of_the_reference():
    found = projective_grid(matrices(), SIZE)
    for grid, matrix in zip(found, matrices()):
        expected = reference.projective_grid(matrix.numpy(), *SIZE)
        torch.testing.assert_close(grid, torch.from_numpy(expected))


def test_points_beyond_the_horizon_stay_finite_and_on_their_side():
    """At x = -0.5 the third coordinate is 0, and beyond it is negative."""
    matrix = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [2, 0, 1]]], requires_grad=True)
    grid = projective_grid(matrix, (1, 8))
    x = identity_grid((1, 8))[0, :, 0]
    torch.testing.assert_close(grid[0, 0, 2:, 0], x[2:] / (2 * x[2:] + 1))
    torch.testing.assert_close(grid[0, 0, :2, 0], x[:2] / 0.1)
    grid.square().sum().backward()
    assert matrix.grad.isfinite().all()


@pytest.mark.parametrize("count", [5, 16])
def test_the_spline_is_that_of_scipy(count):
    points, controls = random(40, 2), random(count, 2, seed=1)
    targets = random(2, count, 2, seed=2)
    found = thin_plate_spline(points, targets, controls)
    for result, target in zip(found, targets):
        spline = RBFInterpolator(controls, target, kernel="thin_plate_spline", degree=1)
        torch.testing.assert_close(result, torch.from_numpy(spline(points.numpy())))


def test_the_spline_meets_its_control_points_and_is_affine_where_they_are():
    controls, targets = control_grid(4).double(), random(2, 16, 2)
    torch.testing.assert_close(thin_plate_spline(controls, targets, controls), targets)
    matrix = matrices()[:1, :2]
    points = torch.nn.functional.pad(controls, (0, 1), value=1.0)
    grid = thin_plate_spline_grid(points @ matrix.mT, controls, SIZE)
    torch.testing.assert_close(grid, affine_grid(matrix, SIZE))


def test_the_control_points_are_a_regular_grid():
    expected = [[-1, -1], [0, -1], [1, -1], [-1, 0], [0, 0], [1, 0], [-1, 1], [0, 1], [1, 1]]
    assert control_grid(3).tolist() == expected
    assert torch.equal(control_grid(2), CORNERS)


@pytest.mark.parametrize("points", [[[0, 0], [1, 1], [2, 2], [3, 3]], [[0, 0], [0, 0], [1, 0]]])
def test_points_without_a_spline_are_reported_in_one_line(points):
    points = torch.tensor(points, dtype=torch.float32)
    with pytest.raises(ValueError, match="control points coincide or lie on a line; allowed"):
        thin_plate_spline(points, points[None], points)


def test_a_homography_maps_four_points_to_their_targets():
    targets = CORNERS.double() + 0.3 * random(2, 4, 2)
    found = homographies(CORNERS.double().expand(2, 4, 2), targets)
    for matrix, target in zip(found, targets):
        assert matrix[2, 2] == 1
        for corner, expected in zip(CORNERS.double(), target):
            x, y, depth = matrix @ torch.cat([corner, torch.ones(1, dtype=torch.float64)])
            torch.testing.assert_close(torch.stack([x, y]) / depth, expected)


def test_inverses_undo_their_transformations():
    found = invert_projective(matrices())
    torch.testing.assert_close(found, torch.linalg.inv(matrices()))
    eye = torch.eye(3)[None]
    assert torch.equal(invert_projective(eye), eye)
    assert torch.equal(invert_projective(eye * -1), eye * -1)
    assert invert_projective(torch.zeros(1, 3, 3)).isfinite().all()


def test_sampling_is_bilinear_with_zeros_outside():
    maps, grids = random(2, 3, 4, 6), 1.2 * random(2, *SIZE, 2).clamp(-1, 1)
    found = sample_grid(maps, grids)
    for n, c, row, column in np.ndindex(found.shape):
        expected = reference.bilinear(maps[n, c].numpy(), *grids[n, row, column].tolist())
        assert found[n, c, row, column] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_of_the_values_alone(dtype):
    maps = random(1, 1, 8, 1200).to(dtype)
    eye = torch.eye(3)[None]
    points = control_grid(4)
    with torch.autocast("cpu", torch.bfloat16):
        grids = projective_grid(eye, (8, 1200)), thin_plate_spline_grid(
            points[None], points, (8, 1200)
        )
        for grid in grids:
            result = sample_grid(maps, grid)
            assert result.dtype == dtype
            torch.testing.assert_close(result, maps, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("kind", ["affine", "projective", "tps", "homographies", "inverse"])
def test_gradients(kind):
    """In float64, also through the sampling; the points are at no border between pixels."""
    maps = random(2, 1, 4, 4, seed=3).requires_grad_()
    controls = control_grid(3).double()
    inputs = {
        "affine": matrices(2)[:, :2],
        "projective": matrices(2),
        "tps": controls + 0.1 * random(2, 9, 2),
        "homographies": CORNERS.double() + 0.1 * random(2, 4, 2),
        "inverse": matrices(2),
    }
    grids = {
        "affine": lambda x: affine_grid(x, (3, 3)),
        "projective": lambda x: projective_grid(x, (3, 3)),
        "tps": lambda x: thin_plate_spline_grid(x, controls, (3, 3)),
        "homographies": lambda x: projective_grid(
            homographies(CORNERS.double().expand(2, 4, 2), x), (3, 3)
        ),
        "inverse": lambda x: projective_grid(invert_projective(x), (3, 3)),
    }
    parameters = inputs[kind].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda maps, parameters: sample_grid(maps, grids[kind](parameters)), (maps, parameters)
    )
