"""Losses on embeddings of other papers, against slow references and closed forms."""

import math

import pytest
import torch

from rpe_d2.ops import metric_learning_loss as metric
from rpe_d2.ops import spatial_loss as spatial
from rpe_d2.ops.associative_loss import associative_loss
from rpe_d2.ops.discriminative_loss import discriminative_loss
from rpe_d2.ops.location_loss import location_loss, locations_of_instances
from rpe_d2.ops.metric_learning_loss import (
    metric_learning_loss,
    seed_mask_ious,
    similarity,
    squared_radius,
)
from rpe_d2.ops.spatial_loss import spatial_kernel, spatial_loss
from tests.reference import embedding_losses as reference

ON_EMBEDDINGS = {
    "discriminative": (discriminative_loss, reference.discriminative),
    "associative": (associative_loss, reference.associative),
    "metric_learning": (metric_learning_loss, reference.metric_learning),
}


def example(num_points, dim, num_instances=4):
    """Returns embeddings and labels of instances of different sizes, some points ignored."""
    x = torch.randn(num_points, dim, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(-1, num_instances, (num_points,))
    labels[0], labels[1] = 0, 7  # an instance of one point
    return x, labels


def spatial_example(num_points, num_bandwidths=2):
    positions = torch.rand(num_points, 2, dtype=torch.float64)
    bandwidths = 0.3 * torch.rand(num_points, num_bandwidths, dtype=torch.float64)
    seeds = torch.rand(num_points, dtype=torch.float64)
    labels = torch.randint(-2, 3, (num_points,))
    labels[:3] = torch.tensor([0, 1, -1])
    return [each.requires_grad_() for each in (positions, bandwidths, seeds)], labels


def assert_same(terms, expected, inputs):
    """Checks values and gradients of one or several terms."""
    if isinstance(terms, torch.Tensor):
        terms, expected = [terms], [expected]
    assert len(terms) == len(expected)
    for own, other in zip(terms, expected):
        assert float(other) > 0 and abs(float(own) - float(other)) < 1e-10
        pair = [
            torch.autograd.grad(each, inputs, retain_graph=True, allow_unused=True)
            for each in (own, other)
        ]
        for gradient, wanted, source in zip(*pair, inputs):
            gradient, wanted = (
                torch.zeros_like(source) if each is None else each for each in (gradient, wanted)
            )
            assert (gradient - wanted).abs().max() < 1e-10


@pytest.mark.parametrize("name", ON_EMBEDDINGS)
@pytest.mark.parametrize("dim", [1, 5])
def test_values_and_gradients_are_those_of_loops(name, dim):
    loss, slow = ON_EMBEDDINGS[name]
    x, labels = example(24, dim)
    assert_same(loss(x, labels), slow(x, labels), [x])


def test_arguments_of_the_losses_are_those_of_the_papers():
    x, labels = example(20, 3)
    options = dict(delta_v=0.2, delta_d=0.7)
    assert_same(
        discriminative_loss(x, labels, **options),
        reference.discriminative(x, labels, **options),
        [x],
    )
    tags, labels = example(20, 1)
    assert_same(
        associative_loss(tags, labels, sigma=0.4), reference.associative(tags, labels, 0.4), [tags]
    )


@pytest.mark.parametrize("name", ON_EMBEDDINGS)
def test_gradcheck(name):
    loss, _ = ON_EMBEDDINGS[name]
    x, labels = example(9, 3, num_instances=2)
    assert torch.autograd.gradcheck(lambda each: loss(each, labels), x)


@pytest.mark.parametrize("name", ON_EMBEDDINGS)
def test_one_instance_is_not_pushed_and_none_costs_nothing(name):
    loss, _ = ON_EMBEDDINGS[name]
    x = torch.zeros(6, 2, dtype=torch.float64, requires_grad=True)
    for labels in (torch.zeros(6, dtype=torch.long), torch.full((6,), -1)):
        terms = loss(x, labels)
        terms = [terms] if isinstance(terms, torch.Tensor) else terms
        assert all(float(term) == 0 for term in terms)
        (gradient,) = torch.autograd.grad(sum(terms), x)
        assert gradient.abs().max() == 0


@pytest.mark.parametrize("name", ON_EMBEDDINGS)
def test_wrong_shapes_are_one_line(name):
    loss, _ = ON_EMBEDDINGS[name]
    for x, labels in (
        (torch.zeros(3), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(3, 2), torch.zeros(4, dtype=torch.long)),
        (torch.zeros(3, 2), torch.zeros(3)),
    ):
        with pytest.raises(ValueError, match="allowed: ") as error:
            loss(x, labels)
        assert "\n" not in str(error.value)


def test_discriminative_loss_at_known_distances():
    # Two instances of two points each, 1 from their means, whose distance is 2.
    x = torch.tensor([[-1.0, 0], [1, 0], [-1, 2], [1, 2]], dtype=torch.float64)
    terms = discriminative_loss(x, torch.tensor([0, 0, 1, 1]))
    assert float(terms.variance) == pytest.approx((1 - 0.5) ** 2)
    assert float(terms.distance) == pytest.approx((3 - 2) ** 2)
    assert float(terms.regularization) == pytest.approx((0 + 2) / 2)


def test_associative_loss_at_known_distances():
    tags = torch.tensor([[-1.0], [1.0], [2.0]], dtype=torch.float64)
    terms = associative_loss(tags, torch.tensor([3, 3, 5]))
    assert float(terms.pull) == pytest.approx((1 + 0) / 2)
    assert float(terms.push) == pytest.approx(math.exp(-2.0))


def test_metric_learning_loss_at_known_distances():
    x = torch.tensor([[0.0], [0.0], [2.0]], dtype=torch.float64)
    s = 2 / (1 + math.exp(4))
    loss = metric_learning_loss(x, torch.tensor([0, 0, 1]))
    # Pairs of the same instance cost nothing, and half of the weight is on different instances.
    assert float(loss) == pytest.approx(-0.5 * math.log(1 - s))
    square = torch.linspace(0, 90, 20, dtype=torch.float64)
    assert torch.allclose(similarity(square), 2 / (1 + square.exp()))
    assert float(similarity(torch.tensor(1000.0))) == 0
    for threshold in (0.25, 0.9):
        radius = torch.tensor(squared_radius(threshold))
        assert float(similarity(radius)) == pytest.approx(threshold)
    with pytest.raises(ValueError, match="threshold is 1; allowed: above 0 and below 1"):
        squared_radius(1)


def test_coinciding_points_of_two_instances_cost_a_finite_amount():
    x = torch.zeros(4, 3, requires_grad=True)
    loss = metric_learning_loss(x, torch.tensor([0, 0, 1, 1]))
    (gradient,) = torch.autograd.grad(loss, x)
    assert 5 < float(loss) < 20 and gradient.isfinite().all()


def test_blocks_of_pairs_change_nothing(monkeypatch):
    x, labels = example(30, 2)
    whole = metric_learning_loss(x, labels)
    expected = torch.autograd.grad(whole, x)
    monkeypatch.setattr(metric, "_PAIRS_AT_ONCE", 70)
    parts = metric_learning_loss(x, labels)
    assert abs(float(parts - whole)) < 1e-12
    assert (torch.autograd.grad(parts, x)[0] - expected[0]).abs().max() < 1e-12


def test_ious_of_masks_of_seeds_are_those_of_loops(monkeypatch):
    monkeypatch.setattr(metric, "_BLOCK_ELEMENTS", 100)  # several blocks
    x, labels = torch.randn(40, 2), torch.randint(-2, 3, (40,))
    seeds, own = torch.cat([x[:6], torch.randn(2, 2)]), torch.tensor([0, 1, 2, -1, 0, 1, 2, 0])
    thresholds = (0.25, 0.75)
    ious = seed_mask_ious(seeds, own, x, labels, thresholds)
    for i, seed in enumerate(seeds):
        for j, threshold in enumerate(thresholds):
            s = [float(2 / (1 + ((seed - point) ** 2).sum().exp())) for point in x]
            mask = {p for p in range(40) if s[p] > threshold and labels[p] >= -1}
            instance = {p for p in range(40) if labels[p] == own[i]}
            expected = len(mask & instance) / len(mask | instance) if own[i] >= 0 else 0.0
            assert float(ious[i, j]) == pytest.approx(expected)
    assert seed_mask_ious(seeds[:0], own[:0], x, labels, thresholds).shape == (0, 2)


@pytest.mark.parametrize("num_bandwidths", [1, 2])
def test_spatial_loss_is_that_of_loops(num_bandwidths):
    inputs, labels = spatial_example(18, num_bandwidths)
    terms = spatial_loss(*inputs, labels)
    expected = reference.spatial(*inputs, labels)
    assert_same(terms, expected, inputs)
    terms = spatial_loss(*inputs, labels, foreground_weight=2.0)
    assert_same(terms, reference.spatial(*inputs, labels, 2.0), inputs)


def test_chunks_of_masks_change_nothing(monkeypatch):
    inputs, labels = spatial_example(18)
    whole = spatial_loss(*inputs, labels).mask
    expected = torch.autograd.grad(whole, inputs[:2])
    monkeypatch.setattr(spatial, "_BLOCK_ELEMENTS", 1)
    parts = spatial_loss(*inputs, labels).mask
    assert abs(float(parts - whole)) < 1e-12
    for own, other in zip(torch.autograd.grad(parts, inputs[:2]), expected):
        assert (own - other).abs().max() < 1e-12


def test_gradcheck_of_the_spatial_loss():
    inputs, labels = spatial_example(8)
    # The bandwidth and seed terms detach means and kernels, which finite differences do not know.
    assert torch.autograd.gradcheck(
        lambda positions, bandwidths: spatial_loss(positions, bandwidths, inputs[2], labels).mask,
        inputs[:2],
    )
    assert torch.autograd.gradcheck(
        lambda seeds: spatial_loss(inputs[0].detach(), inputs[1].detach(), seeds, labels).seed,
        inputs[2],
    )


def test_perfect_spatial_embeddings_cost_nothing():
    """Pixels point to their center, the background elsewhere, and seeds are the kernel."""
    labels = torch.tensor([0, 0, 0, 1, 1, -1, -1, -2])
    centers = torch.tensor([[0.2, 0.2], [0.8, 0.8], [0.5, 5.0]], dtype=torch.float64)
    positions = centers[labels.clamp(min=-1)]
    bandwidths = torch.full((8, 2), 0.4, dtype=torch.float64)
    seeds = (labels >= 0).double()
    terms = spatial_loss(positions, bandwidths, seeds, labels)
    assert all(abs(float(term)) < 1e-6 for term in terms)
    # With the centroids of the pixels themselves, the same positions are wrong.
    pixels = torch.rand(8, 2, dtype=torch.float64)
    assert float(spatial_loss(positions, bandwidths, seeds, labels, center_positions=pixels).mask)


def test_spatial_loss_without_instances_is_that_of_the_seeds():
    inputs, labels = spatial_example(6)
    terms = spatial_loss(*inputs, torch.full_like(labels, -1))
    assert float(terms.mask) == float(terms.bandwidth) == 0
    assert float(terms.seed) == pytest.approx(float(inputs[2].square().mean()))
    terms = spatial_loss(*inputs, torch.full_like(labels, -2))
    assert [float(term) for term in terms] == [0, 0, 0]
    sum(terms).backward()
    assert all(each.grad is not None for each in inputs)


def test_the_spatial_kernel_is_half_at_its_radius():
    radius = 0.03
    bandwidth = torch.tensor([math.log(math.log(2) / radius**2) / 10])
    point = torch.tensor([radius, 0.0])
    assert float(spatial_kernel(point, torch.zeros(2), bandwidth)) == pytest.approx(0.5)
    assert float(spatial_kernel(point, torch.zeros(2), torch.tensor([99.0]))) == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.zeros(3, 3), torch.zeros(3, 1), torch.zeros(3)), "positions are"),
        ((torch.zeros(3, 2), torch.zeros(3, 3), torch.zeros(3)), "bandwidths have shape"),
        ((torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(4)), "seeds have shape"),
    ],
)
def test_wrong_shapes_of_the_spatial_loss_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        spatial_loss(*arguments, torch.zeros(3, dtype=torch.long))
    assert "allowed: " in str(error.value) and "\n" not in str(error.value)


def test_locations_are_the_boxes_of_the_instances():
    positions = torch.tensor([[0.0, 4.0], [2.0, 1.0], [9.0, 9.0], [5.0, 5.0]], dtype=torch.float64)
    labels = torch.tensor([6, 6, -1, 2])
    first = [1.0, 2.5, 0.0, 1.0, 2.0, 4.0]
    expected = torch.tensor([first, first, [5.0] * 6], dtype=torch.float64)
    assert torch.equal(locations_of_instances(positions, labels), expected)
    pred = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    loss = location_loss(pred, positions, labels)
    assert float(loss) == pytest.approx(float(expected.square().sum()) / 3)
    assert torch.autograd.gradcheck(lambda x: location_loss(x, positions, labels), pred)
    nothing = location_loss(pred, positions, torch.full((4,), -1))
    nothing.backward()
    assert float(nothing) == 0 and pred.grad.abs().max() == 0
    with pytest.raises(ValueError, match=r"pred has shape \(4, 2\); allowed: \(4, 6\)"):
        location_loss(positions, positions, labels)
