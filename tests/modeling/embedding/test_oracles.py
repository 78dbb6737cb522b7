"""Oracles of the grouping and of the foreground."""

import pytest
import torch
from detectron2.structures import BitMasks, Instances

from rpe_d2.modeling import PixelEmbeddingNet
from rpe_d2.modeling.embedding.labels import IGNORED, pixel_labels
from rpe_d2.modeling.embedding.oracles import true_groups, with_true_foreground
from tests.helpers.configs import small_cfg_with
from tests.helpers.models import SQUARES, perfect_maps, training_input


def labels_of(grid, stride, size):
    """Returns the labels of the instances of cells, at the resolution of the image."""
    label_map = grid.repeat_interleave(stride, 0).repeat_interleave(stride, 1)
    masks = torch.stack([label_map == n for n in range(int(grid.max()) + 1)])
    instances = Instances(size)
    instances.gt_masks = BitMasks(masks[:, : size[0], : size[1]])
    instances.gt_classes = torch.zeros(len(masks), dtype=torch.int64)
    return pixel_labels(instances, label_map.shape)


@pytest.fixture
def scene():
    torch.manual_seed(0)
    maps, grid, size = perfect_maps()
    labels = labels_of(grid, maps.stride, size)
    maps = maps.image(0, size)
    # The network knows nothing.
    return maps._replace(logits=torch.randn_like(maps.logits)), labels, labels.at_cells(maps.stride)


def test_a_true_grouping_and_a_true_foreground_make_true_masks(scene):
    maps, labels, cells = scene
    groups, instances = true_groups(with_true_foreground(maps, labels), labels)
    assert instances.tolist() == list(range(len(SQUARES))) and len(groups) == len(SQUARES)
    for number, soft in enumerate(groups.soft_masks):
        torch.testing.assert_close(soft, (cells == number).float())


def test_a_true_grouping_keeps_the_predicted_foreground_and_classes(scene):
    maps, labels, cells = scene
    probability = maps.logits.softmax(dim=0)
    groups, _ = true_groups(maps, labels)
    for number, soft in enumerate(groups.soft_masks):
        inside = cells == number
        torch.testing.assert_close(soft[inside], 1 - probability[-1][inside])
        assert not soft[~inside].any()
        weights = (1 - probability[-1])[inside]
        expected = (probability[:-1, inside] * weights).sum(dim=1) / weights.sum()
        torch.testing.assert_close(groups.class_probabilities[number], expected)


def test_a_true_foreground_keeps_the_ratios_of_the_classes_and_ignored_cells(scene):
    maps, labels, cells = scene
    ignored = torch.zeros_like(cells, dtype=torch.bool)
    ignored[:2] = True
    labels.instances[: 2 * maps.stride] = IGNORED
    before, after = maps.logits.softmax(0), with_true_foreground(maps, labels).logits.softmax(0)
    assert (after[-1][(cells >= 0) & ~ignored] < 1e-6).all()
    assert (after[-1][(cells == -1) & ~ignored] > 1 - 1e-6).all()
    torch.testing.assert_close(after[:, ignored], before[:, ignored])
    inside = (cells >= 0) & ~ignored
    ratio = before[:-1] / before[:-1].sum(dim=0)
    torch.testing.assert_close(after[:-1, inside], ratio[:, inside])


def test_the_model_predicts_the_instances_of_its_oracles():
    torch.manual_seed(0)
    model = PixelEmbeddingNet(small_cfg_with("MODEL: {RPE: {SCORE_THRESH_TEST: 0.0}}")).eval()
    item = training_input()
    oracles = model.oracle_instances(item)
    assert set(oracles) == {"true grouping", "true foreground"}
    size = item["instances"].image_size
    for instances in oracles.values():
        assert instances.image_size == size and instances.pred_masks.shape[1:] == size
    target = item["instances"].gt_masks.tensor.any(dim=0)
    # Cells are coarser than pixels, so that only the inside of objects is certain.
    found = oracles["true grouping"].pred_masks.any(dim=0)
    assert not len(oracles["true grouping"]) or (found & target).sum() > 0.8 * found.sum()
