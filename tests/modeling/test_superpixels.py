"""Superpixels of images, and means of masks over them."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances

from rpe_d2.modeling.superpixels import (
    check_has_image,
    crop_superpixels,
    segment_superpixels,
    superpixel_means,
    superpixels_in_boxes,
)


def test_superpixels_do_not_cross_strong_edges():
    image = torch.zeros(2, 3, 48, 64)
    image[0, :, :, 30:] = 5.0  # any range of values
    image[1, 0, 20:] = -3.0
    labels = segment_superpixels(image, [(48, 60), (40, 64)], 60)
    assert [tuple(part.shape) for part in labels] == [(48, 60), (40, 64)]
    for own, inside in ((labels[0], (slice(None), slice(30))), (labels[1], (slice(20),))):
        first = set(own[inside].flatten().tolist())
        mask = torch.ones_like(own, dtype=torch.bool)
        mask[inside] = False
        assert first and not first & set(own[mask].tolist())
        assert 20 <= own.max() + 1 <= 120 and own.min() == 0


def test_crops_read_the_superpixel_at_each_cell():
    labels = [torch.arange(24).reshape(4, 6), torch.full((3, 3), 7)]
    boxes = [torch.tensor([[1.0, 1, 5, 3], [-2, 0, 2, 4]]), torch.zeros(0, 4)]
    crops = crop_superpixels(labels, boxes, 2)
    # Cells of 2 x 1 pixels with centers at x = 2, 4 and y = 1.5, 2.5.
    assert crops[0].tolist() == [[8, 10], [14, 16]]
    # The first column is outside the image.
    assert crops[1].tolist() == [[6, 7], [18, 19]]
    assert crop_superpixels(labels[1:], boxes[1:], 5).shape == (0, 5, 5)


def test_means_equal_a_loop_over_superpixels():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(3, 6, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    superpixels = torch.randint(0, 9, (3, 6, 6), generator=generator)
    found = superpixel_means(values, superpixels)
    for row in range(3):
        for label in superpixels[row].unique():
            own = superpixels[row] == label
            expected = values[row][own].mean().expand(int(own.sum()))
            torch.testing.assert_close(found[row][own], expected)
    assert torch.autograd.gradcheck(lambda x: superpixel_means(x, superpixels), values)
    assert superpixel_means(values[:0], superpixels[:0]).shape == (0, 6, 6)


def test_boxes_of_a_batch():
    image = torch.rand(2, 3, 32, 40)
    instances = [Instances((32, 40)), Instances((24, 40))]
    boxes = [Boxes(torch.tensor([[0.0, 0, 20, 20]])), Boxes(torch.tensor([[5.0, 5, 30, 24]] * 2))]
    assert superpixels_in_boxes(image, instances, boxes, 20, 8).shape == (3, 8, 8)


def test_superpixels_need_the_image():
    shapes = {"p2": ShapeSpec(channels=8, stride=4)}
    check_has_image("KEY", 0, "the backbone", shapes)
    check_has_image("KEY", 5, "the backbone", {**shapes, "image": ShapeSpec(channels=3, stride=1)})
    with pytest.raises(ValueError, match="KEY is 5, and the backbone has p2; allowed: 0, or the"):
        check_has_image("KEY", 5, "the backbone", shapes)
