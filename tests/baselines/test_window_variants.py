"""Variants of DeepMask and InstanceFCN: full mask layer, alternate steps, classes and patches."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from rpe_d2.baselines.deep_mask import DeepMaskHead
from rpe_d2.baselines.windows import IGNORED, NEGATIVE
from tests.helpers.window_models import DEEP, INSTANCE, item_of, model_of, pyramid_of

FULL = "MODEL: {DEEPMASK: {LOW_RANK: False}}"
ALTERNATE = "MODEL: {DEEPMASK: {ALTERNATE: True}}"
ONE_SCALE = "MODEL: {GUIDED_BACKBONE: {SCALES: [1.0]}, %s: {IN_FEATURES: [p2]}}"
CROPS = "INPUT: {DATASET_MAPPER_NAME: WindowCropMapper, CROP: {SIZE: [%d, %d]}}"
# Windows of 8 and of 9 cells of stride 4.
ON_CROPS = {
    "deep": (*DEEP, ONE_SCALE % "DEEPMASK", CROPS % (32, 32)),
    "fcn": (*INSTANCE, ONE_SCALE % "INSTANCE_FCN", CROPS % (36, 36)),
}


def losses_of(model, *items, start_iter=0):
    with EventStorage(start_iter):
        return model(list(items))


def test_the_full_layer_is_a_linear_layer_on_the_window():
    torch.manual_seed(0)
    head = DeepMaskHead(
        4, window=6, conv_dim=3, code_dim=5, score_dim=5, mask_size=7, low_rank=False
    )
    assert head.mask.weight.shape == (49, 3 * 36)
    cells = torch.randn(2, 3, 6, 6)
    expected = cells.flatten(1) @ head.mask.weight.T + head.mask.bias
    torch.testing.assert_close(head.masks(cells), expected.view(2, 7, 7))
    model = model_of(*DEEP, FULL).double().eval()
    generator, grid, pyramid, _ = pyramid_of(model, item_of())
    windows = grid.select(torch.zeros(30, dtype=torch.int64), torch.arange(0, 300, 10))
    masks = generator.masks(pyramid, generator.sampled_codes(pyramid, windows), windows)
    for number in (0, 29):
        level, image, row, column = (int(part[number]) for part in windows)
        patch = pyramid[level][image, :, row : row + 8, column : column + 8]
        torch.testing.assert_close(masks[number], generator.head.masks(patch[None])[0])
    model = model.float()
    with torch.no_grad():
        assert model([item_of()])[0]["proposals"].has("proposal_masks")
    losses = losses_of(model.train(), item_of())
    sum(losses.values()).backward()
    assert generator.head.mask.weight.grad.any()


def test_masks_and_scores_are_learned_in_turn():
    model = model_of(*DEEP, ALTERNATE)
    head = model.proposal_generator.head
    for number, name in enumerate(("mask", "score", "mask")):
        model.zero_grad(set_to_none=True)
        losses = losses_of(model, item_of(), start_iter=number)
        assert list(losses) == [f"loss_deepmask_{name}"]
        losses[f"loss_deepmask_{name}"].backward()
        assert (head.mask.weight.grad is None) == (name == "score")
        assert (head.score.weight.grad is None) == (name == "mask")
        assert head.conv.weight.grad.any()
    with torch.no_grad():  # the validation loss has both
        assert len(losses_of(model, item_of())) == 2


def test_steps_for_masks_sample_positive_windows_alone():
    generator, grid, _, _ = pyramid_of(model_of(*DEEP), item_of())
    labels = generator.label(grid, item_of()["instances"])[None]
    image, index = generator._sample(labels, with_negative=False)
    assert len(index) == min(int((labels >= 0).sum()), generator.batch_size_per_image)
    assert (labels[image, index] >= 0).all()


@pytest.mark.parametrize("score_classes", [[], [1]])
def test_other_classes_are_background_or_without_masks(score_classes):
    """The first square has class 1 and the second class 2; masks of class 1 are learned."""
    text = f"MODEL: {{DEEPMASK: {{MASK_CLASSES: [1], SCORE_CLASSES: {score_classes}}}}}"
    model = model_of(*DEEP, text)
    generator, grid, pyramid, _ = pyramid_of(model, item_of())
    targets = item_of()["instances"]
    targets.gt_classes = torch.tensor([1, 2])
    labels = generator.label(grid, generator._scored(targets))
    everything = generator.label(grid, targets)
    assert (everything == 0).any() and (everything == 1).any()
    assert torch.equal(labels == 0, everything == 0)
    assert bool((labels == 1).any()) == (not score_classes)
    assert bool((labels[everything == 1] == NEGATIVE).all()) == bool(score_classes)
    index = torch.nonzero(labels >= 0).squeeze(1)
    masked = generator._has_mask(
        labels[None], torch.zeros_like(index), index, [generator._scored(targets)]
    )
    assert torch.equal(masked, labels[index] == 0)
    item = item_of()
    item["instances"] = targets
    assert all(loss.isfinite() and loss > 0 for loss in losses_of(model, item).values())
    item["instances"] = targets[targets.gt_classes == 2]
    assert losses_of(model, item)["loss_deepmask_mask"] == 0


def patch(side, positive):
    squares = ((8, 8, 26, 26),) if positive else ()
    return item_of((side, side), squares)


@pytest.mark.parametrize("kind", ON_CROPS)
def test_a_patch_has_one_window(kind):
    model = model_of(*ON_CROPS[kind]).eval()
    side = 32 if kind == "deep" else 36
    assert model.proposal_generator.train_on_crops
    for positive in (True, False):
        generator, grid, _, _ = pyramid_of(model, patch(side, positive))
        labels = generator.label(grid, patch(side, positive)["instances"])
        used = labels != IGNORED
        assert used.sum() == 1 and labels[used] == (0 if positive else NEGATIVE)
        assert grid.boxes[used].tolist() == [[0, 0, side, side]]


@pytest.mark.parametrize("kind", ON_CROPS)
def test_training_on_patches_learns(kind):
    model = model_of(*ON_CROPS[kind])
    side = 32 if kind == "deep" else 36
    batch = [patch(side, number % 2 == 0) for number in range(4)]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    totals = []
    for _ in range(5):
        losses = losses_of(model, *batch)
        assert all(loss > 0 for loss in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        totals.append(float(sum(losses.values())))
    assert totals[-1] < 0.9 * totals[0]


def test_images_of_another_size_are_refused():
    model = model_of(*ON_CROPS["deep"])
    with pytest.raises(ValueError, match="DeepMask is trained on crops and gets an image of 64"):
        losses_of(model, item_of((64, 64)))
    with pytest.raises(ValueError, match=r"INPUT.CROP.SIZE is \[40, 40\].*side of a window, \[32"):
        model_of(*ON_CROPS["deep"], CROPS % (40, 40))
