"""Hard attention: its distribution, its estimate of the gradient, and a problem that it learns."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rpe_d2.modeling.embedding.hard_attention import HardAttention

NUM_PIXELS, DIM = 5, 3
TARGET = torch.tensor([0, 2])


@pytest.fixture
def problem():
    """Features of five pixels, the masks of two groups, and a classifier."""
    torch.manual_seed(0)
    features = torch.randn(NUM_PIXELS, DIM, dtype=torch.float64)
    weights = torch.tensor([[1.0, 0.5, 0.0, 0.2, 1.0], [0.0, 1.0, 1.0, 0.7, 0.0]]).double()
    return features, weights, nn.Linear(DIM, 3).double()


def attention(num_samples=1, **arguments):
    torch.manual_seed(1)
    return HardAttention(DIM, num_samples, **{"entropy_weight": 0.0, **arguments}).double()


def gradient(loss, module):
    return torch.autograd.grad(loss, module.query.weight)[0].flatten()


def losses_of(classifier, pooled):
    return F.cross_entropy(classifier(pooled), TARGET[: len(pooled)], reduction="none")


def exact_gradient(module, features, weights, classifier):
    """Returns the gradient of the expected loss: the sum over all choices of pixels."""
    log_probabilities = module.log_probabilities(features, weights)
    expected = 0.0
    for group in range(len(weights)):
        for choice in itertools.product(range(NUM_PIXELS), repeat=module.num_samples):
            pooled = features[list(choice)].mean(dim=0)
            loss = F.cross_entropy(classifier(pooled), TARGET[group])
            probability = log_probabilities[group, list(choice)].sum().exp()
            expected = expected + probability * loss / len(weights)
    return gradient(expected, module)


def estimates(module, features, weights, classifier, count, copies=1):
    """Returns estimates (count, C) of the gradient, each from ``copies`` samples of both groups."""
    found = []
    for _ in range(count):
        output = module(features, weights.repeat(copies, 1))
        logits = classifier(output.pooled)
        losses = F.cross_entropy(logits, TARGET.repeat(copies), reduction="none")
        found.append(gradient(module.loss(losses, output), module))
    return torch.stack(found)


@pytest.mark.parametrize("num_samples", [1, 2])
@pytest.mark.parametrize("use_baseline", [True, False])
def test_the_estimated_gradient_is_exact_on_average(problem, num_samples, use_baseline):
    module = attention(num_samples, use_baseline=use_baseline)
    expected = exact_gradient(module, *problem)
    found = estimates(module, *problem, count=400, copies=50)
    standard_error = found.std(dim=0) / len(found) ** 0.5
    assert (standard_error < 0.2 * expected.abs().max()).all()
    assert ((found.mean(dim=0) - expected).abs() < 4 * standard_error).all()


def test_the_baseline_reduces_the_variance(problem):
    """Losses that are all about 5 differ by less from their mean than from 0."""
    features, weights, classifier = problem
    with torch.no_grad():
        classifier.bias += torch.tensor([0.0, 10.0, 0.0])
    variances = {}
    for use_baseline in (True, False):
        module = attention(use_baseline=use_baseline)
        found = estimates(module, features, weights, classifier, count=300)[50:]
        variances[use_baseline] = found.var(dim=0).sum()
    assert variances[True] < 0.5 * variances[False]


def test_the_baseline_is_the_average_of_earlier_batches():
    module = attention()
    output = module(torch.randn(4, DIM).double(), torch.ones(2, 4).double())
    assert module.baseline == 0
    batches = [torch.tensor([1.0, 3.0]), torch.tensor([5.0, 5.0]), torch.tensor([2.0, 0.0])]
    for batch in batches:
        module.loss(batch.double(), output)
    expected = (0.81 * 2 + 0.9 * 5 + 1) / (0.81 + 0.9 + 1)
    assert float(module.baseline) == pytest.approx(expected, rel=1e-5)
    module.eval().loss(batches[0].double(), output)
    assert float(module.baseline) == pytest.approx(expected, rel=1e-5)


def test_the_value_is_the_mean_loss_without_the_entropy(problem):
    features, weights, classifier = problem
    module = attention(entropy_weight=0.1)
    output = module(features, weights)
    losses = losses_of(classifier, output.pooled)
    distribution = torch.distributions.Categorical(
        module.log_probabilities(features, weights).exp()
    )
    torch.testing.assert_close(output.entropy, distribution.entropy())
    expected = losses.mean() - 0.1 * distribution.entropy().mean()
    torch.testing.assert_close(module.loss(losses, output), expected)


def test_pixels_come_from_their_group_by_their_probability(problem):
    features, weights, _ = problem
    module = attention(num_samples=20000)
    output = module(features, weights)
    scores = features @ module.query.weight[0] / DIM**0.5
    probabilities = weights * scores.exp()
    probabilities /= probabilities.sum(dim=1, keepdim=True)
    for pixels, expected in zip(output.pixels, probabilities):
        shares = torch.bincount(pixels, minlength=NUM_PIXELS) / len(pixels)
        torch.testing.assert_close(shares.double(), expected, atol=0.02, rtol=0)
        assert (shares[expected == 0] == 0).all()
    best = module.eval()(features, weights).pixels[:, 0]
    assert torch.equal(best, probabilities.argmax(dim=1))


def test_empty_groups_and_no_groups(problem):
    features, weights, classifier = problem
    module = attention()
    output = module(features, torch.zeros_like(weights))
    full = module.log_probabilities(features, torch.ones_like(weights))
    torch.testing.assert_close(module.log_probabilities(features, torch.zeros_like(weights)), full)
    assert output.entropy.isfinite().all()
    one_pixel = torch.eye(NUM_PIXELS, dtype=torch.float64)[:1]
    output = attention(num_samples=3).eval()(features, one_pixel)
    torch.testing.assert_close(output.pooled, features[:1])
    assert output.log_probability == 0
    output = module(features, weights[:0])
    loss = module.loss(losses_of(classifier, output.pooled), output)
    assert output.pooled.shape == (0, DIM) and loss == 0
    loss.backward()


def test_it_learns_where_to_look():
    """One pixel of each group has the class in its features, and a mark; the others mislead."""
    torch.manual_seed(0)
    module, classifier = HardAttention(6), nn.Linear(6, 3)
    optimizer = torch.optim.Adam([*module.parameters(), *classifier.parameters()], lr=0.05)

    def batch():
        labels = torch.randint(3, (32,))
        classes = torch.randint(3, (32, 8))
        marked = torch.randint(8, (32,))
        classes[torch.arange(32), marked] = labels
        marks = F.one_hot(marked, 8)[:, :, None]
        features = torch.cat([F.one_hot(classes, 3), marks, 1 - marks, marks * 0 + 1], dim=2)
        weights = torch.block_diag(*torch.ones(32, 8).split(1))  # (32, 32 * 8)
        return features.float().flatten(0, 1), weights, marked, labels

    for _ in range(250):
        features, weights, _, labels = batch()
        output = module(features, weights)
        losses = F.cross_entropy(classifier(output.pooled), labels, reduction="none")
        optimizer.zero_grad()
        module.loss(losses, output).backward()
        optimizer.step()
    features, weights, marked, labels = batch()
    output = module.eval()(features, weights)
    assert torch.equal(output.pixels[:, 0] % 8, marked)
    assert (classifier(output.pooled).argmax(dim=1) == labels).float().mean() > 0.95


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"feature_dim": 0}, "feature_dim is 0; allowed: 1 or more"),
        ({"feature_dim": 4, "num_samples": 0}, "num_samples is 0; allowed: 1 or more"),
        ({"feature_dim": 4, "momentum": 1.0}, "momentum is 1.0; allowed: 0 to 0.999"),
        ({"feature_dim": 4, "entropy_weight": -1.0}, "entropy_weight is -1.0; allowed: 0 or more"),
    ],
)
def test_wrong_arguments_are_reported_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        HardAttention(**arguments)
