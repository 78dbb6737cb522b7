"""Labels of pixels, and pixels sampled from them."""

import numpy as np
import torch
from detectron2.structures import PolygonMasks

from rpe_d2.modeling.embedding.labels import (
    BACKGROUND,
    IGNORED,
    pixel_labels,
    sample_pixels,
    sample_pixels_by_contact,
)
from tests.helpers.models import square_instances


def test_the_smaller_of_two_overlapping_instances_is_in_front():
    instances = square_instances((20, 20), [(2, 2, 6, 6), (0, 0, 16, 16)], [1, 0])
    labels = pixel_labels(instances, (20, 20))
    assert labels.instances[3, 3] == 0 and labels.instances[10, 10] == 1
    assert labels.instances[18, 18] == BACKGROUND
    assert torch.allclose(labels.centers[0], torch.tensor([4.0, 4.0]))
    areas = [(labels.instances == i).sum() for i in range(len(labels.classes))]
    assert torch.allclose(labels.sizes, torch.stack(areas).float().sqrt())


def test_padding_and_crowds_are_ignored_and_instances_are_in_front_of_crowds():
    crowd = torch.zeros(20, 20, dtype=torch.bool)
    crowd[:, :8] = True
    labels = pixel_labels(square_instances((20, 20), [(4, 4, 12, 12)], [0]), (32, 24), crowd)
    assert labels.instances.shape == (32, 24)
    assert (labels.instances[20:] == IGNORED).all() and (labels.instances[:, 20:] == IGNORED).all()
    assert labels.instances[0, 0] == IGNORED  # crowd
    assert labels.instances[5, 5] == 0  # an instance in front of the crowd
    assert labels.instances[0, 12] == BACKGROUND
    assert set(labels.class_map(9, -5).unique().tolist()) == {0, 9, -5}


def test_cells_have_the_label_of_their_middle_pixel():
    labels = pixel_labels(
        square_instances((16, 24), [(0, 0, 6, 6), (9, 4, 24, 16)], [0, 1]), (16, 24)
    )
    for stride in (1, 2, 4, 8):
        cells = labels.at_cells(stride)
        assert cells.shape == (16 // stride, 24 // stride)
        for row, column in ((0, 0), (1, 0), (1, 2)):
            y, x = (int((index + 0.5) * stride) for index in (row, column))
            assert cells[row, column] == labels.instances[y, x]


def test_an_image_without_instances():
    labels = pixel_labels(square_instances((8, 8), [], []), (8, 8))
    assert (labels.instances == BACKGROUND).all() and labels.centers.shape == (0, 2)


def test_polygons_and_boxes_give_the_labels_of_the_masks():
    instances = square_instances((24, 24), [(2, 3, 11, 20), (12, 3, 20, 9)], [0, 1])
    by_mask = pixel_labels(instances, (24, 24)).instances
    corners = [
        [np.array([x0, y0, x1, y0, x1, y1, x0, y1], dtype=np.float64)]
        for x0, y0, x1, y1 in ((2, 3, 11, 20), (12, 3, 20, 9))
    ]
    instances.gt_masks = PolygonMasks(corners)
    assert torch.equal(pixel_labels(instances, (24, 24)).instances, by_mask)
    instances.remove("gt_masks")
    assert torch.equal(pixel_labels(instances, (24, 24)).instances, by_mask)


def test_samples_are_spread_evenly_over_labels_of_different_sizes():
    labels = torch.full((100, 100), -1)
    labels[:60] = 0  # 6,000 pixels
    labels[60, :50] = 1
    labels[61, :4] = 2
    chosen = sample_pixels(labels, 104)
    assert len(chosen.unique()) == 104
    counts = torch.bincount(labels.flatten()[chosen])
    assert counts.tolist() == [50, 50, 4]
    assert len(sample_pixels(labels, 10**6)) == 6054  # all of them
    assert len(sample_pixels(torch.full((4, 4), -2), 10)) == 0


def test_half_of_the_samples_of_a_label_are_where_it_meets_another():
    labels = torch.full((60, 100), -1)
    labels[10:50, 10:50] = 0
    labels[10:50, 50:90] = 1  # touches the first
    labels[52:58, 10:20] = 2  # 3 pixels below the first, 60 pixels in all
    labels[0, 80:90] = -2
    chosen = sample_pixels_by_contact(labels, 240)
    assert len(chosen.unique()) == 240 and (labels.flatten()[chosen] >= 0).all()
    near = torch.zeros(60, 100, dtype=torch.bool)
    for y, x in torch.nonzero(labels >= 0).tolist():
        around = labels[max(y - 8, 0) : y + 9, max(x - 8, 0) : x + 9]
        near[y, x] = bool(((around >= 0) & (around != labels[y, x])).any())
    counts = torch.zeros(3, 2)
    for point in chosen.tolist():
        counts[labels.flatten()[point], int(near.flatten()[point])] += 1
    # Every pixel of the third is near the first, so that it is one group of five.
    assert counts.tolist() == [[48, 48], [48, 48], [0, 48]]
    assert len(sample_pixels_by_contact(labels, 10**6)) == int((labels >= 0).sum())
    assert len(sample_pixels_by_contact(torch.full((4, 4), -2), 10)) == 0


def test_the_last_round_of_samples_is_cut_at_random():
    labels = torch.arange(50).repeat_interleave(20).view(20, 50)
    seen = torch.zeros(50)
    for _ in range(60):
        seen += torch.bincount(labels.flatten()[sample_pixels(labels, 25)], minlength=50)
    assert (seen > 0).all() and seen.sum() == 60 * 25
