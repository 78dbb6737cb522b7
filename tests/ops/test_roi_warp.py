"""RoI warping against RoIAlign, a closed form and finite differences."""

import pytest
import torch
from torchvision.ops import roi_align

from rpe_d2.ops.roi_warp import roi_warp

BOXES = torch.tensor(
    [[0, 8.0, 6.0, 40.0, 30.0], [1, 12.3, 9.1, 30.7, 55.2], [0, 20.0, 20.0, 21.0, 22.5]]
)


@pytest.mark.parametrize("size", [7, (5, 9), 1])
def test_it_is_roi_align_with_one_sample_in_the_interior(size):
    features = torch.randn(2, 3, 20, 16)
    expected = roi_align(features, BOXES, size, 0.25, sampling_ratio=1, aligned=True)
    torch.testing.assert_close(roi_warp(features, BOXES, size, 0.25), expected)


def test_a_plane_is_read_where_the_cells_are():
    y, x = torch.meshgrid(torch.arange(20) + 0.5, torch.arange(30) + 0.5, indexing="ij")
    plane = torch.stack([x, y])[None]
    result = roi_warp(plane, torch.tensor([[0.0, 10.0, 8.0, 30.0, 20.0]]), (3, 5), 0.5)
    assert torch.allclose(result[0, 0], torch.tensor([6.0, 8, 10, 12, 14]).expand(3, 5))
    assert torch.allclose(result[0, 1, :, 0], torch.tensor([5.0, 7, 9]))
    # At scale 0.5, moving a box by a pixel moves the samples by half a cell.
    box = torch.tensor([[0.0, 10.0, 8.0, 30.0, 20.0]], requires_grad=True)
    roi_warp(plane, box, (3, 5), 0.5)[0, 0].mean().backward()
    assert torch.allclose(box.grad[0, [1, 3]], torch.tensor([0.25, 0.25]))
    assert torch.allclose(box.grad[0, [2, 4]], torch.zeros(2), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_of_the_values_alone(dtype):
    """Half precision cannot represent half cells far from the origin, which must not matter."""
    features = torch.randn(1, 2, 8, 1200).to(dtype)
    box = torch.tensor([[0.0, 1001.5, 1.0, 1018.0, 6.5]])
    expected = roi_warp(features.float(), box, 6, 1.0)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype, enabled=enabled):
            result = roi_warp(features, box, 6, 1.0)
        assert result.dtype == dtype
        torch.testing.assert_close(result.float(), expected, atol=0.02, rtol=0.02)


def test_beyond_the_border_the_outermost_values_continue():
    features = torch.full((1, 1, 4, 4), 3.0)
    result = roi_warp(features, torch.tensor([[0.0, -20.0, -20.0, 40.0, 40.0]]), 6, 1.0)
    assert torch.allclose(result, torch.full((1, 1, 6, 6), 3.0))


def test_gradients_of_features_and_boxes():
    torch.manual_seed(0)
    features = torch.randn(2, 2, 9, 8, dtype=torch.float64, requires_grad=True)
    boxes = BOXES.double() / 4 + 0.137
    boxes[:, 0] = BOXES[:, 0]
    corners = boxes[:, 1:].clone().requires_grad_()

    def warp(features, corners):
        return roi_warp(features, torch.cat([boxes[:, :1], corners], dim=1), (3, 4), 0.5)

    assert torch.autograd.gradcheck(warp, (features, corners))


def test_no_regions_and_wrong_shapes():
    features = torch.randn(1, 3, 5, 5, requires_grad=True)
    result = roi_warp(features, torch.zeros(0, 5), 2, 1.0)
    assert result.shape == (0, 3, 2, 2)
    with pytest.raises(ValueError, match=r"boxes \(2, 4\); allowed"):
        roi_warp(features, torch.zeros(2, 4), 2, 1.0)
