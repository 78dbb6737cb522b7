"""Windows: labels at the limits of the tolerances, crops, assembled masks and losses."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rpe_d2.baselines.window_losses import window_losses
from rpe_d2.baselines.windows import (
    IGNORED,
    NEGATIVE,
    WindowTolerances,
    assemble_windows,
    crop_windows,
    label_windows,
    window_counts,
)
from tests.reference import windows as reference

PAPER = WindowTolerances()


def labels_of(windows, boxes):
    """Returns the labels of windows (x, y, side)."""
    windows = torch.tensor(windows, dtype=torch.float64).reshape(-1, 3)
    boxes = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return label_windows(windows[:, :2], windows[:, 2], boxes, PAPER).tolist()


def test_a_canonical_object_at_the_limits_of_the_tolerances():
    box = [(136, 168, 264, 232)]  # 128 pixels wide, in the middle of a window of 224 at (200, 200)
    shown = [(200, 200, 224), (216, 200, 224), (184, 216, 224)]
    assert labels_of(shown, box) == [0, 0, 0]
    between = [(216.5, 200, 224), (200, 231.5, 224), (231.5, 168.5, 224)]
    assert labels_of(between, box) == [IGNORED] * 3
    far = [(232, 200, 224), (200, 168, 224), (400, 10, 224)]
    assert labels_of(far, box) == [NEGATIVE] * 3
    sizes = [2**0.25, 2**-0.25, 2**0.26, 2**-0.26, 1.99, 0.51, 2.0, 0.5]
    expected = [0, 0, IGNORED, IGNORED, IGNORED, IGNORED, NEGATIVE, NEGATIVE]
    assert labels_of([(200, 200, 224 * size) for size in sizes], box) == expected
    # Shifts are in units of the window: with twice the size, object and tolerance are twice as
    # large.
    assert labels_of([(432, 400, 448), (433, 400, 448)], [(272, 336, 528, 464)]) == [0, IGNORED]


def test_labels_equal_the_reference():
    rng = np.random.default_rng(0)
    centers = rng.uniform(0, 100, (6, 2))
    sides = rng.uniform(15, 40, (6, 2))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)
    near = centers[rng.integers(6, size=600)] + rng.normal(0, 3, (600, 2))
    windows = np.concatenate([near, 2 ** rng.uniform(4.5, 6.5, (600, 1))], axis=1)
    found = labels_of(windows.tolist(), boxes.tolist())
    names = {"negative": NEGATIVE, "ignored": IGNORED}
    expected = [reference.label(window[:2], window[2], boxes) for window in windows]
    assert found == [names.get(label, label) for label in expected]
    assert found.count(NEGATIVE) > 50 and found.count(IGNORED) > 50
    assert sum(label >= 0 for label in found) > 50


def test_a_window_shows_the_nearer_object_and_never_an_empty_one():
    boxes = [(0, 0, 0, 0), (136, 168, 264, 232), (140, 168, 268, 232)]
    assert labels_of([(201, 200, 224), (203, 200, 224)], boxes) == [1, 2]
    assert labels_of([(0, 0, 224)], boxes[:1]) == [NEGATIVE]
    assert labels_of([(0, 0, 224)], []) == [NEGATIVE] and labels_of([], boxes) == []


@pytest.mark.parametrize("size", [4, 5])
def test_crops_are_parts_of_the_padded_map(size):
    maps = torch.randn(2, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    padded = F.pad(maps, [size // 2] * 4)
    rows, columns = window_counts((6, 8), size)
    assert (rows, columns) == ((7, 9) if size == 4 else (6, 8))
    image, row, column = torch.tensor([[0, 1, 1], [0, rows - 1, 2], [3, columns - 1, 0]])
    found = crop_windows(padded, image, row, column, size)
    for number, (i, r, c) in enumerate(zip(image, row, column)):
        assert torch.equal(found[number], padded[i, :, r : r + size, c : c + size])
    assert torch.autograd.gradcheck(
        lambda m: crop_windows(F.pad(m, [size // 2] * 4), image, row, column, size), maps
    )


@pytest.mark.parametrize("parts, size", [(3, 5), (5, 21), (2, 7), (1, 3)])
def test_assembled_windows_equal_the_reference(parts, size):
    maps = torch.randn(2, parts**2, 9, 12, dtype=torch.float64)
    image, row, column = torch.tensor([[0, 1, 1, 0], [0, 8, 4, 5], [0, 11, 6, 3]])
    found = assemble_windows(F.pad(maps, [size // 2] * 4), image, row, column, size)
    for number in range(4):
        i, r, c = int(image[number]), int(row[number]), int(column[number])
        np.testing.assert_array_equal(
            found[number], reference.assemble(maps[i].numpy(), r, c, size)
        )


def test_neighboring_windows_share_values():
    """Local coherence: two windows share the values of a cell that is in the same part of both."""
    maps = torch.randn(1, 9, 12, 12)
    zero = torch.zeros(1, dtype=torch.int64)
    one = assemble_windows(maps, zero, zero + 1, zero + 1, 9)[0]
    right = assemble_windows(maps, zero, zero + 1, zero + 2, 9)[0]
    for part in range(3):
        assert torch.equal(one[:, 3 * part + 1 : 3 * part + 3], right[:, 3 * part : 3 * part + 2])
    assert not torch.equal(one[:, 3], right[:, 2])  # in different parts


def test_gradient_of_assembling():
    maps = torch.randn(1, 4, 7, 7, dtype=torch.float64, requires_grad=True)
    image, row, column = torch.tensor([[0, 0, 0], [0, 1, 1], [0, 1, 1]])  # one window twice
    assert torch.autograd.gradcheck(lambda m: assemble_windows(m, image, row, column, 5), maps)


def test_a_wrong_number_of_maps_is_refused():
    zero = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="there are 8 maps; allowed: square"):
        assemble_windows(torch.zeros(1, 8, 9, 9), zero, zero, zero, 3)


def test_the_losses_equal_those_of_deepmask():
    generator = torch.Generator().manual_seed(0)
    scores, masks = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((7,), (7, 4, 5))
    )
    positive = torch.tensor([True, False, True, True, False, False, False])
    targets = torch.rand(7, 4, 5, generator=generator) > 0.5
    mask_loss, score_loss = window_losses(scores, masks[positive], positive, targets[positive])
    signs = [2 * part.double().numpy() - 1 for part in (positive, targets)]
    expected = reference.deepmask_loss(
        scores.detach().numpy(), masks.detach().numpy(), *signs, 1 / 32
    )
    assert float(mask_loss + score_loss / 32) == pytest.approx(expected / 7, rel=1e-12)

    def loss(scores, masks):
        found = window_losses(scores, masks[positive], positive, targets[positive])
        return found[0] + found[1] / 32

    assert torch.autograd.gradcheck(loss, (scores, masks))


def test_the_losses_without_objects_have_a_gradient():
    scores = torch.randn(3, requires_grad=True)
    masks = torch.randn(3, 2, 2, requires_grad=True)
    none = torch.zeros(3, dtype=torch.bool)
    mask_loss, score_loss = window_losses(scores, masks[none], none, torch.zeros(0, 2, 2))
    (mask_loss + score_loss).backward()
    assert mask_loss == 0 and masks.grad.abs().sum() == 0 and (scores.grad != 0).all()
