"""DeepMask, SharpMask and InstanceFCN: windows, samples, training and proposals."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from rpe_d2.baselines import DeepMask, InstanceFCN, SharpMask
from rpe_d2.baselines.window_losses import crop_object_masks
from rpe_d2.baselines.window_proposals import WindowProposalGenerator
from rpe_d2.baselines.windows import IGNORED, NEGATIVE, Windows, WindowTolerances, window_grid
from tests.helpers.baseline_configs import FPN_SHAPES, seeded_model
from tests.helpers.models import square_instances
from tests.helpers.window_models import (
    DEEP,
    INSTANCE,
    RCNN,
    SHARP,
    each_generator,
    images_of,
    item_of,
    model_of,
    pyramid_of,
)


@each_generator
def test_dense_codes_equal_those_of_single_windows(texts):
    """Codes and masks of a window, also beyond the border, do not depend on other windows."""
    model = model_of(*texts).double().eval()
    generator, grid, pyramid, _ = pyramid_of(model, item_of(), item_of((96, 64), ()))
    index = torch.randperm(len(grid.level), generator=torch.Generator().manual_seed(1))[:50]
    index = torch.cat([index, torch.tensor([0, len(grid.level) - 1])])
    windows = grid.select(torch.arange(len(index)) % 2, index)
    dense = [generator.window_codes(level) for level in pyramid]
    codes = generator.sampled_codes(pyramid, windows)
    for number in range(len(index)):
        level, image, row, column = (int(part[number]) for part in windows)
        torch.testing.assert_close(dense[level][image, :, row, column], codes[number])
    masks = generator.masks(pyramid, codes, windows)
    one = Windows(*(part[7:8] for part in windows))
    torch.testing.assert_close(generator.masks(pyramid, codes[7:8], one)[0], masks[7])
    # The levels and the grid have the same windows.
    assert sum(part[0, 0].numel() for part in dense) == len(grid.level)


def test_a_window_is_a_patch_of_the_features():
    """A code is DeepMask's layer applied to a patch of the features, which is padded with zeros."""
    model = model_of(*DEEP).double().eval()
    images = images_of(model, item_of())
    features = model.backbone(images.tensor)
    generator = model.proposal_generator
    head, cells = generator.head, generator.window
    maps = F.relu(head.conv(features["p2"]))[0]
    dense = generator.window_codes(generator.pyramid(features)[2])[0]
    for row, column in ((0, 0), (9, 14), (dense.shape[1] - 1, dense.shape[2] - 1)):
        patch = maps.new_zeros(len(maps), cells, cells)
        for i in range(cells):
            for j in range(cells):
                y, x = row + i - cells // 2, column + j - cells // 2
                if 0 <= y < maps.shape[1] and 0 <= x < maps.shape[2]:
                    patch[:, i, j] = maps[:, y, x]
        code = head.code.weight.flatten(1) @ patch.flatten() + head.code.bias
        torch.testing.assert_close(dense[:, row, column], code)


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        WindowProposalGenerator({}, in_features=[], window=1)


def test_windows_are_centered_on_their_cells():
    grid = window_grid([torch.zeros(1, 1, 4, 6), torch.zeros(1, 1, 2, 3)], [4, 8.0], 8)
    assert grid.boxes[0].tolist() == [-16, -16, 16, 16] and len(grid.boxes) == 5 * 7 + 3 * 4
    assert grid.boxes[-1].tolist() == [-8, -16, 56, 48]
    assert grid.level.bincount().tolist() == [35, 12]
    odd = window_grid([torch.zeros(1, 1, 4, 6)], [4], 5)
    assert odd.centers[0].tolist() == [2, 2] and odd.centers[-1].tolist() == [22, 14]
    assert odd.centered_in((14, 20)).sum() == 4 * 5


