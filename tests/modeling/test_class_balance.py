"""Weights of rare classes in the cross-entropy of the semantic heads."""

import pytest
import torch
from torch.nn import functional as F

from rpe_d2.modeling.sem_seg.class_balance import balanced_class_weights
from tests.helpers.semantic_heads import (
    FCN,
    FPN,
    HEADS,
    IGNORED,
    RECURRENT,
    semantic_input,
    semantic_model,
)


def balance(value):
    return f"MODEL: {{SEM_SEG_HEAD: {{CLASS_BALANCE: {value}}}}}"


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_weights_follow_the_closed_form(power):
    counts = torch.tensor([60, 30, 10, 0])
    weights = balanced_class_weights(counts, power)
    frequencies = torch.tensor([0.6, 0.3, 0.1, 0.1], dtype=torch.float64)
    expected = frequencies**-power
    expected /= sum(f * w for f, w in zip(frequencies[:3], expected[:3]))
    torch.testing.assert_close(weights, expected)
    assert (weights * counts).sum().item() == pytest.approx(counts.sum().item())
    if power == 0:
        assert weights.tolist() == pytest.approx([1.0] * 4)
    if power == 1:  # all classes weigh the same in total
        torch.testing.assert_close((weights * counts)[:3], torch.full((3,), 100 / 3).double())


def test_the_weighted_loss_is_the_expected_loss_of_balanced_sampling():
    torch.manual_seed(0)
    model = semantic_model(FCN, balance(1.0))
    head = model.sem_seg_head
    targets = torch.tensor([0, 0, 0, 0, 0, 1, 2, 3])[torch.randint(0, 8, (1, 8, 8))]
    counts = torch.bincount(targets.flatten(), minlength=4)
    assert (counts > 0).all()
    head.balance_classes(counts)
    scores = torch.randn(1, 4, 1, 1)  # one cell of stride 8
    loss = head.losses(scores, targets)["loss_sem_seg"]
    error = F.cross_entropy(scores.expand(1, 4, 8, 8), targets, reduction="none")
    means = [error[targets == label].mean() for label in range(4)]
    torch.testing.assert_close(loss, torch.stack(means).mean())


@pytest.mark.parametrize("name", HEADS)
def test_every_head_weighs_its_classes(name):
    counts = torch.tensor([1000, 10, 10, 10])
    item = semantic_input((64, 64))
    losses = {}
    for value in (0.0, 1.0):
        model = semantic_model(HEADS[name], balance(value))
        model.sem_seg_head.balance_classes(counts)
        torch.manual_seed(1)
        losses[value] = model([item])
    assert losses[0.0].keys() == losses[1.0].keys()
    for key in losses[0.0]:
        if "pair" not in key:
            assert losses[0.0][key] != losses[1.0][key], key


def test_equal_frequencies_change_nothing():
    item = semantic_input((64, 64))
    losses = []
    for value in (0.0, 1.0):
        model = semantic_model(RECURRENT, balance(value))
        model.sem_seg_head.balance_classes(torch.full((4,), 7))
        losses.append(model([item]))
    for key in losses[0]:
        torch.testing.assert_close(losses[0][key], losses[1][key])


def test_refined_scores_are_weighed_as_well():
    spn = """
MODEL:
  SEM_SEG_HEAD: {NAME: SPNSemSegHead}
  SPN: {SEM_SEG_HEAD: FCNHead, STRIDE: 8, IN_FEATURES: [res3], CONV_DIM: 32, CHANNELS: 4}
"""
    losses = {}
    for value in (0.0, 1.0):
        model = semantic_model(FCN, spn, balance(value))
        model.sem_seg_head.balance_classes(torch.tensor([1000, 10, 10, 10]))
        losses[value] = model([semantic_input((64, 64))])
    for key in ("loss_sem_seg", "loss_sem_seg_refined"):
        assert losses[0.0][key] != losses[1.0][key]


def test_unknown_frequencies_are_reported_in_one_line():
    model = semantic_model(FCN, balance(0.5))
    with pytest.raises(ValueError, match="class_balance is 0.5 .*call balance_classes") as error:
        model([semantic_input((64, 64))])
    assert "\n" not in str(error.value)
    model.eval()
    with torch.no_grad():  # inference does not need them
        assert model([semantic_input((64, 64))])[0]["sem_seg"].shape == (4, 64, 64)


def test_ignored_pixels_have_no_weight():
    model = semantic_model(FCN, balance(1.0))
    head = model.sem_seg_head
    head.balance_classes(torch.tensor([10, 10, 10, 1]))
    targets = torch.full((1, 8, 8), IGNORED)
    scores = torch.randn(1, 4, 1, 1, requires_grad=True)
    loss = head.losses(scores, targets)["loss_sem_seg"]
    loss.backward()
    assert loss == 0 and scores.grad.abs().sum() == 0


@pytest.mark.parametrize(
    "texts, message",
    [
        ([FCN, balance(1.5)], "MODEL.SEM_SEG_HEAD.CLASS_BALANCE is 1.5; allowed: 0 to 1"),
        (
            [
                FPN,
                balance(0.5),
                "MODEL: {SEM_SEG_HEAD: {NAME: SPNSemSegHead}, SPN: {SEM_SEG_HEAD: SemSegFPNHead}}",
            ],
            "CLASS_BALANCE is 0.5; SemSegFPNHead .* has no class balance, allowed: 0",
        ),
    ],
)
def test_a_wrong_key_is_reported_in_one_line(texts, message):
    with pytest.raises(ValueError, match=message) as error:
        semantic_model(*texts)
    assert "\n" not in str(error.value)
