"""Coarse masks, computed by hand."""

import torch

from rpe_d2.ops.coarsen import coarsen_masks


def test_cells_with_half_their_area_inside():
    mask = torch.zeros(1, 6, 8, dtype=torch.bool)
    mask[0, :2, :4] = True  # half of a cell
    mask[0, :3, 4:6] = True  # 6 of 16 pixels
    mask[0, 4:, 7] = True  # 2 of 8 pixels of a cropped cell
    mask[0, 4:, 0:2] = True  # 4 of 8
    result = coarsen_masks(mask, 4, 0)
    expected = torch.zeros(1, 6, 8)
    expected[0, :4, :4] = 1
    expected[0, 4:, :4] = 1
    assert torch.equal(result, expected)


def test_offsets_are_uniform_and_bounded():
    masks = torch.zeros(4000, 9, 9)
    masks[:, 4, 4] = 1
    result = coarsen_masks(masks, 1, 2, torch.Generator().manual_seed(0))
    assert (result.flatten(1).sum(dim=1) == 1).all()
    shares = result.mean(dim=0)
    inner = torch.zeros(9, 9, dtype=torch.bool)
    inner[2:7, 2:7] = True
    assert torch.equal(shares > 0, inner)
    assert shares[inner].min() > 0.025 and shares[inner].max() < 0.055  # 1 / 25


def test_parts_moved_out_are_lost_and_empty_masks_stay_empty():
    mask = torch.ones(200, 4, 4)
    result = coarsen_masks(mask, 1, 1, torch.Generator().manual_seed(0))
    assert set(result.flatten(1).sum(dim=1).int().tolist()) == {9, 12, 16}
    assert coarsen_masks(torch.zeros(0, 5, 7)).shape == (0, 5, 7)
    assert not coarsen_masks(torch.zeros(2, 5, 7)).any()
