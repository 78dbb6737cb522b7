"""The head that classifies groups: against plain sums, its gradients, its loss and its use."""

import pytest
import torch
from detectron2.structures import BitMasks, Instances
from torch.nn import functional as F

from rpe_d2.modeling import PixelEmbeddingNet
from rpe_d2.modeling.embedding.group_head import (
    GroupHead,
    _boxes,
    group_class_loss,
    true_group_loss,
)
from rpe_d2.modeling.embedding.grouping import build_grouping
from rpe_d2.modeling.embedding.labels import pixel_labels
from rpe_d2.modeling.embedding.mean_shift_layer import MeanShiftLayer
from rpe_d2.modeling.embedding.oracles import true_groups
from tests.helpers.configs import small_cfg_with
from tests.helpers.models import perfect_maps, training_input


@pytest.fixture
def scene():
    """Perfect maps of an image with features of six channels, and their groups."""
    torch.manual_seed(0)
    cfg = small_cfg_with()
    maps, grid, size = perfect_maps()
    maps = maps._replace(features=torch.randn(1, 6, *grid.shape))
    grouping = build_grouping(cfg)
    grouping.shift = MeanShiftLayer(cfg)
    maps = maps.image(0, size)
    return maps, grouping(maps)


def test_attention_is_a_weighted_mean_over_the_pixels_of_the_mask(scene):
    maps, groups = scene
    head = GroupHead(6, 3, "attention")
    with torch.no_grad():
        difference = head(maps, groups)
        queries, head.queries = head.queries, None
        difference = difference - head(maps, groups)
    features = maps.features.flatten(1).T.double()
    scores = features @ queries.weight.T.double() / 6**0.5
    for number, soft in enumerate(groups.soft_masks):
        weights = soft.flatten().double()[:, None] * scores.exp()
        pooled = (weights / weights.sum(dim=0)).T @ features  # (K + 1, C)
        expected = (pooled * head.class_weights.double()).sum(dim=1)
        torch.testing.assert_close(difference[number].double(), expected, rtol=1e-4, atol=1e-4)


def test_the_grid_knows_the_shape_but_not_the_place():
    """An ellipse and a rectangle of equal area and features differ; a moved one does not."""
    torch.manual_seed(0)
    layers = GroupHead(6, 3, "grid").grid
    features = torch.ones(6, 40, 60)
    masks = torch.zeros(4, 40, 60)
    masks[0, 4:20, 5:25] = 1
    masks[1, 20:36, 30:50] = 1
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    masks[2][((rows - 11.5) / 9) ** 2 + ((columns - 14.5) / 11.3) ** 2 < 1] = 1
    boxes = _boxes(masks)
    assert boxes[:2].tolist() == [[5, 4, 25, 20], [30, 20, 50, 36]]
    assert boxes[3].tolist() == [0, 0, 60, 40]  # of a mask without a cell
    assert masks[2].sum() == pytest.approx(float(masks[0].sum()), rel=0.02)
    with torch.no_grad():
        logits = layers(features, masks)
    torch.testing.assert_close(logits[0], logits[1])
    assert (logits[0] - logits[2]).abs().max() > 10 * (logits[0] - logits[1]).abs().max() + 1e-4
    assert logits.isfinite().all()


@pytest.mark.parametrize("pooling", ["mean", "attention", "grid"])
def test_gradients_reach_all_parameters_but_not_the_features(scene, pooling):
    maps, groups = scene
    features = maps.features.clone().requires_grad_()
    head = GroupHead(6, 3, pooling)
    head(maps._replace(features=features), groups).square().sum().backward()
    assert features.grad is None
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())


def test_the_order_of_the_groups_does_not_matter(scene):
    maps, groups = scene
    head = GroupHead(6, 3, "attention")
    order = torch.randperm(len(groups))
    torch.testing.assert_close(head(maps, groups)[order], head(maps, groups.select(order)))
    assert head(maps, groups.select(order[:0])).shape == (0, 4)


def test_groups_without_an_instance_are_background():
    logits = torch.randn(4, 3, dtype=torch.float64)
    iou, instance = torch.tensor([0.9, 0.5, 0.49, 0.0]), torch.tensor([1, 0, 1, 0])
    classes = torch.tensor([1, 0])
    loss = group_class_loss(logits, iou, instance, classes)
    expected = -F.log_softmax(logits, dim=1)[range(4), [0, 1, 2, 2]].mean()
    assert loss == pytest.approx(float(expected))
    assert group_class_loss(logits[:0], iou[:0], instance[:0], classes) == 0


def test_true_groups_have_the_classes_of_their_instances():
    """An instance without a cell of its own has no group."""
    torch.manual_seed(0)
    maps, _, size = perfect_maps(num_classes=3)
    maps = maps._replace(features=torch.randn(1, 6, *maps.logits.shape[-2:])).image(0, size)
    height, width = (maps.stride * side for side in maps.logits.shape[-2:])
    masks = torch.zeros(3, height, width, dtype=torch.bool)
    masks[0, 8:24, 8:32] = masks[2, 24:40, 16:40] = True
    instances = Instances((height, width))
    instances.gt_masks, instances.gt_classes = BitMasks(masks), torch.tensor([2, 0, 1])
    labels = pixel_labels(instances, (height, width))
    head = GroupHead(6, 3, "grid")
    groups, visible = true_groups(maps, labels)
    logits = head(maps, groups)
    assert visible.tolist() == [0, 2]
    expected = F.cross_entropy(logits, torch.tensor([2, 1]))
    torch.testing.assert_close(true_group_loss(head, maps, labels), expected)
    empty = pixel_labels(instances[:0], (height, width))
    assert true_group_loss(head, maps, empty) == 0


TRAINED = "MODEL: {{RPE: {{GROUP_CLASSES: {}, QUALITY: False, SCORE_THRESH_TEST: 0.0}}}}"


def test_scores_are_those_of_the_head_or_the_product():
    torch.manual_seed(0)
    model = PixelEmbeddingNet(small_cfg_with(TRAINED.format("head"))).eval()
    maps, _, size = perfect_maps(num_classes=3)
    dim = model.embedding_head.feature_dim
    maps = maps._replace(features=torch.randn(1, dim, *maps.logits.shape[-2:])).image(0, size)
    with torch.no_grad():
        groups = model._groups(maps)
        head = model.group_head(maps, groups).softmax(dim=1)[:, :-1]
        torch.testing.assert_close(model._scores(maps, groups), head)
        model.group_classes = "product"
        torch.testing.assert_close(model._scores(maps, groups), head * groups.class_probabilities)


def test_training_has_its_loss():
    torch.manual_seed(0)
    model = PixelEmbeddingNet(small_cfg_with(TRAINED.format("product"))).train()
    losses = model([training_input()])
    assert "loss_group" in losses and "loss_quality" not in losses
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.group_head.parameters())


def test_a_head_is_needed():
    with pytest.raises(ValueError, match="group_classes is head; allowed without group_head: vote"):
        model = PixelEmbeddingNet(small_cfg_with())
        PixelEmbeddingNet(model.backbone, 3, group_classes="head")
    with pytest.raises(ValueError, match="group_head.num_classes is 2; allowed: 3, that of"):
        PixelEmbeddingNet(model.backbone, 3, group_head=GroupHead(128, 2), group_classes="head")
    with pytest.raises(ValueError, match="pooling is 'max'; allowed: mean, attention, grid"):
        GroupHead(6, 3, "max")