@each_generator
def test_equal_numbers_of_positive_and_negative_windows_are_sampled(texts):
    generator, grid, *_ = pyramid_of(model_of(*texts), item_of(), item_of())
    targetss = [item_of()["instances"], square_instances((64, 96), [], [])]
    labels = torch.stack([generator.label(grid, targets) for targets in targetss])
    assert set(labels[0].tolist()) == {NEGATIVE, IGNORED, 0, 1}
    image, index = generator._sample(labels)
    chosen = labels[image, index]
    assert (chosen >= 0).sum() == min((labels >= 0).sum(), generator.batch_size_per_image // 2)
    # The image without objects has half of the negative windows.
    negatives = image[chosen == NEGATIVE].bincount().tolist()
    assert negatives[0] == negatives[1] == -(-int((chosen >= 0).sum()) // 2)
    assert (chosen != IGNORED).all() and (image.diff() >= 0).all()
    generator.batch_size_per_image = 2
    image, index = generator._sample(labels)
    assert len(image) == 3 and (labels[image, index] >= 0).sum() == 1


def test_windows_outside_of_the_image_are_ignored():
    generator, grid, *_ = pyramid_of(model_of(*DEEP), item_of((96, 96)))
    label = generator.label(grid, item_of((64, 96))["instances"])
    assert (label[grid.centers[:, 1] > 64] == IGNORED).all() and (label == NEGATIVE).any()


def test_mask_targets_are_the_coverage_of_cells():
    targets = square_instances((40, 40), [(8, 8, 24, 24), (0, 0, 4, 4)], [0, 0])
    boxes = torch.tensor([[0.0, 0, 32, 32], [-4.0, -4, 4, 4], [2.0, 0, 34, 32]])
    masks = crop_object_masks(targets, torch.tensor([0, 1, 0]), boxes, 8)
    assert masks[0, 2:6, 2:6].min() == 1 and masks[0].sum() == 16
    # Outside of the image is background, except the adjacent pixel, where RoIAlign repeats the
    # border.
    assert masks[1, 4:, 4:].min() == 1
    assert masks[1, :3].max() == 0 and masks[1, :, :3].max() == 0
    assert masks[2, 3].tolist() == [0, 0.5, 1, 1, 1, 0.5, 0, 0]
    no_objects = torch.zeros(0, dtype=torch.long)
    assert crop_object_masks(targets[:0], no_objects, boxes[:0], 8).shape == (0, 8, 8)


@each_generator
@pytest.mark.parametrize("meta", [(), (RCNN,)], ids=["proposals", "rcnn"])
def test_in_the_networks_of_detectron2(texts, meta):
    """Trains with and without objects, and predicts in the original image size."""
    model = model_of(*texts, *meta)
    small, empty = item_of(), item_of((96, 64), ())
    with EventStorage():
        losses = model([small, empty])
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        trained = [p for p in model.proposal_generator.parameters() if p.requires_grad]
        assert trained and all(p.grad is not None and p.grad.isfinite().all() for p in trained)
        model.zero_grad()
        alone = model([empty])
        assert all(loss.isfinite() for loss in alone.values())
        sum(alone.values()).backward()
        assert all(p.grad is not None for p in trained)
    model.eval()
    found = model([{"image": small["image"], "height": 128, "width": 192}])[0]
    if meta:
        assert found["instances"].image_size == (128, 192)
        assert found["instances"].pred_masks.shape[1:] == (128, 192)
        return
    proposals = found["proposals"]
    assert set(proposals.get_fields()) == {"proposal_boxes", "objectness_logits", "proposal_masks"}
    assert 0 < len(proposals) <= 10 and proposals.image_size == (128, 192)
    assert proposals.proposal_masks.shape == (len(proposals), 14, 14)
    assert proposals.proposal_masks.dtype == torch.uint8
    assert (proposals.objectness_logits.diff() <= 0).all()
    boxes = proposals.proposal_boxes.tensor
    assert (boxes >= 0).all() and (boxes[:, 2] <= 192).all() and (boxes[:, 3] <= 128).all()


@each_generator
def test_proposals_in_training_are_boxes_and_can_be_omitted(texts):
    model = model_of(*texts)
    for topk in (20, 0):
        model.proposal_generator.post_nms_topk[True] = topk
        item = item_of()
        images = images_of(model, item)
        features = model.backbone(images.tensor)
        found, _ = model.proposal_generator(images, features, [item["instances"]])
        assert set(found[0].get_fields()) == {"proposal_boxes", "objectness_logits"}
        assert not found[0].proposal_boxes.tensor.requires_grad
        assert (len(found[0]) > 0) == (topk > 0)
    with pytest.raises(ValueError, match='no "instances" to train on'):
        model.proposal_generator(images, features, None)


@each_generator
def test_masks_in_training_for_heads_that_use_them(texts):
    sds = """
MODEL:
  ROI_HEADS: {NAME: SDSROIHeads}
  PROPOSAL_GENERATOR: {MASKS_IN_TRAINING: True}
"""
    model = model_of(*texts, RCNN, sds)
    with EventStorage():
        losses = model([item_of()])
    assert torch.isfinite(losses["loss_mask"])


def test_crowds_are_background():
    """Detectron2's mapper drops crowds, so the losses are those of an image without them."""
    item = item_of()
    model = model_of(*DEEP)
    model.proposal_generator.head.dropout = 0.0
    crowd = torch.zeros(64, 96, dtype=torch.bool)
    crowd[:, 60:] = True
    found = []
    for batch in ([item], [{**item, "ignore_mask": crowd}]):
        torch.manual_seed(2)
        with EventStorage():
            found.append({name: float(loss) for name, loss in model(batch).items()})
    assert found[0] == found[1]


@pytest.mark.parametrize("texts", [DEEP, INSTANCE], ids=["deep", "fcn"])
def test_training_learns(texts):
    model = model_of(*texts)
    model.proposal_generator.post_nms_topk[True] = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    item, history = item_of(), []
    with EventStorage():
        for _ in range(30):
            losses = model([item])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            history.append([float(loss) for loss in losses.values()])
    history = torch.tensor(history)
    assert (history[-10:].mean(dim=0) < 0.8 * history[:2].mean(dim=0)).all(), history[[0, -1]]


@pytest.mark.parametrize(
    "base, node, setting, message",
    [
        (DEEP, "DEEPMASK", "WINDOW: 0", "MODEL.DEEPMASK.WINDOW is 0; allowed: 1 or more"),
        (DEEP, "DEEPMASK", "IN_FEATURES: []", "IN_FEATURES is .*; allowed: one or more maps"),
        (DEEP, "DEEPMASK", "IN_FEATURES: [p9]", "DEEPMASK.IN_FEATURES names p9; the backbone"),
        (DEEP, "DEEPMASK", "IN_FEATURES: [p2, image]", "image has 3 channels; allowed: maps with"),
        (DEEP, "DEEPMASK", "POSITIVE_SCALE: 1.0", "POSITIVE_SCALE is 1.0; allowed: less than 1.0"),
        (SHARP, "DEEPMASK", "SHARPMASK_FEATURES: [p3]", "is p3; allowed for windows on p2@0.5: p2"),
        (
            SHARP,
            "DEEPMASK",
            "SHARPMASK_FEATURES: [p2, p3]",
            "MODEL.DEEPMASK.SHARPMASK_FEATURES: p3@0.5 has stride 16; allowed: 4, half",
        ),
        (
            SHARP,
            "GUIDED_BACKBONE",
            "STEM: False",
            "MODEL.DEEPMASK.SHARPMASK_FEATURES needs stem@0.5; the backbone has",
        ),
        (INSTANCE, "INSTANCE_FCN", "WINDOW: 8", "INSTANCE_FCN.WINDOW is 8; allowed: odd numbers"),
    ],
)
def test_a_wrong_key_is_refused_in_one_line(base, node, setting, message):
    with pytest.raises(ValueError, match=message) as error:
        seeded_model(*base, f"MODEL: {{{node}: {{{setting}}}}}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kind, arguments, message",
    [
        (DeepMask, {"window": 0}, "window is 0; allowed: 1 or more"),
        (DeepMask, {"in_features": []}, r"in_features is \[\]; allowed: one or more"),
        (DeepMask, {"in_features": ["p9"]}, "in_features names p9; the backbone has p2"),
        (DeepMask, {"dropout": 1.0}, "dropout is 1.0; allowed: 0 to"),
        (DeepMask, {"score_loss_weight": -1.0}, "score_loss_weight is -1.0; allowed: 0 or more"),
        (
            SharpMask,
            {"skip_features": ["p2"], "refinement_dim": 7},
            "dim is 7; allowed with 1 skip",
        ),
        (SharpMask, {"skip_features": ["p3"]}, "skip_features is p3; allowed for windows on p2"),
        (InstanceFCN, {"window": 8}, "window is 8; allowed: odd numbers, at least parts, 5"),
        (InstanceFCN, {"mask_threshold": 0.0}, "mask_threshold is 0.0; allowed: 0.01 to 0.99"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(kind, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        kind(FPN_SHAPES, **{"in_features": ["p2"], **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["shift", "scale"])
def test_positive_tolerances_are_less_than_negative_ones(kind):
    message = f"positive_{kind} is 1.5; allowed: 0 or more, and less than negative_{kind}"
    with pytest.raises(ValueError, match=message):
        WindowTolerances(**{f"positive_{kind}": 1.5})


def test_gaps_between_the_levels_are_reported(caplog):
    with caplog.at_level("WARNING", "rpe_d2"):
        model_of(*DEEP)
        assert not caplog.records
        model_of(*DEEP, "MODEL: {DEEPMASK: {IN_FEATURES: [p2, p3]}}")
    assert "of 18 and of 37 pixels" in caplog.text and "POSITIVE_SCALE to 0.50" in caplog.text


@pytest.mark.parametrize("kind", [DeepMask, SharpMask, InstanceFCN])
def test_generators_declare_their_dataset_mapper(kind):
    assert kind.dataset_mapper_name == "PixelLabelMapper"
