"""A training step: accumulated gradients, and losses and gradients that are not finite."""

import itertools
import logging

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from rpe_d2.engine.train_step import NonFinite, NonFiniteStatistics, TrainStep


class Regression(nn.Module):
    """The mean squared error of a linear model over the images of a batch."""

    def __init__(self, norm: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2).double()
        self.norm = nn.BatchNorm1d(2).double() if norm else nn.Identity()

    def forward(self, batch):
        x = torch.stack([item["x"] for item in batch])
        y = self.norm(self.linear(x))
        factor = torch.tensor([item.get("factor", 1.0) for item in batch], dtype=torch.float64)
        return {
            "loss_small": (y[:, 0] ** 2 * factor).mean(),
            "loss_large": ((y[:, 1] - 1).abs().sqrt()).mean(),
        }


def items(count, **changes):
    generator = torch.Generator().manual_seed(5)
    made = [
        {"x": torch.randn(3, generator=generator, dtype=torch.float64), "image_id": i}
        for i in range(count)
    ]
    for index, change in changes.get("at", {}).items():
        made[index].update(change)
    return made


def batched(images, size):
    for start in itertools.count(0, size):
        yield [dict(images[(start + i) % len(images)]) for i in range(size)]


def trained(batch_size, accumulate, steps=5, images=None, norm=False, **options):
    model = Regression(norm)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step = TrainStep(
        model, batched(images or items(12), batch_size), optimizer,
        seed=1, accumulate_steps=accumulate, **options,
    )  # fmt: skip
    with EventStorage() as storage:
        for step.iter in range(steps):
            storage.iter = step.iter
            step.run_step()
        losses = {name: value for name, (value, _) in storage.latest().items() if "loss" in name}
    return step, model.linear.weight.detach().clone(), losses


def test_accumulated_steps_equal_a_larger_batch():
    _, expected, losses = trained(4, 1)
    for size, accumulate in ((2, 2), (1, 4)):
        step, weights, accumulated = trained(size, accumulate)
        torch.testing.assert_close(weights, expected, atol=1e-12, rtol=0)
        assert accumulated == pytest.approx(losses) and step.images_seen == 20


def test_nonfinite_losses_are_skipped_and_named(caplog):
    images = items(12, at={6: {"factor": float("nan"), "image_id": "bad"}})
    with caplog.at_level(logging.WARNING):
        step, weights, _ = trained(2, 1, steps=6, images=images, max_nonfinite_steps=1)
    assert weights.isfinite().all() and step.nonfinite_steps == 1
    assert "iteration 3: loss_small is nan; image ids bad, 7" in caplog.text
    # The result is that of training without this batch.
    without = [item for i, item in enumerate(items(12)) if i not in (6, 7)]
    torch.testing.assert_close(weights, trained(2, 1, steps=5, images=without)[1])


def test_nonfinite_gradients_of_finite_losses_are_skipped_and_named(caplog):
    zero = torch.zeros(3, dtype=torch.float64)
    model = Regression()
    nn.init.ones_(model.linear.bias)  # |y - 1| = 0 at x = 0, where its square root has no slope
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.linear.weight.detach().clone()
    data = batched([{"x": zero, "image_id": 17}], 1)
    step = TrainStep(model, data, optimizer, seed=1, max_nonfinite_steps=2)
    with EventStorage(), caplog.at_level(logging.WARNING):
        for step.iter in range(2):
            step.run_step()
        assert "gradient of linear.weight and of 1 other parameters is not finite" in caplog.text
        assert torch.equal(model.linear.weight, before)
        with pytest.raises(NonFinite, match="image ids 17; skipped steps: 2, .*STEPS is 2"):
            step.run_step()


def test_running_statistics_that_are_not_finite_end_training():
    images = items(4, at={2: {"x": torch.full((3,), float("inf"), dtype=torch.float64)}})
    with pytest.raises(NonFiniteStatistics, match="norm.running_mean are not finite"):
        trained(2, 1, images=images, norm=True, max_nonfinite_steps=9)


def test_the_randomness_of_a_step_depends_on_its_number_alone():
    drawn = {}

    class Drawing(Regression):
        def forward(self, batch):
            drawn.setdefault(len(drawn), float(torch.rand(())))
            return super().forward(batch)

    model = Drawing()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainStep(model, batched(items(4), 1), optimizer, seed=1, accumulate_steps=2)
    with EventStorage():
        for step.iter in (0, 1, 0):
            torch.rand(7)
            step.run_step()
    assert drawn[4] == drawn[0] and drawn[5] == drawn[1] and len(set(drawn.values())) == 4


class Layers(nn.Module):
    """A small network in single precision."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, batch):
        x = torch.stack([item["x"].float() for item in batch]).to(self.layers[0].weight.device)
        self.output = self.layers(x)
        return {"loss": ((self.output.float() - x.sum(dim=1, keepdim=True)) ** 2).mean()}


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
        ),
    ],
)
def test_mixed_precision_learns_what_single_precision_learns(device, precision):
    final = []
    for chosen in (None, precision):
        model = Layers().to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        data = batched(items(32), 8)
        step = TrainStep(model, data, optimizer, seed=1, precision=chosen, max_nonfinite_steps=0)
        with EventStorage() as storage:
            for step.iter in range(60):
                storage.iter = step.iter
                step.run_step()
            final.append(storage.latest()["total_loss"][0])
        assert model.output.dtype == (chosen or torch.float32)
        assert model.layers[0].weight.dtype == torch.float32
    assert final[0] < 0.3 and final[1] == pytest.approx(final[0], rel=0.5)


def test_overflow_in_half_precision_lowers_the_loss_scale_and_is_not_counted():
    model = Layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"seed": 1, "precision": torch.float16, "max_nonfinite_steps": 0}
    step = TrainStep(model, batched(items(8), 4), optimizer, **options)
    step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = model.layers[0].weight.detach().clone()
    with EventStorage():
        step.run_step()
        assert torch.equal(model.layers[0].weight, before)
        for step.iter in range(1, 40):
            step.run_step()
    assert step.grad_scaler.get_scale() < 2.0**40 and step.nonfinite_steps == 0
    assert not torch.equal(model.layers[0].weight, before)
    other = TrainStep(Layers(), batched(items(8), 4), optimizer, **options)
    other.load_state_dict(step.state_dict())
    assert other.grad_scaler.get_scale() == step.grad_scaler.get_scale()
