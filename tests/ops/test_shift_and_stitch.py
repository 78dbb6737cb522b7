import numpy as np
import pytest
import torch

from rpe_d2.ops.shift_and_stitch import pool_shifts, split_shifts, stitch_shifts


@pytest.mark.parametrize("step", [1, 2, 3])
def test_shifts_hold_every_cell_of_a_grid(step):
    maps = torch.randn(2, 3, 4 * step, 5 * step)
    shifts = split_shifts(maps, step)
    assert shifts.shape == (2 * step * step, 3, 4, 5)
    for row in range(step):
        for column in range(step):
            first = 2 * (row * step + column)
            expected = maps[..., row::step, column::step]
            torch.testing.assert_close(shifts[first : first + 2], expected)
    torch.testing.assert_close(stitch_shifts(shifts, step), maps)


@pytest.mark.parametrize("size", [2, 3])
def test_stitched_poolings_are_the_maxima_of_all_windows(size):
    maps = torch.randn(2, 3, 4 * size - 1, 3 * size - 1)
    pooled = stitch_shifts(pool_shifts(maps, size), size).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(maps.numpy(), (size, size), axis=(2, 3))
    np.testing.assert_array_equal(pooled, windows.max(axis=(4, 5)))
