"""The Lovász hinge, against sets of pixels."""

import pytest
import torch

from rpe_d2.ops.lovasz import jaccard_increments, lovasz_hinge
from tests.reference.embedding_losses import jaccard_loss
from tests.reference.embedding_losses import lovasz_hinge as slow_lovasz_hinge


def example(*shape):
    logits = 2 * torch.randn(*shape, dtype=torch.float64)
    return logits.requires_grad_(), torch.rand(shape) > 0.6


@pytest.mark.parametrize("num_pixels", [1, 2, 9])
def test_values_and_gradients_are_those_of_sets(num_pixels):
    logits, targets = example(5, num_pixels)
    targets[0] = False
    targets[1] = True
    losses = lovasz_hinge(logits, targets)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    for row, target, loss, slope in zip(logits.detach(), targets, losses, gradient):
        row.requires_grad_()
        expected = slow_lovasz_hinge(row, target)
        assert abs(float(loss) - float(expected)) < 1e-12
        (wanted,) = torch.autograd.grad(expected, row, allow_unused=True)
        assert (slope - wanted).abs().max() < 1e-12


def test_gradcheck():
    logits, targets = example(3, 8)
    assert torch.autograd.gradcheck(lambda x: lovasz_hinge(x, targets), logits)


def test_of_binary_logits_it_is_twice_the_jaccard_loss():
    for _ in range(10):
        targets = torch.rand(7) > 0.5
        predicted = torch.rand(7) > 0.5
        wrong = set(torch.nonzero(predicted != targets).flatten().tolist())
        loss = lovasz_hinge(2.0 * predicted.double() - 1, targets)
        expected = 1.0 if wrong and not targets.any() else jaccard_loss(wrong, targets.tolist())
        assert float(loss) == pytest.approx(2 * expected)


def test_it_is_convex_and_zero_beyond_the_margin():
    targets = torch.rand(12) > 0.5
    for _ in range(20):
        a, b = torch.randn(2, 12, dtype=torch.float64)
        ends = (lovasz_hinge(a, targets) + lovasz_hinge(b, targets)) / 2
        assert float(lovasz_hinge((a + b) / 2, targets)) <= float(ends) + 1e-12
    signs = torch.where(targets, 1.0, -1.0)
    assert float(lovasz_hinge(3 * signs, targets)) == 0


def test_increments_are_positive_and_sum_to_one():
    increments = jaccard_increments(torch.rand(6, 50) > 0.8)
    assert increments.min() >= 0
    assert torch.allclose(increments.sum(dim=1), torch.ones(6, dtype=torch.float64))


def test_an_empty_image_costs_nothing_and_wrong_inputs_are_one_line():
    assert lovasz_hinge(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool)).tolist() == [0, 0]
    for logits, targets in (
        (torch.zeros(3), torch.zeros(4, dtype=torch.bool)),
        (torch.zeros(3), torch.zeros(3)),
    ):
        with pytest.raises(ValueError, match="allowed: ") as error:
            lovasz_hinge(logits, targets)
        assert "\n" not in str(error.value)
